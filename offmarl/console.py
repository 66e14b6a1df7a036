"""The terminal: progress bars and tables for people, one JSON object for programs."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from offmarl.reporter import Progress as ProgressCallback


class Terminal:
    """A `Reporter` for a person: results on standard output, everything on the way there on standard error."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.err = Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line on standard error."""
        self.err.print(text, style="dim", markup=False)

    @contextmanager
    def bar(self, title: str) -> Iterator[ProgressCallback]:
        """A bar with rate and time left; on a pipe nothing is drawn."""
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TaskProgressColumn(show_speed=True),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.err, disable=not self.err.is_terminal) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for a person; with `--json` nothing."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left", header_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self.out.print(table)

    def line(self, text: str) -> None:
        """A line of the result for a person; with `--json` nothing."""
        if not self.as_json:
            self.out.print(text, markup=False)

    def json(self, value: Any) -> None:
        """The result for a program; without `--json` nothing."""
        if self.as_json:
            print(json.dumps(value, allow_nan=False))
