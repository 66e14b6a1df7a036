"""`offmarl data ...`: list, show and check datasets, and exchange them with other libraries."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offmarl.cli_commands import Commands
from offmarl.cli_options import Json, Out, Overwrite, Settings, command_line, say_which
from offmarl.console import Terminal
from offmarl.errors import UsageError
from offmarl.settings import parse_settings

if TYPE_CHECKING:
    from offmarl.data.store import Dataset

data_app = Commands(help="List, show, check and exchange datasets.", no_args_is_help=True)

DatasetArgument = Annotated[str | None, typer.Argument(metavar="[ID|PATH]", help="The latest if not given.")]


@data_app.add("ls", example="offmarl data ls")
def data_ls(as_json: Json = False) -> None:
    """List the datasets here."""
    from offmarl.credit.relabel import credit_names
    from offmarl.data.catalog import datasets_folder, list_datasets
    from offmarl.data.store import Dataset

    terminal = Terminal(as_json)
    found = list_datasets()
    readable = {entry.id: Dataset.open(entry.folder) for entry in found if entry.card is not None}
    terminal.table(
        f"datasets in {datasets_folder()}",
        ["id", "transitions", "episodes", "return", "credit"],
        [
            [
                dataset_id,
                f"{dataset.card.transitions:,}",
                f"{dataset.card.episodes:,}",
                f"{dataset.card.statistics['return']['mean']:.1f}",
                ", ".join(credit_names(dataset)) or "-",
            ]
            for dataset_id, dataset in readable.items()
        ],
    )
    damaged = [entry for entry in found if entry.card is None]
    for entry in damaged:
        terminal.line(f"{entry.id}: {entry.problem}")
    terminal.json(
        {
            "datasets": [
                _card_summary(dataset) | {"id": dataset_id} for dataset_id, dataset in readable.items()
            ],
            "damaged": [{"id": entry.id, "problem": entry.problem} for entry in damaged],
        }
    )
    if not found:
        terminal.line("no dataset yet: offmarl collect --env mpe_spread")


@data_app.add("info", example="offmarl data info mpe_targets/expert-free-riders-4-v0")
def data_info(dataset: DatasetArgument = None, as_json: Json = False) -> None:
    """Show what a dataset holds and where it came from."""
    from offmarl.data.catalog import find_dataset

    terminal = Terminal(as_json)
    source = find_dataset(dataset)
    say_which(terminal, "dataset", dataset, source.card.id, argument=True)
    print_dataset(terminal, source)
    terminal.line(f"folder {source.folder}")


@data_app.add("validate", example="offmarl data validate mpe_targets/expert-free-riders-4-v0")
def data_validate(dataset: DatasetArgument = None, as_json: Json = False) -> None:
    """Check every array of a dataset."""
    from offmarl.data.catalog import find_dataset
    from offmarl.data.validate import validate

    terminal = Terminal(as_json)
    source = find_dataset(dataset)
    say_which(terminal, "dataset", dataset, source.card.id, argument=True)
    with terminal.bar("validate") as progress:
        problems = validate(source, progress)
    for problem in problems:
        terminal.problem(str(problem))
    terminal.json({"dataset": source.card.id, "valid": not problems, "problems": [str(p) for p in problems]})
    if problems:
        raise typer.Exit(1)
    terminal.line(f"{source.card.id}: valid, {source.card.rows:,} rows in {source.card.episodes:,} episodes")


FORMATS = "omar, pymarl, vault, minari or d3rlpy."
Name = Annotated[
    str | None, typer.Option("--name", metavar="ID", help="Id of the new dataset, namespace/name-vN.")
]


@data_app.add("export", example="offmarl data export --format d3rlpy --out buffers")
def data_export(
    path: Annotated[Path, typer.Option("--out", metavar="PATH", help="The file or folder to write.")],
    form: Annotated[str, typer.Option("--format", help="pymarl, vault, minari or d3rlpy.")],
    dataset: DatasetArgument = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a dataset for another library."""
    from offmarl.data.catalog import find_dataset
    from offmarl.data.formats.transfer import export_dataset

    terminal = Terminal(as_json)
    source = find_dataset(dataset)
    say_which(terminal, "dataset", dataset, source.card.id, argument=True)
    written = export_dataset(source, form, path, overwrite, terminal)
    for note in written.notes:
        terminal.line(note)
    terminal.line(f"wrote {written.path}")
    terminal.line(f"next: {written.usage}")
    terminal.json(
        {"dataset": source.card.id, "path": str(written.path), "notes": written.notes, "usage": written.usage}
    )


@data_app.add(
    "import", example="offmarl data import buffers --format d3rlpy --name mpe_targets/from-d3rlpy-v0"
)
def data_import(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file or folder to read.")],
    form: Annotated[str, typer.Option("--format", help=FORMATS)],
    name: Annotated[str, typer.Option(metavar="ID", help="Id of the new dataset, namespace/name-vN.")],
    env: Annotated[
        str | None,
        typer.Option(
            help="Task it comes from, as `offmarl envs` lists it; any other name is described by the arrays."
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of an episode that runs out of time, where nothing says it."),
    ] = None,
    team_reward: Annotated[
        str | None,
        typer.Option(metavar="sum|copy", help="Stored rewards are shares of the team's, or copies of it."),
    ] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Make a dataset of somebody else's."""
    from offmarl.data.formats.transfer import ImportRequest, import_dataset

    terminal = Terminal(as_json)
    request = ImportRequest(
        path,
        form,
        name,
        env=env,
        out=out,
        overwrite=overwrite,
        horizon=horizon,
        team_reward=team_reward,
        env_options=parse_settings(settings or [], ["env"])["env"],
        command=command_line(),
    )
    _print_imported(terminal, import_dataset(request, terminal), out)


@data_app.add(
    "download",
    example="offmarl data download",
    stopped="what was fetched is kept, and the same command goes on from there",
)
def data_download(
    wanted: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="As the list shows it, which appears without one.")
    ] = None,
    name: Name = None,
    env: Annotated[str | None, typer.Option(help="Task, if not the one in the name.")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fetch and import a published dataset, or list what is known."""
    from offmarl.data.download import download_dataset, find_published, published

    terminal = Terminal(as_json)
    if wanted is not None:
        dataset = download_dataset(
            find_published(wanted),
            terminal,
            name=name,
            env=env,
            out=out,
            overwrite=overwrite,
            command=command_line(),
        )
        _print_imported(terminal, dataset, out)
        return
    for flag, given in (("--name", name), ("--env", env), ("--out", out), ("--overwrite", overwrite)):
        if given:
            raise UsageError(f"{flag} needs NAME, the dataset to fetch: offmarl data download lists them")
    known = published()
    rows: dict[tuple[str, str], list[str]] = {}  # one an archive
    for one in known:
        name, _, part = one.name.rpartition(f"{one.entry.collection}-")
        archive = (one.entry.size or "size not given") if one.entry.url else "by hand"
        row = rows.setdefault((name, one.entry.collection), ["", "", one.entry.format, archive])
        row[0] = f"{name}{one.entry.collection}-"
        row[1] += f"{', ' if row[1] else ''}{part}"
    terminal.table("published datasets", ["name", "and one of", "format", "archive"], list(rows.values()))
    terminal.line("an archive is fetched once for all its datasets")
    terminal.line(f"next: offmarl data download {known[0].name}")
    terminal.json(
        {"published": [{"name": one.name, **one.entry.model_dump(exclude={"parts"})} for one in known]}
    )


def _print_imported(terminal: Terminal, dataset: "Dataset", out: Path | None) -> None:
    print_dataset(terminal, dataset)
    for note in dataset.card.provenance.get("notes", []):
        terminal.line(f"note: {note}")
    terminal.line(f"wrote {dataset.folder}")
    terminal.line(f"next: offmarl data validate {dataset.card.id if out is None else dataset.folder}")


def print_dataset(terminal: Terminal, dataset: "Dataset") -> None:
    """What a dataset holds, as a table or as JSON."""
    from offmarl.credit.relabel import credit_names

    card = dataset.card
    returns = card.statistics.get("return")  # an unfinished collection has none yet
    spec = card.env
    rows = [
        [
            "environment",
            f"{spec.id} ({spec.n_agents} agents, {spec.action_type} actions, horizon {spec.horizon})",
        ],
        ["transitions", f"{card.transitions:,} in {card.episodes:,} episodes"],
        [
            "return (mean over agents)",
            f"{returns['mean']:.1f} ± {returns['std']:.1f}  (from {returns['min']:.1f} to {returns['max']:.1f})"
            if returns
            else "not known before the collection is finished",
        ],
        ["credit", ", ".join(credit_names(dataset)) or "none yet"],
        ["made by", str(card.provenance.get("command", "unknown"))],
        ["created", card.created],
    ]
    if card.references:
        references = card.references
        rows.insert(3, ["random / expert return", f"{references['random']:.1f} / {references['expert']:.1f}"])
    terminal.table(card.id, ["", ""], rows)
    terminal.json(_card_summary(dataset))


def _card_summary(dataset: "Dataset") -> dict[str, Any]:
    from offmarl.credit.relabel import credit_names

    card = dataset.card
    return {
        "id": card.id,
        "folder": str(dataset.folder),
        "env": card.env.id,
        "transitions": card.transitions,
        "episodes": card.episodes,
        "statistics": card.statistics,
        "references": card.references,
        "provenance": card.provenance,
        "credit": credit_names(dataset),
    }
