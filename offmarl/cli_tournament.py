"""`offmarl tournament`: trained policies against each other."""

from pathlib import Path
from typing import Annotated

import typer

from offmarl.cli_options import Device, Json, Out, Seed, Settings, check_figure, usable_device
from offmarl.console import Terminal
from offmarl.errors import UsageError
from offmarl.settings import parse_settings


def tournament(
    contestants: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|FILE|random|charge...",
            help="Runs by id or path, behaviour policies (FILE.safetensors), random, charge.",
        ),
    ],
    env: Annotated[str, typer.Option(help="magent_battle or magent_pursuit.")] = "magent_battle",
    agents: Annotated[
        str,
        typer.Option(
            metavar="N,...", help="A side; of a pursuit the predators. More than in training is fine."
        ),
    ] = "64",
    games: Annotated[
        int, typer.Option(min=2, help="Of each pair and number of agents, half of them on either side.")
    ] = 40,
    epsilon: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of random choices, without which every game is the same."),
    ] = 0.05,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw who beats whom: .png, .pdf or .svg.")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = "cpu",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Let policies play each other: every pair, on both sides."""
    check_figure(figure)
    sizes = _sizes(agents)
    options = parse_settings(settings or [], ["env"])["env"]
    from offmarl.behaviour.contestants import find_contestants
    from offmarl.behaviour.tournament import Rules, play_tournament
    from offmarl.home import offmarl_home
    from offmarl.report.tournament import TournamentReport

    terminal = Terminal(as_json)
    rules = Rules(env, options, games, epsilon, seed, usable_device(device))
    rules.spec(sizes[0])
    folder = out or offmarl_home() / "tournaments" / env
    playing = find_contestants(contestants, env, rules.device)
    pairs = play_tournament(playing, sizes, rules, folder, terminal)
    report = TournamentReport(rules, tuple(one.name for one in playing), tuple(pairs))
    terminal.table(report.title, report.columns(), report.rows())
    if len(playing) > 2:
        what = "wins, draws counted half" if report.battle else "what the predators earn a step"
        terminal.table(f"{what}, mean over the others", report.standing_columns(), report.standings())
    for note in report.notes():
        terminal.line(note)
    if figure is not None:
        from offmarl.report.tournament_figure import draw_tournament

        draw_tournament(report, figure)
        terminal.line(f"wrote {figure}")
    terminal.json(report.to_json())
    terminal.line(f"wrote {folder}")


def _sizes(text: str) -> list[int]:
    """`64,100` as numbers. Raises `UsageError` for anything else."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--agents {text}: expected numbers of agents, for example 64,100,400")
    return sizes
