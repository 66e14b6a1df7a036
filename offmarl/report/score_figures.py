"""Figures of a study: intervals, performance profiles, probability of improvement, learning curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offmarl.evaluation.statistics import Estimate
from offmarl.report.run_scores import ALONG_TRAINING
from offmarl.report.study import Curve
from offmarl.report.style import BLACK, GREY, INK, colours_for, columns_for, paper, save
from offmarl.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (7, 3)))


@dataclass(frozen=True)
class _Look:
    colour: str
    dashes: Any


def draw_study(summary: Summary, folder: Path, file_format: str = "png") -> list[Path]:
    """Draw what there is to draw into `folder`; returns the files."""
    figures = {
        "intervals": (_intervals, bool(summary.lines)),
        "profile": (_profile, bool(summary.profiles)),
        "improvement": (_improvement, bool(summary.improvements)),
        "curves": (_curves, bool(summary.study.curves)),
    }
    paths = []
    for name, (draw, possible) in figures.items():
        if possible:
            with paper():
                figure = draw(summary)
            path = folder / f"{name}.{file_format}"
            save(figure, path)
            paths.append(path)
    return paths


def _draw_interval(axes: "Axes", estimate: Estimate, place: float, colour: str) -> None:
    """A pale bar from one end of the interval to the other, where there is one."""
    if estimate.low is not None and estimate.high is not None:
        axes.plot(
            [estimate.low, estimate.high],
            [place, place],
            color=colour,
            linewidth=4,
            alpha=0.45,
            solid_capstyle="butt",
        )


def _looks(summary: Summary) -> dict[str, _Look]:
    """A colour for the rewards, or for the learner where rewards do not differ; dashes for the rest."""
    methods: dict[str, tuple[str, str]] = {}
    rewards = {result.rewards for result in summary.study.results}
    for result in summary.study.results:
        by_rewards = len(rewards) > 1 and result.rewards is not None and result.method != result.learner
        kind = str(result.rewards) if by_rewards else result.learner
        methods[result.method] = kind, result.method.replace(kind, "")
    colours = colours_for(dict.fromkeys(kind for kind, _ in methods.values()))
    rest = list(dict.fromkeys(other for _, other in methods.values()))
    return {
        name: _Look(colours[kind], DASHES[rest.index(other) % len(DASHES)])
        for name, (kind, other) in methods.items()
    }


def _intervals(summary: Summary) -> Any:
    """The interquartile means with their intervals: over all tasks, or of each."""
    from matplotlib.figure import Figure

    looks, metric = _looks(summary), summary.study.metric
    panels = {
        task: [(line.result.method, line.iqm) for line in lines] for task, lines in summary.lines.items()
    }
    if len(summary.compared) > 1:
        overall = {f"over {len(summary.compared)} tasks": [(a.method, a.iqm) for a in summary.aggregates]}
        panels = overall | panels
    columns = columns_for(len(panels), (3, 2))
    rows = -(-len(panels) // columns)
    most = max(map(len, panels.values()))
    figure = Figure(figsize=(1.2 + 2.6 * columns, rows * (0.7 + 0.2 * most)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, bars) in zip(grid.flat, panels.items(), strict=False):
        for place, (method, iqm) in enumerate(reversed(bars)):
            _draw_interval(axes, iqm, place, looks[method].colour)
            axes.plot(iqm.value, place, "o", color=looks[method].colour, markersize=4)
        axes.set_yticks(range(len(bars)), [method for method, _ in reversed(bars)])
        axes.set_ylim(-0.6, len(bars) - 0.4)
        axes.set_title(title)
        axes.set_xlabel(f"{metric.title}, IQM with 95 % interval")
        axes.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.5)
    return figure


def _profile(summary: Summary) -> Any:
    """The share of runs above every score, with pointwise bands."""
    from matplotlib.figure import Figure

    looks = _looks(summary)
    figure = Figure(figsize=(4.6, 2.8), layout="constrained")
    axes = figure.subplots()
    for method, line in summary.profiles.items():
        low = [point.value if point.low is None else point.low for point in line]
        high = [point.value if point.high is None else point.high for point in line]
        colour = looks[method].colour
        axes.plot(
            summary.thresholds,
            [point.value for point in line],
            color=colour,
            linestyle=looks[method].dashes,
            drawstyle="steps-post",
            label=method,
        )
        axes.fill_between(summary.thresholds, low, high, step="post", color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel(f"{summary.study.metric.title} τ")
    axes.set_ylabel("share of seeds above τ")
    axes.set_ylim(-0.02, 1.02)
    _legend(figure, len(summary.profiles))
    return figure


def _improvement(summary: Summary) -> Any:
    """How probable it is that the winner scores better than each of the others."""
    from matplotlib.figure import Figure

    winner = summary.winner
    assert winner is not None, "draw_study sees to it"
    others = [aggregate.method for aggregate in summary.aggregates if aggregate.method != winner]
    looks = _looks(summary)
    figure = Figure(figsize=(4.6, 0.8 + 0.22 * len(others)), layout="constrained")
    axes = figure.subplots()
    for place, other in enumerate(reversed(others)):
        chance = summary.against(winner, other).probability
        _draw_interval(axes, chance, place, looks[other].colour)
        axes.plot(chance.value, place, "|", color=BLACK, markersize=9, markeredgewidth=1.5)
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(others)), list(reversed(others)))
    axes.set_ylim(-0.6, len(others) - 0.4)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"probability that {winner} scores {summary.study.metric.better}")
    return figure


def _curves(summary: Summary) -> Any:
    """A panel for every task and metric that was recorded along training, a band over the seeds."""
    from matplotlib.figure import Figure

    curves, looks = summary.study.curves, _looks(summary)
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    metrics = list(dict.fromkeys(curve.metric for curve in curves))
    wanted = (summary.study.metric.name, *ALONG_TRAINING)
    metrics = [name for name in wanted if name in metrics][:1] or metrics
    panels = {
        (task, metric): lines
        for task, metric in product(tasks, metrics)
        if (lines := [curve for curve in curves if (curve.task, curve.metric) == (task, metric)])
    }
    columns = columns_for(len(panels), (3, 2))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.0 + 2.3 * columns, 0.4 + 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, ((task, metric), lines) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, lines, looks)
        axes.set_title(task if len(tasks) > 1 else metric.replace("_", " "))
        axes.set_ylabel(metric.replace("_", " ") if len(tasks) > 1 else "")
        axes.set_xlabel("updates")
    _legend(figure, len(looks))
    return figure


def _panel(axes: "Axes", lines: Sequence[Curve], looks: dict[str, _Look]) -> None:
    for curve in lines:
        look = looks[curve.method]
        axes.plot(curve.steps, curve.mean, color=look.colour, linestyle=look.dashes, label=curve.method)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.steps, curve.low, curve.high, color=look.colour, alpha=0.15, linewidth=0)


def _legend(figure: Any, methods: int) -> None:
    """One legend beside the figure, each method once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if methods > 1:
        figure.legend(entries.values(), entries.keys(), loc="outside right upper")
