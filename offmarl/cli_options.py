"""Flags that several commands share, each with one meaning everywhere."""

from pathlib import Path
from typing import Annotated

import typer

from offmarl.console import Terminal

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


def say_which(terminal: Terminal, kind: str, given: str | None, used: str) -> None:
    """Name what was chosen where the person did not."""
    if given is None:
        terminal.say(f"{kind}: {used} (the latest; choose another with --{kind})")
