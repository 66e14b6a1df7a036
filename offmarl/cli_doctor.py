"""`offmarl doctor`: is this machine fit for offmarl?"""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from offmarl.cli_options import Json
from offmarl.console import Terminal

if TYPE_CHECKING:
    from offmarl.doctor import Extra


def doctor(as_json: Json = False) -> None:
    """Check this installation: versions, extras, a self-test."""
    from offmarl.doctor import cores, examine

    terminal = Terminal(as_json)
    with terminal.bar("self-test") as progress:
        found = examine(progress)
    home, test = found.home, found.self_test
    terminal.table(
        "this installation",
        ["", ""],
        [
            ["versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())],
            ["devices", ", ".join(found.devices)],
            ["threads", f"{found.threads} of {cores()} cores (OMP_NUM_THREADS sets them)"],
            ["networks", found.kernels],
            ["home", f"{home.folder} ({'writable' if home.writable else 'NOT writable'})"],
            ["free disk", f"{home.free_gib:.1f} GiB"],
            ["self-test", f"{'FAILED' if test.problem else 'passed'} in {test.seconds:.1f} s"],
        ],
    )
    terminal.table(
        "extras",
        ["extra", "state", "packages"],
        [[extra.name, "missing" if extra.missing else "here", _packages(extra)] for extra in found.extras],
    )
    for problem in found.problems:
        terminal.problem(problem)
    terminal.json({"ok": not found.problems, **asdict(found), "cores": cores(), "problems": found.problems})
    if found.problems:
        raise typer.Exit(1)
    terminal.line("next: offmarl collect --env mpe_spread")


def _packages(extra: "Extra") -> str:
    here = ", ".join(f"{name} {version}" for name, version in extra.installed.items())
    return f"{here}{', ' if here and extra.missing else ''}{extra.advice}"
