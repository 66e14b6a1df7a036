"""`offmarl report`: what came out, with its uncertainty, as text, tables, figures and a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offmarl.cli_options import Json, MarkdownTables, OnlyCells, check_format, command_line
from offmarl.console import Terminal
from offmarl.errors import UsageError

if TYPE_CHECKING:
    from offmarl.data.store import Dataset
    from offmarl.report.study import Study
    from offmarl.report.summary import Summary
    from offmarl.training.run import RunFolder


def report(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...|[BENCH]",
            help="Runs, or one benchmark: its folder or its recipe's name; the latest dataset's runs if not given.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="ID|PATH", help="Every evaluated run on this dataset instead.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="score, return, skill, ...; normalised scores where all have them.")
    ] = None,
    only: OnlyCells = None,
    markdown: MarkdownTables = None,
    latex: Annotated[Path | None, typer.Option(metavar="FILE", help="Write them as LaTeX.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers as CSV.")] = None,
    marl_eval: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the scores as MARL-eval's JSON.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw intervals, profiles, improvement and curves.")
    ] = None,
    file_format: Annotated[str, typer.Option("--format", help="Of the figures: png, pdf or svg.")] = "png",
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one page with everything, and episodes to watch."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which method won, by how much, and how sure that is."""
    from offmarl.report.headline import headline
    from offmarl.report.score_tables import short_tables
    from offmarl.report.summary import summarise

    check_format(file_format)
    terminal = Terminal(as_json)
    if html is not None and (shown := _unscored(terminal, sources or [], dataset)) is not None:
        from offmarl.report.page import write_page

        content = write_page(html, *shown, reporter=terminal)
        for sentence in content.headline:
            terminal.line(sentence)
        terminal.line(f"wrote {html}")
        terminal.json({"headline": " ".join(content.headline), "page": str(html)})
        return
    with terminal.bar("statistics"):
        study, runs = _study(terminal, sources or [], dataset, metric, only or [])
        summary = summarise(study)
    told = headline(summary)
    terminal.line(told)
    for table in short_tables(summary):
        terminal.table(table.title, table.columns, table.rows)
        terminal.line(table.note)
    for warning in summary.warnings:
        terminal.line(f"warning: {warning}")
    for note in summary.notes:
        terminal.line(note)
    _write_tables(terminal, summary, markdown, latex, csv)
    if marl_eval is not None:
        from offmarl.atomic import write_json
        from offmarl.report.marl_eval import marl_eval_json

        scores, left_out = marl_eval_json(study)
        write_json(marl_eval, scores)
        for note in left_out:
            terminal.line(note)
        terminal.line(f"wrote {marl_eval}")
    if figures is not None:
        from offmarl.report.score_figures import draw_study

        with terminal.bar("figures"):
            drawn = draw_study(summary, figures, file_format)
        for path in drawn:
            terminal.line(f"wrote {path}")
    if html is not None:
        _write_page(terminal, html, summary, told, runs)
    terminal.json({"headline": told, **summary.to_json()})


def _study(
    terminal: Terminal, sources: list[str], dataset: str | None, metric: str | None, only: list[str]
) -> "tuple[Study, list[RunFolder]]":
    """The study that the arguments mean, and the runs that it is of; none of a benchmark."""
    from offmarl.recipes.results import find_bench, study_of_bench
    from offmarl.report.run_scores import runs_to_report, study_of_runs

    benches = {name: folder for name in sources if (folder := find_bench(name)) is not None}
    if benches:
        if len(sources) > 1 or dataset is not None:
            raise UsageError(f"{next(iter(benches))} is a benchmark: report it alone")
        return study_of_bench(next(iter(benches.values())), metric, only), []
    if only:
        raise UsageError("--only chooses cells of a benchmark: name its folder or its recipe")
    for name in sources:
        _require_run(name)
    chosen = runs_to_report(sources, dataset)
    if not sources and dataset is None:
        of = chosen.runs[0].record["dataset"]["id"]
        terminal.say(f"dataset: {of} (the latest run's; choose another with --dataset, or name runs)")
    return study_of_runs(chosen, metric), chosen.runs


def _unscored(
    terminal: Terminal, sources: list[str], dataset: str | None
) -> "tuple[list[RunFolder], list[Dataset]] | None":
    """The runs and datasets that a page can show though nobody evaluated any of them; None where scores exist."""
    from offmarl.data.catalog import find_dataset
    from offmarl.recipes.results import find_bench
    from offmarl.report.run_scores import SCORES
    from offmarl.training.run import find_run, list_runs

    if any(find_bench(name) is not None for name in sources) or (sources and dataset is not None):
        return None
    shown: list[Dataset] = []
    if sources:
        runs = [find_run(name) for name in sources]
    else:
        trained = [run for run in list_runs() if run.checkpoint_path.exists()]
        if dataset is not None or not trained:
            shown = [find_dataset(dataset)]
            wanted = shown[0].card.sha256
        else:
            wanted = trained[-1].record["dataset"]["sha256"]
        runs = [run for run in trained if run.record["dataset"]["sha256"] == wanted]
    if any((run.folder / SCORES).exists() for run in runs):
        return None
    said = "no run was evaluated" if runs else "nothing was trained"
    terminal.say(f"{said}: the page has no scores (offmarl evaluate measures them)")
    return runs, shown


def _require_run(name: str) -> None:
    """Raise `UsageError` for a folder that is neither a run nor a benchmark."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "run.json").exists():
        raise UsageError(f"{name} is neither a run (no run.json) nor a benchmark (no cells/)")


def _write_tables(
    terminal: Terminal, summary: "Summary", markdown: Path | None, latex: Path | None, csv: Path | None
) -> None:
    from offmarl.atomic import write_text
    from offmarl.report import score_tables

    texts = (
        (markdown, lambda: score_tables.markdown(summary, command_line())),
        (latex, lambda: score_tables.latex(summary, command_line())),
        (csv, lambda: score_tables.csv_text(summary)),
    )
    for path, text in texts:
        if path is not None:
            write_text(path, text())
            terminal.line(f"wrote {path}")


def _write_page(
    terminal: Terminal, path: Path, summary: "Summary", told: str, runs: "list[RunFolder]"
) -> None:
    """The headline, warnings and tables, with whatever else the runs have to show."""
    from offmarl.report.page import PageTable, write_page
    from offmarl.report.score_tables import score_tables

    tables = [
        PageTable(table.title, table.columns, table.rows, table.note) for table in score_tables(summary)
    ]
    write_page(
        path,
        runs,
        headline=[told, *summary.warnings],
        tables=tables,
        reporter=terminal,
        title=summary.study.title,
    )
    terminal.line(f"wrote {path}")
