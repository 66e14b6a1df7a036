"""The mask of a decomposition as a heat map: whose reward depends on what, and how sure that is.

Shapes: N agents, V variables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from offmarl.credit.inputs import NOBODY, input_layout
from offmarl.credit.relabel import DOUBTFUL_EDGE, CreditReport
from offmarl.data.store import Dataset
from offmarl.report.style import BLACK, INK, VERMILION
from offmarl.report.tables import own_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL_VARIABLES = 40  # as many are shown whatever their probability
MOST_VARIABLES = 60  # more rows do not fit on a page
SHARED_LINE = (0, (1.5, 1.5))  # dotted: the outline of shared parents that are not kept


@dataclass(frozen=True)
class EdgeTable:
    """What the heat map shows, row by row: groups of variables with a value for every agent."""

    groups: list[tuple[str, list[str]]]  # title, names of its rows
    probability: np.ndarray  # [rows, N] of the edge; NaN where a row is not about that agent
    kept: np.ndarray  # [rows, N] bool
    shared: np.ndarray  # [rows, N] bool, shared parents that are not kept
    cause: np.ndarray | None  # [rows, N] bool, the true edges where they are known
    left_out: int  # variables that are not shown


def edge_table(dataset: Dataset, report: CreditReport) -> EdgeTable:
    """Choose and order the variables of a heat map: by owner, only the probable ones where there are many.

    Where even these do not fit on a page, all agents' own variables share rows, named as the agent itself
    would name them.
    """
    credit, spec = report.credit, dataset.spec
    assert credit.masks is not None
    names = credit.input_names
    owner = input_layout(spec, report.config.get("owner")).owner.numpy()  # [V]
    kept = credit.masks.numpy()  # [N, V]
    probability = kept.astype(float) if credit.edge_probability is None else credit.edge_probability.numpy()
    cause = None
    if spec.causes is not None:
        cause = np.array([[name in causes for name in names] for causes in spec.causes])  # [N, V]
    shared = np.zeros(len(names), bool) if credit.shared_parents is None else credit.shared_parents.numpy()
    shared = shared & ~kept  # [N, V]
    certain = kept | shared if cause is None else kept | shared | cause
    probable = certain | (probability >= DOUBTFUL_EDGE)
    rows: list[tuple[str, str, np.ndarray]] = []  # group, name, variable of each agent or -1
    chosen = np.flatnonzero(probable.any(0)) if len(names) > ALL_VARIABLES else np.arange(len(names))
    compact = len(chosen) > ALL_VARIABLES
    if compact:
        rows += _own_rows(names, owner, chosen, spec.agents)
    for index, agent in [*enumerate(spec.agents), (NOBODY, "nobody")]:
        for variable in chosen[owner[chosen] == index]:
            of_agent = np.full(len(spec.agents), variable)
            if compact and index != NOBODY:
                of_agent[index] = -1  # stands among its own
                if not probable[of_agent >= 0, variable].any():
                    continue
            rows.append((f"{agent}'s", own_name(names[variable], agent), of_agent))
    rows = _most_probable(rows, certain, probability)
    left_out = len(names) - len({int(k) for *_, of_agent in rows for k in of_agent if k >= 0})
    groups: list[tuple[str, list[str]]] = []
    for title, name, _ in rows:
        if not groups or groups[-1][0] != title:
            groups.append((title, []))
        groups[-1][1].append(name)
    variable = np.array([row for *_, row in rows]).reshape(len(rows), len(spec.agents))
    everyone = np.arange(len(spec.agents))
    absent = variable < 0
    return EdgeTable(
        groups=groups,
        probability=np.where(absent, np.nan, probability[everyone, variable]),
        kept=~absent & kept[everyone, variable],
        shared=~absent & shared[everyone, variable],
        cause=None if cause is None else ~absent & cause[everyone, variable],
        left_out=left_out,
    )


def _own_rows(
    names: Sequence[str], owner: np.ndarray, chosen: np.ndarray, agents: Sequence[str]
) -> list[tuple[str, str, np.ndarray]]:
    """One row for what several agents call by the same name, with the variable of each, if one is chosen."""
    by_name: dict[str, np.ndarray] = {}
    for variable in np.flatnonzero(owner != NOBODY):
        agent = int(owner[variable])
        row = by_name.setdefault(own_name(names[int(variable)], agents[agent]), np.full(len(agents), -1))
        row[agent] = variable
    return [("its own", name, row) for name, row in by_name.items() if np.isin(row, chosen).any()]


def _most_probable(
    rows: list[tuple[str, str, np.ndarray]], certain: np.ndarray, probability: np.ndarray
) -> list[tuple[str, str, np.ndarray]]:
    """As many rows as fit on a page, in their order: those with kept or true edges, then the most probable."""

    def weight(row: int) -> tuple[bool, float]:
        of_agent = rows[row][2]
        agent = np.flatnonzero(of_agent >= 0)
        return bool(certain[agent, of_agent[agent]].any()), float(probability[agent, of_agent[agent]].max())

    best = sorted(range(len(rows)), key=weight, reverse=True)[:MOST_VARIABLES]
    return [rows[row] for row in sorted(best)]


def mask_figure(edges: EdgeTable, agents: Sequence[str], fallback: bool = False) -> "Figure":
    """A heat map of edge probabilities: variables by owner, agents across. Kept edges outlined, true ones dotted."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

    rows, N = edges.probability.shape
    names = [name for _, group in edges.groups for name in group]
    longest = max((len(name) for name in names), default=0)
    cell = 0.17 if rows > 25 else 0.2
    column = max(0.34, 1.5 / N)  # inches
    figure = Figure(figsize=(1.6 + 0.055 * longest + column * N, 1.3 + cell * rows), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        edges.probability, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    for row, agent in np.argwhere(np.isnan(edges.probability)):
        axes.add_patch(Rectangle((agent - 0.5, row - 0.5), 1, 1, facecolor="#eeeeee", edgecolor="none"))
    outlines = [(edges.kept, "-"), (edges.shared, SHARED_LINE)]
    for marked, line in outlines:
        for row, agent in np.argwhere(marked):
            axes.add_patch(
                Rectangle(
                    (agent - 0.44, row - 0.42),
                    0.88,
                    0.84,
                    fill=False,
                    edgecolor=VERMILION,
                    linewidth=1.1,
                    linestyle=line,
                )
            )
    if edges.cause is not None:
        true_rows, true_agents = np.nonzero(edges.cause)
        axes.scatter(true_agents, true_rows, s=9, facecolor="white", edgecolor=BLACK, linewidth=0.6, zorder=3)
    axes.set_yticks(range(rows), names)
    rotated = max(map(len, agents)) * 0.06 > column
    axes.set_xticks(range(N), agents, rotation=90 if rotated else 0)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(True)
    axes.set_xticks(np.arange(N - 1) + 0.5, minor=True)
    axes.grid(which="minor", axis="x", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    first = 0
    for title, group in edges.groups:
        if first:
            axes.axhline(first - 0.5, color=INK, linewidth=0.8)
        axes.text(
            N - 0.4,
            first + (len(group) - 1) / 2,
            title,
            va="center",
            ha="left",
            color=INK,
            fontsize=7,
            style="italic",
        )
        first += len(group)
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=30, pad=0.02, shrink=0.9)
    bar.set_label("probability of the edge")
    bar.outline.set_linewidth(0.6)
    handles: list[Any] = [
        Patch(facecolor="none", edgecolor=VERMILION, label="kept (not used: R/N)" if fallback else "kept")
    ]
    if edges.shared.any():
        handles.append(
            Patch(facecolor="none", edgecolor=VERMILION, linestyle=SHARED_LINE, label="shared parent")
        )
    if edges.cause is not None:
        handles.append(
            Line2D(
                [],
                [],
                marker="o",
                linestyle="",
                markersize=3.5,
                markerfacecolor="white",
                markeredgecolor=BLACK,
                markeredgewidth=0.6,
                label="true cause",
            )
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=1.2)
    return figure
