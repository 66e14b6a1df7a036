"""Figures of a decomposition: what was found, how it compares with the truth, how it looks in one episode.

Each `*_figure` builds a matplotlib figure from arrays; each `draw_*` writes one to a file. Nothing touches a display.
Shapes: N agents, H transitions, T steps of an episode, R dataset rows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from offmarl.credit.relabel import CreditReport, rewards_for
from offmarl.credit.samples import varies
from offmarl.data.store import Dataset
from offmarl.data.table import rows_with_successor
from offmarl.errors import UsageError
from offmarl.evaluation.statistics import bootstrap_interval
from offmarl.report.mask_figure import edge_table, mask_figure
from offmarl.report.style import (
    BLACK,
    BLUE,
    GREY,
    INK,
    MARKERS,
    VERMILION,
    colours_for,
    columns_for,
    paper,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 24  # agents with a panel of their own
MANY_POINTS = 1_500  # from here on density says more than points
LOWEST_SKILL = -1.0  # worse is drawn as an arrow at the bottom


@dataclass
class Drawn:
    """The files that were written, and in words what was not drawn or how it is to be read."""

    paths: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def draw_credit(
    dataset: Dataset, report: CreditReport, folder: Path, file_format: str = "png", episode: int | None = None
) -> Drawn:
    """Draw the mask, recovered against true rewards, and one episode into `folder`.

    `episode` is by default a typical one that was held out of the fit. Raises `UsageError` for an episode that
    does not exist.
    """
    drawn, credit, agents = Drawn(), report.credit, dataset.spec.agents
    stem = report.path.stem
    chosen = typical_episode(dataset, report) if episode is None else _checked_episode(dataset, episode)
    with paper():
        if credit.masks is None:
            drawn.notes.append(f"no mask: the method '{report.method}' does not look for causes")
        else:
            edges = edge_table(dataset, report)
            if edges.groups:
                _add(
                    drawn, mask_figure(edges, agents, credit.fallback), folder / f"{stem}-mask.{file_format}"
                )
            if edges.left_out:
                drawn.notes.append(f"mask: {edges.left_out} variables of low probability are left out")
        if "agent_reward" not in dataset.card.arrays:
            drawn.notes.append(
                "no figure of recovered against true rewards: this dataset does not know the true ones"
            )
        else:
            rows = (
                rows_with_successor(dataset.episode_start)
                if credit.heldout_rows is None
                else credit.heldout_rows
            )
            truth = rewards_for(dataset, "true")[rows].numpy()
            figure = recovered_figure(credit.reward[rows].numpy(), truth, agents)
            _add(drawn, figure, folder / f"{stem}-recovered.{file_format}")
        figure = episode_figure(episode_rewards(dataset, report, chosen), agents)
        _add(drawn, figure, folder / f"{stem}-episode-{chosen}.{file_format}")
    if len(agents) > MOST_PANELS:
        drawn.notes.append(f"the first {MOST_PANELS} of {len(agents)} agents have a panel")
    return drawn


def _add(drawn: Drawn, figure: "Figure", path: Path) -> None:
    save(figure, path)
    drawn.paths.append(path)


# -- recovered against true ------------------------------------------------------------------------------------


def recovered_figure(recovered: np.ndarray, truth: np.ndarray, agents: Sequence[str]) -> "Figure":
    """Recovered against true reward, [H, N] each, a panel an agent; centred, as constants are not identifiable."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    shown = min(len(agents), MOST_PANELS)
    estimate = recovered - recovered.mean(0)
    r = truth - truth.mean(0)
    vary = varies(torch.from_numpy(recovered)) & varies(torch.from_numpy(truth))  # [N]
    columns = columns_for(shown, (4, 3, 5))
    lines = math.ceil(shown / columns)
    figure = Figure(figsize=(1.3 + 1.55 * columns, 0.55 + 1.85 * lines), layout="compressed")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    both = np.concatenate([estimate[:, :shown], r[:, :shown]])
    low, high = float(both.min()), float(both.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    clouds = []
    for index, axes in enumerate(panels.flat):
        if index >= shown:
            axes.set_visible(False)
            continue
        axes.tick_params(labelbottom=index + columns >= shown)
        axes.plot(limits, limits, color=INK, linewidth=0.7, linestyle="--", zorder=3)
        clouds.append(_cloud(axes, r[:, index], estimate[:, index], limits))
        pearson = f"{np.corrcoef(r[:, index], estimate[:, index])[0, 1]:.3f}" if vary[index] else "undefined"
        axes.set_title(f"{agents[index]}   r = {pearson}")
        axes.set_xlim(limits)
        axes.set_ylim(limits)
        axes.set_aspect("equal")
    if len(r) >= MANY_POINTS:
        norm = LogNorm(1, max(cloud.get_array().max() for cloud in clouds))
        for cloud in clouds:
            cloud.set_norm(norm)
        bar = figure.colorbar(clouds[0], ax=panels, aspect=25, pad=0.01, shrink=0.9)
        bar.set_label("transitions in a cell")
        bar.outline.set_linewidth(0.6)
    figure.supxlabel("true reward, above its mean", fontsize=8)
    figure.supylabel("recovered reward, above its mean", fontsize=8)
    return figure


def _cloud(axes: "Axes", x: np.ndarray, y: np.ndarray, limits: tuple[float, float]) -> Any:
    if len(x) < MANY_POINTS:
        return axes.scatter(x, y, s=5, color=BLUE, alpha=0.4, linewidth=0, rasterized=True)
    extent = (*limits, *limits)
    return axes.hexbin(x, y, gridsize=45, cmap="viridis_r", mincnt=1, extent=extent, linewidths=0.1)


# -- one episode -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpisodeRewards:
    """Rewards of one episode, each above its mean over the dataset."""

    number: int
    heldout: bool
    team_reward: np.ndarray  # [T]
    recovered: np.ndarray  # [T, N]
    std: np.ndarray | None  # [T, N]
    truth: np.ndarray | None  # [T, N]


def typical_episode(dataset: Dataset, report: CreditReport) -> int:
    """The held-out episode whose team reward varies as the median one's does, of those where it varies at all."""
    start = dataset.episode_start
    candidates = np.arange(len(start) - 1)
    if report.credit.heldout_rows is not None:
        rows = report.credit.heldout_rows
        candidates = np.unique(np.searchsorted(start.numpy(), rows.numpy(), side="right") - 1)
    team_reward = dataset.read("team_reward").double().numpy()
    spread = np.array([team_reward[start[k] : start[k + 1] - 1].std() for k in candidates])
    varying = np.flatnonzero(spread > 0)
    if not len(varying):
        return int(candidates[0])
    order = varying[np.argsort(spread[varying], kind="stable")]
    return int(candidates[order[len(order) // 2]])


def _checked_episode(dataset: Dataset, episode: int) -> int:
    if not 0 <= episode < dataset.card.episodes:
        raise UsageError(
            f"--episode {episode}: {dataset.id} has the episodes 0 to {dataset.card.episodes - 1}"
        )
    return episode


def episode_rewards(dataset: Dataset, report: CreditReport, episode: int) -> EpisodeRewards:
    """What everybody was paid in an episode, and what the team got."""
    first, last = int(dataset.episode_start[episode]), int(dataset.episode_start[episode + 1]) - 1
    rows, all_rows, credit = slice(first, last), rows_with_successor(dataset.episode_start), report.credit
    team_reward = dataset.read("team_reward").double()

    def above_mean(reward: Any) -> np.ndarray:
        values: np.ndarray = (reward.double()[rows] - reward.double()[all_rows].mean(0)).numpy()
        return values

    known = "agent_reward" in dataset.card.arrays
    heldout = credit.heldout_rows is not None and bool((credit.heldout_rows == first).any())
    return EpisodeRewards(
        number=episode,
        heldout=heldout,
        team_reward=above_mean(team_reward),
        recovered=above_mean(credit.reward),
        std=None if credit.std is None else credit.std[rows].double().numpy(),
        truth=above_mean(rewards_for(dataset, "true")) if known else None,
    )


def episode_figure(rewards: EpisodeRewards, agents: Sequence[str]) -> "Figure":
    """The team's reward over an episode, and below it each agent's with its spread and the truth where known."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = min(len(agents), MOST_PANELS)
    columns = 1 if shown <= 4 else columns_for(shown, (2,) if shown <= 10 else (3, 4, 2))
    lines = math.ceil(shown / columns)
    width = {1: 4.6, 2: 6.8, 3: 8.4, 4: 9.6}[columns]
    figure = Figure(figsize=(width, 1.75 + 0.85 * lines), layout="constrained")
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=[1.3] + [1] * lines)
    step = np.arange(len(rewards.team_reward))
    top = figure.add_subplot(grid[0, :])
    top.plot(step, rewards.team_reward, color=BLACK)
    top.set_ylabel("team")
    told = f"episode {rewards.number}" + (", held out of the fit" if rewards.heldout else "")
    top.set_title(f"{told}; rewards above their mean over the data")
    share = rewards.team_reward / len(agents)
    first: Axes | None = None
    for index in range(shown):
        axes = figure.add_subplot(grid[1 + index // columns, index % columns], sharex=top, sharey=first)
        first = first or axes
        axes.plot(step, share, color=GREY, linewidth=0.8, linestyle=":", label="R/N")
        mean = rewards.recovered[:, index]
        if rewards.std is not None:
            low, high = mean - rewards.std[:, index], mean + rewards.std[:, index]
            axes.fill_between(
                step, low, high, color=VERMILION, alpha=0.25, linewidth=0, label="± sd of the refits"
            )
        axes.plot(step, mean, color=VERMILION, label="recovered")
        if rewards.truth is not None:
            axes.plot(step, rewards.truth[:, index], color=BLACK, linestyle="--", linewidth=0.9, label="true")
        axes.set_ylabel(agents[index])
        lowest = index + columns >= shown
        axes.tick_params(labelbottom=lowest, labelleft=index % columns == 0)
        if lowest:
            axes.set_xlabel("step")
    for axes in figure.axes:
        axes.axhline(0, color="#cccccc", linewidth=0.5, zorder=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    top.tick_params(labelbottom=columns > 1)
    figure.align_ylabels()
    assert first is not None
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


# -- skill against the number of transitions -------------------------------------------------------------------


def draw_skill_curve(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw skill against the number of transitions, a panel a case and a line a method, as `path`'s suffix says.

    Each row has `method`, `case`, `transitions`, `seed` and `skill` (None: undefined, left out). Lines are
    means over seeds with their 95 % bootstrap interval; skill below -1 is an arrow at the bottom. Raises
    `UsageError` where no row has a skill.
    """
    with paper():
        save(skill_figure(rows), path)


def skill_figure(rows: Iterable[Mapping[str, Any]]) -> "Figure":
    """The figure of `draw_skill_curve`."""
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

    measured = [row for row in rows if row["skill"] is not None and math.isfinite(row["skill"])]
    if not measured:
        raise UsageError("no skill to draw: no row has one")
    cases = list(dict.fromkeys(row["case"] for row in measured))
    methods = list(dict.fromkeys(row["method"] for row in measured))
    colours = colours_for(methods)
    columns = columns_for(len(cases), (4, 3))
    lines = math.ceil(len(cases) / columns)
    width = max(0.5 + 1.9 * columns, 3.4)  # inches, at least a column of a paper
    entries_a_line = int(width / 1.1)
    legend_lines = math.ceil(len(methods) / entries_a_line)
    height = 0.4 + 0.2 * legend_lines + max(1.7 * lines, 2.0)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    lowest = max(min(row["skill"] for row in measured), LOWEST_SKILL)
    bottom = min(lowest - 0.08 * (1 - lowest), -0.08)
    sizes = sorted({row["transitions"] for row in measured})
    for index, axes in enumerate(panels.flat):
        if index >= len(cases):
            axes.set_visible(False)
            continue
        if index + columns >= len(cases):  # nothing below
            axes.set_xlabel("transitions")
            axes.tick_params(labelbottom=True)
        if index % columns == 0:
            axes.set_ylabel("skill (0: R/N, 1: truth)")
        axes.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
        for number, method in enumerate(methods):
            of_this = [row for row in measured if (row["case"], row["method"]) == (cases[index], method)]
            if of_this:
                _skill_line(axes, of_this, method, colours[method], MARKERS[number % len(MARKERS)], bottom)
        axes.set_title(str(cases[index]))
        axes.set_xscale("log")
        axes.set_xticks(sizes, [_thousands(size) for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom, 1.05)
    entries: dict[Any, Artist] = {}
    for axes in panels.flat:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        [entries[method] for method in methods],
        methods,
        loc="outside lower center",
        ncols=min(len(methods), entries_a_line),
    )
    return figure


def _skill_line(
    axes: "Axes", rows: Sequence[Mapping[str, Any]], method: str, colour: str, marker: str, bottom: float
) -> None:
    """One method's means with intervals over seeds; a mean below the axis becomes an arrow."""
    from matplotlib.markers import CARETDOWN

    sizes = sorted({row["transitions"] for row in rows})
    intervals = [
        bootstrap_interval([row["skill"] for row in rows if row["transitions"] == size], "seeds")
        for size in sizes
    ]
    means = np.array([interval.mean for interval in intervals])
    low = np.array([interval.mean if interval.low is None else interval.low for interval in intervals])
    high = np.array([interval.mean if interval.high is None else interval.high for interval in intervals])
    axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(sizes, means, color=colour, marker=marker, markersize=3.5, label=method)
    below = [size for size, mean in zip(sizes, means, strict=True) if mean < bottom]
    if below:
        axes.plot(
            below,
            [bottom] * len(below),
            color=colour,
            marker=CARETDOWN,
            markersize=6,
            linestyle="",
            clip_on=False,
            zorder=4,
        )


def _thousands(count: int) -> str:
    return (
        f"{count / 1e6:g}M" if count >= 1_000_000 else f"{count / 1e3:g}k" if count >= 1_000 else str(count)
    )
