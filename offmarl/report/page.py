"""The page: runs, decompositions and episodes in one HTML file that needs nothing beside it, no network either.

Shapes: T steps, N agents, M bodies.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import offmarl
from offmarl.atomic import write_text
from offmarl.credit.relabel import BUILT_IN, CreditReport, credit_names, latest_credit, stored_report
from offmarl.data.catalog import find_dataset
from offmarl.data.store import Dataset
from offmarl.errors import OffmarlError, UsageError
from offmarl.report.charts import (
    AGENT_COLOURS,
    PATTERNS,
    Chart,
    bars_chart,
    curves_chart,
    number,
    numbers,
    written,
)
from offmarl.report.episode import ShownEpisode, played_episodes, stored_episode, telling_episodes
from offmarl.report.page_credit import CreditSection, credit_section
from offmarl.report.run_scores import ALONG_TRAINING, SCORES
from offmarl.report.study import IMITATION, short_rewards
from offmarl.reporter import Reporter, Silent
from offmarl.stored_json import read_object
from offmarl.training.logging import read_metrics
from offmarl.training.run import RunFolder

TEMPLATES = files("offmarl.report") / "templates"
EPISODES = 20  # in the viewer, at most
OF_DATASET = 4  # episodes of each dataset
OF_RUN = 2  # episodes that each policy plays
PLAYING_RUNS = 5  # policies that play
MOST_LISTED = 20  # agents of an episode with a bar of their own
MOST_METRICS = 6  # curves to choose from


@dataclass(frozen=True)
class PageTable:
    """A table of the page."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class PageContent:
    """Everything that is on a page."""

    title: str
    headline: Sequence[str]
    tables: Sequence[PageTable]
    scores: Chart | None
    curves: dict[str, Chart]  # by metric
    credits: Sequence[CreditSection]
    episodes: Sequence[ShownEpisode]
    credit_of: Sequence[int | None]  # which decomposition tells the causes, for every episode
    notes: Sequence[str]


def write_page(
    path: Path,
    runs: Sequence[RunFolder],
    datasets: Sequence[Dataset] = (),
    headline: Sequence[str] = (),
    tables: Sequence[PageTable] = (),
    reporter: Reporter | None = None,
    title: str = "",
) -> PageContent:
    """Write the page of `runs`, of the decompositions they were taught with, and of `datasets`.

    `title` (by default the datasets), `headline` and `tables` stand at the top. What cannot be shown, because a
    dataset is gone or an environment is not installed, is said on the page. Raises `UsageError` where there is
    nothing to show at all.
    """
    content = gather(runs, datasets, headline, tables, reporter or Silent(), title)
    write_text(path, render(content))
    return content


def gather(
    runs: Sequence[RunFolder],
    datasets: Sequence[Dataset],
    headline: Sequence[str],
    tables: Sequence[PageTable],
    reporter: Reporter,
    title: str = "",
) -> PageContent:
    """Read, play and decide what the page shows."""
    if not runs and not datasets and not tables:
        raise UsageError("a page needs a run or a dataset: offmarl train, or offmarl collect")
    notes: list[str] = []
    shown = _datasets(runs, datasets, notes)
    reports = [(dataset, report) for dataset in shown for report in _reports(dataset, runs, notes)]
    sections = [credit_section(dataset, report) for dataset, report in reports]
    players = _players(runs)
    with reporter.bar("episodes") as progress:
        total = len(shown) + len(players)
        episodes: list[tuple[ShownEpisode, int | None]] = []
        for done, dataset in enumerate(shown):
            own = [k for k, (source, _) in enumerate(reports) if source is dataset]
            report = reports[own[0]][1] if own else None
            for number_, what in telling_episodes(dataset, report, OF_DATASET).items():
                episodes.append((stored_episode(dataset, number_, report, what), own[0] if own else None))
            progress(done + 1, total)
        for done, run in enumerate(players):
            try:
                played = played_episodes(run, OF_RUN)
            except OffmarlError as error:
                notes.append(f"{run.id} does not play here: {error}")
                continue
            finally:
                progress(len(shown) + done + 1, total)
            taught = [k for k, (source, _) in enumerate(reports) if source.id == run.record["dataset"]["id"]]
            episodes += [(episode, taught[0] if taught else None) for episode in played]
    names = ", ".join(sorted({run.record["dataset"]["id"] for run in runs} or {one.id for one in datasets}))
    told = {section.dataset for section in sections}
    said = list(headline) + [f"{section.dataset}: {section.headline}" for section in sections]
    said += [_undecomposed(dataset) for dataset in shown if dataset.id not in told]
    if len(episodes) > EPISODES:
        notes.append(f"the first {EPISODES} of {len(episodes)} episodes are in the viewer")
    return PageContent(
        title=title or names or "offmarl",
        headline=said,
        tables=tables,
        scores=_scores(runs),
        curves=_curves(runs),
        credits=sections,
        episodes=[episode for episode, _ in episodes[:EPISODES]],
        credit_of=[credit for _, credit in episodes[:EPISODES]],
        notes=notes,
    )


def _undecomposed(dataset: Dataset) -> str:
    """What is said of data that nobody has taken apart yet."""
    mean = dataset.card.statistics["return"]["mean"]
    return (
        f"{dataset.id}: {dataset.card.episodes:,} episodes with a mean return of {mean:.4g}; who earned it, "
        f"offmarl decompose --dataset {dataset.id} finds out."
    )


def _datasets(runs: Sequence[RunFolder], datasets: Sequence[Dataset], notes: list[str]) -> list[Dataset]:
    """The datasets given and those that the runs were trained on, each once."""
    shown = {dataset.card.sha256: dataset for dataset in datasets}
    for source in {run.record["dataset"]["sha256"]: run.record["dataset"] for run in runs}.values():
        if source["sha256"] in shown:
            continue
        try:
            dataset = find_dataset(Path(source["path"]))
        except OffmarlError as error:
            notes.append(f"dataset {source['id']} cannot be shown: {error}")
            continue
        if dataset.card.sha256 == source["sha256"]:
            shown[source["sha256"]] = dataset
        else:
            notes.append(f"dataset {source['id']} is not the one that the runs were trained on any more")
    return list(shown.values())


def _reports(dataset: Dataset, runs: Sequence[RunFolder], notes: list[str]) -> list[CreditReport]:
    """The decompositions that the runs were taught with; of a dataset without runs the latest."""
    mine = [run for run in runs if run.record["dataset"]["sha256"] == dataset.card.sha256]
    wanted = list(dict.fromkeys(run.record["rewards"] for run in mine))
    wanted = [name for name in wanted if name not in BUILT_IN]
    if not wanted and credit_names(dataset):
        wanted = [latest_credit(dataset)]
    reports = []
    for name in wanted:
        try:
            reports.append(stored_report(dataset, name))
        except OffmarlError as error:
            notes.append(f"decomposition {name} of {dataset.id} cannot be shown: {error}")
    return reports


def _players(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """The runs whose policies play: the best of every learner, by their scores where they have some."""
    best: dict[str, RunFolder] = {}
    ranked = sorted(runs, key=lambda run: -(_evaluation(run) or {}).get("team_return", -np.inf))
    for run in ranked:
        if run.checkpoint_path.exists():
            best.setdefault(f"{run.record['dataset']['id']} {run.record['learner']}", run)
    return list(best.values())[:PLAYING_RUNS]


def _evaluation(run: RunFolder) -> dict[str, Any] | None:
    """What `offmarl evaluate` wrote of a run."""
    path = run.folder / SCORES
    return read_object(path, "run", "evaluation") if path.exists() else None


def run_names(runs: Sequence[RunFolder]) -> list[str]:
    """The runs as a person tells them apart: by learner and rewards, and by their id where that is not enough."""
    records = [run.record for run in runs]
    short = [
        record["learner"]
        + ("" if record["learner"] == IMITATION else f" on {short_rewards(record['rewards'])}")
        for record in records
    ]
    if len({record["dataset"]["id"] for record in records}) > 1:
        short = [f"{name}, {record['dataset']['id']}" for name, record in zip(short, records, strict=True)]
    unique = {name: short.count(name) == 1 for name in short}
    return [name if unique[name] else run.id for name, run in zip(short, runs, strict=True)]


def _scores(runs: Sequence[RunFolder]) -> Chart | None:
    """Scores of the runs that were evaluated, normalised where all are."""
    known = [
        (name, found) for name, run in zip(run_names(runs), runs, strict=True) if (found := _evaluation(run))
    ]
    if not known:
        return None
    normalised = all(found["normalised"] is not None for _, found in known)
    rows: list[tuple[str, float, float | None, float | None]] = []
    for name, found in known:
        low, high = found["interval"]["low"], found["interval"]["high"]
        value = found["interval"]["mean"]
        if normalised:
            value, (low, high) = found["normalised"], found["normalised_interval"] or (None, None)
        rows.append((name, value, low, high))
    logged = {found["behaviour_normalised" if normalised else "behaviour_return"] for _, found in known}
    behaviour = logged.pop() if len(logged) == 1 else None  # several datasets have several
    return bars_chart(rows, "normalised score" if normalised else "return, mean over agents", behaviour)


def _curves(runs: Sequence[RunFolder]) -> dict[str, Chart]:
    """Metrics over the updates: scores first, where training measured them, then what most runs have."""
    readings = {name: read_metrics(run.metrics_path) for name, run in zip(run_names(runs), runs, strict=True)}
    count: dict[str, int] = {}
    for lines in readings.values():
        for metric in dict.fromkeys(name for line in lines for name in line if name != "step"):
            count[metric] = count.get(metric, 0) + 1
    chosen = sorted(count, key=lambda metric: (metric not in ALONG_TRAINING, -count[metric]))[:MOST_METRICS]
    return {metric: curves_chart(readings, metric) for metric in chosen}


# -- from content to HTML ----------------------------------------------------------------------------------------


def render(content: PageContent) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["numeric"] = numeric_columns
    template = environment.from_string((TEMPLATES / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        content=content,
        created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        version=offmarl.__version__,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
        data=Markup(as_script(_data(content))),
    )


def numeric_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns of a table hold numbers only, and are set to the right."""
    return [
        all(not cell or cell[0] in "-0123456789" for cell in column) for column in zip(*rows, strict=True)
    ]


def as_script(value: Any) -> str:
    """JSON that may stand inside a `<script>`: nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _data(content: PageContent) -> dict[str, Any]:
    """What the script of the page draws."""
    charts: dict[str, Chart] = {} if content.scores is None else {"scores": content.scores}
    for index, section in enumerate(content.credits):
        for name, chart in (("mask", section.mask), ("recovered", section.recovered)):
            if chart is not None:
                charts[f"{name}-{index}"] = chart
    return {
        "charts": charts,
        "curves": content.curves,
        "colours": AGENT_COLOURS,
        "patterns": PATTERNS,
        "credits": [section.agents for section in content.credits],
        "episodes": [
            _episode(episode, credit)
            for episode, credit in zip(content.episodes, content.credit_of, strict=True)
        ],
    }


def _episode(episode: ShownEpisode, credit: int | None) -> dict[str, Any]:
    """An episode for the viewer: everything by agent or body first, then by time."""

    def by_agent(values: np.ndarray | None) -> list[Any] | None:
        return None if values is None else numbers(values.T, 4)

    scene = episode.scene
    world = None
    if scene is not None:
        bodies: Iterable[dict[str, Any]] = (
            {
                "name": written(body.name),
                "kind": body.kind,
                "radius": number(body.radius),
                "owner": body.owner,
            }
            for body in scene.bodies
        )
        world = {
            "bodies": list(bodies),
            "order": scene.order(),
            "limits": [number(limit) for limit in scene.limits],
            "x": numbers(scene.position[..., 0].T),
            "y": numbers(scene.position[..., 1].T),
        }
    return {
        "title": episode.title,
        "source": episode.source,
        "note": episode.note,
        "agents": list(episode.agents),
        "listed": _listed(episode),
        "labels": [written(agent) for agent in episode.agents],
        "credit": credit,
        "rewards": episode.reward_name,
        "team": numbers(episode.team_reward),
        "reward": by_agent(episode.reward),
        "std": by_agent(episode.std),
        "truth": by_agent(episode.truth if episode.reward_name != "true" else None),
        "world": world,
    }


def _listed(episode: ShownEpisode) -> list[int]:
    """The agents that have a bar: all, or those that were paid most, to the good or to the bad."""
    paid = np.abs(episode.reward).sum(0)
    most = np.argsort(-paid, kind="stable")[:MOST_LISTED]
    return sorted(int(agent) for agent in most)
