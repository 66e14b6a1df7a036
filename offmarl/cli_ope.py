"""Judging and choosing policies by data alone: `offmarl evaluate --offline` and `offmarl select`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offmarl.cli_options import (
    Device,
    Json,
    MarkdownTables,
    OnlyCells,
    Out,
    RunsOn,
    Seed,
    Settings,
    check_figure,
    command_line,
    usable_device,
)
from offmarl.console import Terminal
from offmarl.errors import UsageError
from offmarl.settings import configure, parse_settings

if TYPE_CHECKING:
    from offmarl.evaluation.ope.config import OpeConfig
    from offmarl.report.selection import Selection

EstimatorOption = Annotated[
    str | None,
    typer.Option(
        "--estimator",
        metavar="NAME,...",
        help="fqe, fqe_agents, wis, wis_cloned, behaviour, d3rlpy_fqe, d3rlpy_fqe_agents; all that the data can answer "
        "but d3rlpy's if not given.",
    ),
]


def evaluate_offline(
    terminal: Terminal,
    run: Sequence[str],
    dataset: str | None,
    estimator: str | None,
    seed: int,
    out: Path | None,
    device: str,
    settings: Sequence[str],
) -> None:
    """Judge runs by the data that they were trained on, and print what came of it."""
    from offmarl.evaluation.ope.offline import evaluate_runs_offline
    from offmarl.evaluation.scores import runs_to_evaluate

    config, estimators = _config(settings), _estimators(estimator)
    runs = runs_to_evaluate(run, dataset)
    if not run and dataset is None:
        terminal.say(f"run: {runs[0].id} (the latest; choose another with --run)")
    report = evaluate_runs_offline(runs, estimators, config, seed, out, usable_device(device), terminal)
    terminal.table(report.title, report.columns(), report.rows())
    for note in report.notes():
        terminal.line(note)
    terminal.json(report.to_json())


def select(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...|[BENCH]",
            help="Runs on one dataset, or one benchmark whose cells hold estimates; the latest dataset's runs if "
            "not given.",
        ),
    ] = None,
    dataset: RunsOn = None,
    estimator: EstimatorOption = None,
    only: OnlyCells = None,
    markdown: MarkdownTables = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw true against estimated returns: .png, .pdf or .svg."),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = "auto",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Choose a policy without playing: rank runs by their data."""
    from offmarl.recipes.results import candidates_of_bench, find_bench
    from offmarl.report.selection import ACCURACY_COLUMNS, ACCURACY_NOTE, draw_selection

    check_figure(figure)
    terminal = Terminal(as_json)
    config, estimators, named = _config(settings or []), _estimators(estimator), sources or []
    benches = [folder for name in named if (folder := find_bench(name)) is not None]
    if benches:
        if len(named) > 1 or dataset is not None or settings:
            raise UsageError(f"{named[0]} is a benchmark, its estimates are made: give it alone")
        selection = candidates_of_bench(benches[0], only or [])
        if estimators is not None:
            selection = _narrowed(selection, estimators)
    elif only:
        raise UsageError("--only chooses cells of a benchmark: name its folder or its recipe")
    else:
        selection = _of_runs(terminal, named, dataset, estimators, config, seed, out, device)
    for data in selection.data if not benches else []:
        terminal.table(data, selection.columns(), selection.rows(data))
    for line in [*selection.headlines(), *selection.notes]:
        terminal.line(line)
    checked = selection.accuracy_rows()
    if checked:
        terminal.table("how well the estimates ranked", ACCURACY_COLUMNS, checked)
        terminal.line(ACCURACY_NOTE)
    if figure is not None:
        if not checked:
            raise UsageError(
                "--figure draws estimates against true returns, and fewer than three are known: offmarl evaluate "
                "plays runs where there is a simulator"
            )
        draw_selection(selection, figure)
        terminal.line(f"wrote {figure}")
    if markdown is not None:
        from offmarl.atomic import write_text

        drawn = None if figure is None else os.path.relpath(figure, markdown.parent)
        write_text(markdown, selection.markdown(command_line(), drawn))
        terminal.line(f"wrote {markdown}")
    terminal.json(selection.to_json())


def _of_runs(
    terminal: Terminal,
    named: Sequence[str],
    dataset: str | None,
    estimators: list[str] | None,
    config: "OpeConfig",
    seed: int,
    out: Path | None,
    device: str,
) -> "Selection":
    """The runs named, or all on a dataset, judged by it; what was said before is not computed again."""
    from offmarl.evaluation.ope.offline import evaluate_runs_offline
    from offmarl.evaluation.ope.selection import candidates, runs_to_select

    runs = runs_to_select(named, dataset)
    if not named and dataset is None:
        of = runs[0].record["dataset"]["id"]
        terminal.say(f"dataset: {of} (the latest run's; choose another with --dataset, or name runs)")
    report = evaluate_runs_offline(
        runs, estimators, config, seed, out, usable_device(device), terminal, reuse=True
    )
    from offmarl.report.selection import Selection

    return Selection(
        f"Policies chosen by their data: {report.evaluations[0].dataset}",
        tuple(candidates(runs, report)),
        tuple(report.notes()),
    )


def _narrowed(selection: "Selection", estimators: Sequence[str]) -> "Selection":
    """Keep some estimators of a benchmark's cells. Raises `UsageError` where no cell holds one."""
    from dataclasses import replace

    from offmarl.errors import unknown_name

    for name in estimators:
        if name not in selection.estimators:
            raise unknown_name("estimator of this benchmark", name, selection.estimators)
    kept = tuple(
        replace(one, estimates={name: one.estimates.get(name) for name in estimators})
        for one in selection.candidates
    )
    return replace(selection, candidates=kept)


def _config(settings: Sequence[str]) -> "OpeConfig":
    from offmarl.evaluation.ope.config import OpeConfig

    return configure(OpeConfig, parse_settings(settings, ["ope"])["ope"], "ope")


def _estimators(text: str | None) -> list[str] | None:
    """The names in `--estimator`, in their order. Raises `UsageError` for one that does not exist."""
    if text is None:
        return None
    from offmarl.evaluation.ope.estimators import check_names

    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    check_names(names)
    return names
