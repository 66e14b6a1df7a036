"""`offmarl credit ...`: look again at decompositions that were made."""

from typing import TYPE_CHECKING, Annotated

import typer

from offmarl.cli_commands import Commands
from offmarl.cli_options import Json, Out, check_format
from offmarl.console import Terminal
from offmarl.errors import DataError, UsageError

if TYPE_CHECKING:
    from offmarl.credit.relabel import CreditReport
    from offmarl.data.store import Dataset

credit_app = Commands(help="Show, compare and draw decompositions.", no_args_is_help=True)

DatasetAndName = Annotated[
    list[str] | None,
    typer.Argument(metavar="[DATASET] [NAME]", help="Dataset and decomposition; the latest if not given."),
]


@credit_app.add("ls", example="offmarl credit ls mpe_targets/expert-free-riders-4-v0")
def credit_ls(
    dataset: Annotated[
        str | None, typer.Argument(metavar="[DATASET]", help="The latest if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the decompositions of a dataset."""
    from offmarl.credit.relabel import about_credit, credit_names
    from offmarl.report.tables import stored_columns, stored_row

    terminal = Terminal(as_json)
    source, _ = _dataset_first(terminal, [] if dataset is None else [dataset])
    readable, damaged = {}, {}
    for name in credit_names(source):
        try:
            readable[name] = about_credit(source, name)
        except DataError as error:
            damaged[name] = str(error)
    rows = [stored_row(name, about) for name, about in readable.items()]
    terminal.table(f"decompositions of {source.card.id}", stored_columns(), rows)
    for name, problem in damaged.items():
        terminal.line(f"{name}: {problem}")
    if not readable and not damaged:
        terminal.line(f"none yet: offmarl decompose --dataset {dataset or source.card.id}")
    shown = ("method", "fit_r2", "fallback", "truth", "seed", "created", "seconds")
    terminal.json(
        {
            "dataset": source.card.id,
            "credits": [
                {"name": name} | {key: about[key] for key in shown} for name, about in readable.items()
            ],
            "damaged": [{"name": name, "problem": problem} for name, problem in damaged.items()],
        }
    )


@credit_app.add("show", example="offmarl credit show mpe_targets/expert-free-riders-4-v0 macca")
def credit_show(which: DatasetAndName = None, as_json: Json = False) -> None:
    """Print a decomposition again, as `offmarl decompose` did."""
    terminal = Terminal(as_json)
    source, report = _find(terminal, which or [])
    print_credit(terminal, source, report)
    terminal.line(
        f"{report.path}: made by {report.method} with seed {report.seed}, {report.created[:16].replace('T', ' ')}, "
        f"in {report.seconds:.0f} s"
    )


@credit_app.add("compare", example="offmarl credit compare mpe_targets/expert-free-riders-4-v0 team macca")
def credit_compare(
    which: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATASET] A B ...", help="team, mean, true, decompositions or their files; all if none."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare decompositions with each other and with the truth."""
    from offmarl.credit.compare import compare
    from offmarl.credit.relabel import available_rewards
    from offmarl.report.tables import comparison_columns, comparison_lines, comparison_rows, pairwise

    terminal = Terminal(as_json)
    source, names = _dataset_first(terminal, which or [])
    with terminal.bar("compare"):
        comparison = compare(source, names or available_rewards(source))
    terminal.table(
        f"{source.card.id}: decompositions", comparison_columns(comparison), comparison_rows(comparison)
    )
    terminal.table(
        "correlation of the agents' rewards, mean over agents",
        *pairwise(comparison, comparison.correlation),
    )
    columns, rows = pairwise(comparison, comparison.common_edges)
    if len(rows) > 1:
        terminal.table("edges in common (F1)", columns, rows)
    for line in comparison_lines(comparison):
        terminal.line(line)
    terminal.json(comparison.to_json())


@credit_app.add("figures", example="offmarl credit figures mpe_targets/expert-free-riders-4-v0 --out figures")
def credit_figures(
    which: DatasetAndName = None,
    out: Out = None,
    file_format: Annotated[str, typer.Option("--format", help="png, pdf or svg.")] = "png",
    episode: Annotated[
        int | None, typer.Option(min=0, help="The episode to draw; a typical one, held out, if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw a decomposition: mask, true against recovered, one episode."""
    from offmarl.home import offmarl_home
    from offmarl.report.credit_figures import draw_credit

    check_format(file_format)
    terminal = Terminal(as_json)
    source, report = _find(terminal, which or [])
    folder = out or offmarl_home() / "figures" / source.card.id
    with terminal.bar("draw"):
        drawn = draw_credit(source, report, folder, file_format, episode)
    for note in drawn.notes:
        terminal.line(note)
    for path in drawn.paths:
        terminal.line(f"wrote {path}")
    terminal.json(
        {"credit": report.name, "figures": [str(path) for path in drawn.paths], "notes": drawn.notes}
    )


def print_credit(terminal: Terminal, dataset: "Dataset", report: "CreditReport") -> None:
    """A decomposition as a table with lines below it, or as JSON."""
    from offmarl.report.tables import credit_columns, credit_lines, credit_rows

    title = f"{dataset.card.id}: who earned the team's reward"
    terminal.table(title, credit_columns(), credit_rows(report))
    for line in credit_lines(report):
        terminal.line(line)
    terminal.json(report.to_json())


def _find(terminal: Terminal, which: list[str]) -> "tuple[Dataset, CreditReport]":
    """The decomposition that a person means by `[DATASET] [NAME]`."""
    from offmarl.credit.relabel import latest_credit, stored_report

    source, names = _dataset_first(terminal, which)
    if len(names) > 1:
        raise UsageError(f"one decomposition at a time, not {', '.join(names)}; a dataset comes first")
    if not names:
        names = [latest_credit(source)]
        terminal.say(f"decomposition: {names[0]} (the latest; choose another by its name)")
    return source, stored_report(source, names[0])


def _dataset_first(terminal: Terminal, which: list[str]) -> "tuple[Dataset, list[str]]":
    """The dataset and what follows it: names of decompositions hold no `/`, and their files end in `.h5`."""
    from offmarl.data.catalog import find_dataset, is_path

    given = None
    if which and not which[0].endswith(".h5") and ("/" in which[0] or is_path(which[0])):
        given, which = which[0], which[1:]
    source = find_dataset(given)
    if given is None:
        terminal.say(f"dataset: {source.card.id} (the latest; choose another by naming it first)")
    return source, which
