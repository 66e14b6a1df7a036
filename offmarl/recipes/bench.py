"""Running a recipe: what is done already is skipped, what is shared is made once, what fails stops nothing else.

Below the folder of a benchmark lie `cells/`, one small JSON file a measurement, and while it runs `work/`, the
data and the credit that cells share, each removed after the last cell that needs it.
"""

import platform
import shutil
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError

import offmarl
from offmarl.atomic import only_one, write_json, write_text
from offmarl.home import offmarl_home
from offmarl.recipes import stages
from offmarl.recipes.engine import Engine, Finished
from offmarl.recipes.jobs import Schedule
from offmarl.recipes.recipe import Cell, CollectStage, Recipe, expand, select
from offmarl.report.bench_tables import BenchTable, MeasuredCell, make_table
from offmarl.report.study import distinguished, flat, told_apart
from offmarl.reporter import Reporter, Silent

CELLS, WORK = "cells", "work"  # below the benchmark's folder
OPEN, DONE, FAILED = "open", "done", "failed"


@dataclass(frozen=True)
class CellResult:
    """A cell and what is known of it: open, done, or failed with an `error`."""

    cell: Cell
    status: str
    values: dict[str, list[float]] = field(default_factory=dict)
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class BenchReport:
    """Where a benchmark stands."""

    recipe: Recipe
    folder: Path
    results: tuple[CellResult, ...]  # in the recipe's order

    def count(self, status: str) -> int:
        """How many cells are open, done or failed."""
        return sum(result.status == status for result in self.results)

    @property
    def failures(self) -> list[CellResult]:
        """The cells whose last attempt failed."""
        return [result for result in self.results if result.status == FAILED]

    def table(self, index: int = 0) -> BenchTable:
        """A table of the recipe, of what is measured so far."""
        cells = [MeasuredCell(result.cell.coordinates, result.values) for result in self.results]
        return make_table(self.recipe.tables[index], cells)

    def tables(self) -> list[BenchTable]:
        """All of them."""
        return [self.table(index) for index in range(len(self.recipe.tables))]

    def skill_rows(self) -> list[dict[str, Any]]:
        """Of decompositions of data of a given size: method, case, transitions, seed, skill (None: undefined).

        Methods and cases that share a name are told apart by the settings in which they differ.
        """
        measured = [
            (result, collect, decompose)
            for result in self.results
            if result.status == DONE
            and result.cell.settings.train is None
            and (decompose := result.cell.settings.decompose) is not None
            and (collect := result.cell.settings.collect) is not None
            and collect.steps is not None
        ]
        methods = [(stage.method, told_apart(stage.settings)) for _, _, stage in measured]
        cases = [
            (stage.env, told_apart(data_settings(stage, result.cell.coordinates["seed"], {"env", "steps"})))
            for result, stage, _ in measured
        ]
        method_names, case_names = distinguished(methods), distinguished(cases)
        return [
            {
                "method": method_names[method],
                "case": case_names[case],
                "transitions": collect.steps,
                "seed": result.cell.coordinates["seed"],
                "skill": result.values.get("skill", [None])[0],
            }
            for (result, collect, _), method, case in zip(measured, methods, cases, strict=True)
        ]

    def overview(self) -> list[list[str]]:
        """Cells, done, failed and open of every block."""
        return [
            [
                name,
                str(len(own)),
                *(str(sum(r.status == status for r in own)) for status in (DONE, FAILED, OPEN)),
            ]
            for name in self.recipe.blocks
            if (own := [r for r in self.results if r.cell.coordinates["block"] == name])
        ]

    def failure_lines(self) -> list[str]:
        """What failed, a line for each message."""
        alike: dict[str, list[str]] = {}
        for result in self.failures:
            alike.setdefault(result.error or "", []).append(result.cell.name)
        return [
            f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {error}"
            for error, names in alike.items()
        ]

    def seconds_left(self, jobs: int, retry: bool = True, lately: Collection[str] = ()) -> float | None:
        """Estimate from the cells measured so far; None before the first. What cells share is not counted.

        Without `retry` cells that failed are not counted either. Where those of the cells `lately` that are done
        took longer than all like them did, the machine is slow at present, and the rest will take longer too.
        """
        known: dict[frozenset[str], list[float]] = {}
        for result in self.results:
            if result.status == DONE and result.seconds is not None:
                known.setdefault(result.cell.alike(), []).append(result.seconds)
        if not known:
            return None
        mean = {kind: sum(seconds) / len(seconds) for kind, seconds in known.items()}
        states = (OPEN, FAILED) if retry else (OPEN,)
        to_do = Counter(result.cell.alike() for result in self.results if result.status in states)
        for kind in to_do:
            if kind not in known:  # of which nothing is measured yet: take those that have most in common
                common = {other: len(kind & other) for other in known}
                nearest = [mean[other] for other in known if common[other] == max(common.values())]
                mean[kind] = sum(nearest) / len(nearest)
        at_present = [r for r in self.results if r.cell.name in lately and r.status == DONE]
        took = sum(result.seconds or 0.0 for result in at_present)
        usual = sum(mean[result.cell.alike()] for result in at_present)
        pace = took / usual if usual else 1.0
        return pace * sum(count * mean[kind] for kind, count in to_do.items()) / jobs

    def markdown(self, command: str) -> str:
        """All tables as a page, with the command that makes it.

        Without `--dry-run`, since it measures what is missing first.
        """
        command = command.replace(" --dry-run", "")
        parts = [f"# {self.recipe.title}\n"]
        if self.recipe.about:
            parts.append(self.recipe.about.strip() + "\n")
        done = f"{self.count(DONE)} of {len(self.results)} cells measured"
        failed = f", {len(self.failures)} failed" if self.failures else ""
        parts.append(f"Written by `{command}` (offmarl {offmarl.__version__}): {done}{failed}.\n")
        parts += [table.markdown() for table in self.tables()]
        if self.failures:
            listed = [f"- {line}" for line in self.failure_lines()]
            parts.append("\n".join(["## Failed cells", "", *listed, ""]))
        return "\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "recipe": self.recipe.name,
            "folder": str(self.folder),
            "cells": len(self.results),
            "done": self.count(DONE),
            "failed": [{"cell": result.cell.name, "error": result.error} for result in self.failures],
            "tables": [table.to_json() for table in self.tables()],
        }


def data_settings(collect: CollectStage, seed: str, named: Collection[str]) -> dict[str, Any]:
    """Settings that make the data, by their path: none that is `named` already, none that follows the cell's seed."""
    rest = collect.model_dump(mode="json", exclude={"seed", "num_envs", *named})
    return {
        key: value for key, value in flat(rest).items() if not (key.endswith("seed") and str(value) == seed)
    }


def bench_folder(name: str) -> Path:
    """Where the recipe `name` keeps its results unless told otherwise."""
    return offmarl_home() / "benches" / name


def read_results(recipe: Recipe, folder: Path, only: Collection[str] = ()) -> BenchReport:
    """Where the benchmark in `folder` stands, without running anything.

    Raises `UsageError` like `select`, and where an open cell has a name or a setting that no stage knows.
    """
    cells = select(expand(recipe, recipe.seed_list), only)
    report = BenchReport(recipe, folder, tuple(_read(cell, folder) for cell in cells))
    for result in report.results:
        if result.status != DONE:
            stages.check(result.cell.settings)
    return report


def run_bench(
    recipe: Recipe,
    folder: Path,
    engine: Engine,
    only: Collection[str] = (),
    device: str = "cpu",
    keep: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> BenchReport:
    """Measure every cell that is open or failed; the report says what came of it.

    With `keep` the data and the credit stay in `work/`, with `overwrite` cells that are done are measured
    again. Raises `UsageError` like `read_results`, and while another process works in `folder`. The engine is
    the caller's to close.
    """
    reporter = reporter or Silent()
    report = read_results(recipe, folder, only)
    todo = [result.cell for result in report.results if overwrite or result.status != DONE]
    results = {result.cell.name: result for result in report.results}
    results |= {cell.name: CellResult(cell, OPEN) for cell in todo}
    lately = {cell.name for cell in todo}
    if not todo:
        return report
    work = folder / WORK
    with only_one(work, f"another offmarl bench is at work in {folder}"):
        if overwrite:
            for cell in todo:
                _path(cell, folder).unlink(missing_ok=True)
        write_text(work / ".gitignore", "*\n")
        schedule = Schedule(todo, work, device, keep)
        if overwrite:
            schedule.forget()
        with reporter.bar(f"bench {recipe.name}") as progress:
            progress(len(results) - len(todo), len(results))
            for job, finished in schedule.run(engine):
                if job.cell is None:
                    continue
                result = _kept(job.cell, finished, recipe, folder, device)
                results[job.cell.name] = result
                report = BenchReport(recipe, folder, tuple(results.values()))
                left = len(todo) - schedule.cells_ended
                progress(len(results) - left, len(results))
                remaining = report.seconds_left(engine.slots, retry=False, lately=lately)
                if remaining is not None:
                    remaining += schedule.seconds_left_to_prepare() / engine.slots
                reporter.say(_news(result, len(results) - left, len(results), remaining))
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    return report


def _path(cell: Cell, folder: Path) -> Path:
    return folder / CELLS / f"{cell.name}.json"


class _Stored(BaseModel):
    """What a cell's file must say for the cell to count as measured, or as failed."""

    values: dict[str, Annotated[list[float], Field(min_length=1)]]
    seconds: float
    error: str | None


def _read(cell: Cell, folder: Path) -> CellResult:
    """What the cell's file says; a file that cannot be read counts as none."""
    try:
        stored = _Stored.model_validate_json(_path(cell, folder).read_bytes())
    except (OSError, ValidationError):
        return CellResult(cell, OPEN)
    status = FAILED if stored.error else DONE
    return CellResult(cell, status, stored.values, stored.seconds, stored.error)


def _result(cell: Cell, finished: Finished) -> CellResult:
    if finished.error is not None:
        return CellResult(cell, FAILED, seconds=finished.seconds, error=finished.error)
    return CellResult(cell, DONE, finished.value.values, finished.seconds)


def _kept(cell: Cell, finished: Finished, recipe: Recipe, folder: Path, device: str) -> CellResult:
    """What came of a cell, in its file; a result that cannot be written is a failed one."""
    result = _result(cell, finished)
    try:
        _write(result, finished, recipe, folder, device)
    except (OSError, TypeError, ValueError) as error:
        finished = replace(finished, value=None, error=f"its result cannot be written: {error}")
        result = _result(cell, finished)
        with suppress(OSError):  # where not even this can be written, the next run finds the cell open
            _write(result, finished, recipe, folder, device)
    return result


def _write(result: CellResult, finished: Finished, recipe: Recipe, folder: Path, device: str) -> None:
    done = finished.error is None
    record = {
        "recipe": recipe.name,
        "cell": result.cell.name,
        "coordinates": dict(result.cell.coordinates),
        "values": result.values,
        "error": result.error,
        "traceback": finished.traceback,
        "details": finished.value.details if done else {},
        "seconds": round(finished.seconds, 2),
        "settings": result.cell.settings.model_dump(mode="json", exclude_none=True),
        "device": device,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "offmarl": offmarl.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    write_json(_path(result.cell, folder), record)


def _news(result: CellResult, ended: int, cells: int, seconds_left: float | None) -> str:
    """One line about the cell that has just ended."""
    outcome = f"failed: {result.error}" if result.error else f"{result.seconds:.1f} s"
    remaining = f"; about {duration(seconds_left)} left" if seconds_left else ""
    return f"[{ended}/{cells}] {result.cell.name}: {outcome}{remaining}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
