"""`offmarl watch`: an episode as a film."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offmarl.cli_options import Json, Seed
from offmarl.console import Terminal
from offmarl.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from offmarl.data.store import Dataset
    from offmarl.report.episode import ShownEpisode


def watch(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[RUN|DATASET]", help="Id or path; the latest run, or dataset, if not given."),
    ] = None,
    episode: Annotated[
        int | None, typer.Option(min=0, help="Which; of a dataset the one of median return if not given.")
    ] = None,
    rewards: Annotated[
        str | None,
        typer.Option(help="Of a dataset: the decomposition beside the world; the latest if not given."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="AGENT", help="Of a run of many agents: how much neighbours count for one, e.g. red_3."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=".gif, .webp or .mp4; under $OFFMARL_HOME if not given."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write an episode as a film: the world, and who earned what."""
    from offmarl.home import offmarl_home
    from offmarl.report.film import check_format, write_film

    terminal = Terminal(as_json)
    if out is not None:
        check_format(out)
    with terminal.bar("film") as progress:
        name, shown = _find(terminal, what, episode, rewards, seed, weights)
        number = shown.title.split()[1].rstrip(":")
        told = "" if weights is None else f"-{weights}"
        path = out or offmarl_home() / "figures" / name / f"episode-{number}{told}.gif"
        frames = write_film(shown, path, progress=progress)
    terminal.line(
        f"{shown.source}: {shown.title}, {frames} frames" + (f"; {shown.note}" if shown.note else "")
    )
    terminal.line(f"wrote {path}")
    terminal.json(
        {
            "source": shown.source,
            "episode": int(number),
            "rewards": shown.reward_name,
            "frames": frames,
            "team_return": float(shown.team_reward.sum()),
            "file": str(path),
        }
    )


def _find(
    terminal: Terminal,
    what: str | None,
    episode: int | None,
    rewards: str | None,
    seed: int,
    weights: str | None,
) -> "tuple[str, ShownEpisode]":
    """The episode that a person means, and the id of what it is from."""
    from offmarl.data.catalog import datasets_folder, find_dataset, is_path, list_datasets
    from offmarl.data.schema import CARD_NAME
    from offmarl.report.episode import played_episodes
    from offmarl.training.run import find_run, list_runs

    runs = list_runs()
    if what is None:
        of_run = any(run.checkpoint_path.exists() for run in runs)
    else:
        of_run = Path(what, "run.json").exists() or any(run.id == what for run in runs)
        folder = Path(what).expanduser() if is_path(what) else datasets_folder() / what
        if not of_run and not (folder / CARD_NAME).exists():
            known = [entry.id for entry in list_datasets()] + [run.id for run in runs]
            raise unknown_name("run or dataset", what, known)
    if of_run:
        run = find_run(what)
        if what is None:
            terminal.say(f"run: {run.id} (the latest; name another run, or a dataset)")
        if rewards is not None:
            raise UsageError("--rewards is for datasets: a policy's own episodes are not decomposed")
        number = episode or 0
        return run.id, played_episodes(run, number + 1, seed, number, weights)[number]
    if weights is not None:
        raise UsageError("--weights is for runs: a dataset has no policy whose neighbours could count")
    if seed:
        raise UsageError(f"--seed {seed} is for runs: the episodes of a dataset were played already")
    dataset = find_dataset(what)
    if what is None:
        terminal.say(f"dataset: {dataset.id} (the latest; name another dataset, or a run)")
    return dataset.id, _of_dataset(dataset, episode, rewards)


def _of_dataset(dataset: "Dataset", episode: int | None, rewards: str | None) -> "ShownEpisode":
    """An episode of a dataset with a decomposition, where there is one."""
    from offmarl.credit.relabel import credit_names, latest_credit, stored_report
    from offmarl.report.episode import stored_episode, telling_episodes

    name = rewards or (latest_credit(dataset) if credit_names(dataset) else None)
    report = None if name is None else stored_report(dataset, name)
    number = next(iter(telling_episodes(dataset, report, 1))) if episode is None else episode
    return stored_episode(dataset, number, report)
