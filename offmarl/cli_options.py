"""Flags that several commands share, each with one meaning everywhere, and the checks of their values."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from offmarl.console import Terminal
from offmarl.errors import UsageError

Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Write here instead of under $OFFMARL_HOME.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same machine, same result.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. env.agents=8; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the same command wrote before.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", metavar="ID|PATH", help="Dataset; the latest if not given.")
]
RunsOn = Annotated[
    str | None,
    typer.Option("--dataset", metavar="ID|PATH", help="Every complete run on this dataset instead."),
]
OnlyCells = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="KEY=VALUE", help="Of a benchmark only these cells, e.g. learner=td3bc; repeatable."
    ),
]
MarkdownTables = Annotated[
    Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables as Markdown.")
]


def say_which(terminal: Terminal, kind: str, given: str | None, used: str, *, argument: bool = False) -> None:
    """Name what was chosen where the person did not: by an option `--kind`, or by an `argument`."""
    if given is None:
        how = "name another to choose it" if argument else f"choose another with --{kind}"
        terminal.say(f"{kind}: {used} (the latest; {how})")


def command_line() -> str:
    """What was typed, as a run or a dataset records it."""
    return " ".join(["offmarl", *sys.argv[1:]])


def usable_device(name: str) -> str:
    """`auto` becomes what the machine has; a device that is not there is refused before any work."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # 'meta' makes tensors too, but computes nothing
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: not usable here; try cpu, or auto") from error
    return name


def check_format(name: str) -> None:
    """Raise `UsageError` for a --format that cannot be drawn, before any work."""
    from offmarl.report.style import FORMATS

    if name not in FORMATS:
        raise UsageError(f"--format {name}: expected {', '.join(FORMATS)}")


def check_figure(path: Path | None) -> None:
    """Raise `UsageError` for a format that cannot be drawn, before any work."""
    from offmarl.report.style import FORMATS

    if path is not None and path.suffix.removeprefix(".") not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise UsageError(f"--figure {path}: expected a name that ends in {endings}")
