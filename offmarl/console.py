"""The terminal: progress bars and tables for people, one JSON object for programs."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from offmarl.reporter import Progress as ProgressCallback

UNBOUNDED = 10_000  # columns
_QUIET = ContextVar("quiet", default=False)


@contextmanager
def quieted() -> Iterator[None]:
    """Terminals made meanwhile print errors and JSON only."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


class _RateColumn(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


class Terminal:
    """A `Reporter` for a person: results on standard output, everything on the way there on standard error."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json, self.quiet = as_json, _QUIET.get()
        edge = sys.stdout.isatty() or "COLUMNS" in os.environ  # a file or a pipe has none
        self.out = Console(
            file=sys.stdout, highlight=False, soft_wrap=True, width=None if edge else UNBOUNDED
        )
        self.err = Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line on standard error."""
        if not self.quiet:
            self.err.print(text, style="dim", markup=False)

    @contextmanager
    def bar(self, title: str) -> Iterator[ProgressCallback]:
        """A bar with rate and time left, from the start and until the end of the block; on a pipe nothing is drawn."""
        with self._progress() as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
            if progress.tasks[task].total is None:  # nothing was counted, and it is over
                progress.update(task, completed=1, total=1)

    @contextmanager
    def stages(self) -> Iterator[Callable[[str, int, int], None]]:
        """A bar for every stage that reports: call what it yields with (stage, done, total)."""
        tasks: dict[str, TaskID] = {}
        with self._progress() as progress:

            def update(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage, total=total)
                progress.update(tasks[stage], completed=done, total=total)

            yield update

    def _progress(self) -> Progress:
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.err, disable=self.quiet or not self.err.is_terminal)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for a person; with `--json` or `--quiet` nothing."""
        if self.as_json or self.quiet:
            return
        named = any(columns)
        table = Table(title=escape(title), title_justify="left", header_style="bold", show_header=named)
        for index, column in enumerate(columns):
            numbers = all(row[index][:1] in "-0123456789" for row in rows)  # true of empty cells too
            last = index == len(columns) - 1  # the only one that may take several lines
            table.add_column(
                column,
                justify="right" if numbers else "left",
                no_wrap=not last,
                overflow="fold",
                min_width=len(column),
            )
        for row in rows:
            table.add_row(*map(escape, row))
        self.out.print(table)

    def line(self, text: str) -> None:
        """A line of the result for a person; with `--json` or `--quiet` nothing."""
        if not self.as_json and not self.quiet:
            self.out.print(text, markup=False)

    def problem(self, text: str) -> None:
        """A line of the result that says what is wrong; with `--quiet` on standard error, with `--json` nothing."""
        if not self.as_json:
            (self.err if self.quiet else self.out).print(text, markup=False)

    def json(self, value: Any) -> None:
        """The result for a program; without `--json` nothing."""
        if self.as_json:
            print(json.dumps(value, allow_nan=False))
