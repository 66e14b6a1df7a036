"""Charts of the page, as Plotly describes them: traces and a layout, without colours of the page itself.

The page adds background, ink and grid, which differ in dark and light. Shapes: H transitions, N agents, S seeds.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offmarl.report.mask_figure import EdgeTable
from offmarl.report.style import BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION, YELLOW

Chart = dict[str, Any]
"""`data` (traces), `layout` and `height` in pixels; `label` says it in words for those who do not see it."""

AGENT_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PINK, GREY, YELLOW)  # readable on white and on black
PATTERNS = ("", "/", "x", ".")  # of the second, third and fourth eight agents
MOST_POINTS = 2_400  # of a scatter plot
MOST_AGENTS = 24  # with points of their own
MOST_READINGS = 150  # of a curve
DASHES = ("solid", "dash", "dot", "dashdot")
KEPT_TRUE, KEPT_WRONG, MISSED, SHARED = "●", "✕", "○", "◐"


def written(text: str) -> str:
    """A name as Plotly must get it: it reads a little HTML in texts."""
    return html.escape(text, quote=False)


def number(value: float, digits: int = 4) -> float | None:
    """A number for JSON: so many significant digits, None for what is not finite."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


def numbers(values: np.ndarray, digits: int = 4) -> list[Any]:
    """`number` of a whole array, nested as it is."""
    if values.ndim == 0:
        return number(float(values), digits)  # type: ignore[return-value]
    return [numbers(value, digits) if values.ndim > 1 else number(float(value), digits) for value in values]


def bars_chart(
    rows: Sequence[tuple[str, float, float | None, float | None]], what: str, behaviour: float | None = None
) -> Chart:
    """A dot a run with its interval, best on top: (name, value, low, high); a line at what the logged team earned."""
    ordered = sorted(rows, key=lambda row: row[1])
    errors: dict[str, Any] = {
        "type": "data",
        "symmetric": False,
        "array": [0 if high is None else number(high - value) for _, value, _, high in ordered],
        "arrayminus": [0 if low is None else number(value - low) for _, value, low, _ in ordered],
        "thickness": 2,
        "width": 5,
    }
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [number(value) for _, value, _, _ in ordered],
        "y": [written(name) for name, *_ in ordered],
        "error_x": errors,
        "marker": {"size": 10, "color": BLUE},
        "hovertemplate": "%{y}: %{x}<extra></extra>",
    }
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": what}, "zeroline": True},
        "yaxis": {"automargin": True, "type": "category"},
        "showlegend": False,
    }
    if behaviour is not None:
        line = {"color": GREY, "width": 2, "dash": "dash"}
        at = {"x0": number(behaviour), "x1": number(behaviour), "y0": 0, "y1": 1, "yref": "paper"}
        layout["shapes"] = [{"type": "line", **at, "line": line}]
        layout["annotations"] = [
            {"x": number(behaviour), "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
            | {"text": "the logged team itself"}
        ]
        layout["margin"] = {"l": 56, "r": 12, "t": 26, "b": 44}
    best = ordered[-1]
    label = (
        f"{what} of {len(rows)} runs with their 95 % intervals; the highest is {best[0]} with {best[1]:.1f}"
    )
    return {"data": [trace], "layout": layout, "height": 110 + 26 * len(rows), "label": label}


def curves_chart(curves: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> Chart:
    """One metric over the updates: mean over the seeds of every run, between the lowest and the highest seed."""
    traces: list[dict[str, Any]] = []
    for index, (run, lines) in enumerate(curves.items()):
        kept = [line for line in lines if metric in line]
        if not kept:
            continue
        kept = kept[:: max(1, len(kept) // MOST_READINGS)]
        step = [line["step"] for line in kept]
        seeds = np.array([line[metric]["seeds"] for line in kept], float)  # [readings, S]
        colour = AGENT_COLOURS[index % len(AGENT_COLOURS)]
        group = {"legendgroup": run, "x": step, "type": "scatter", "mode": "lines"}
        if seeds.shape[1] > 1:
            edge = {**group, "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            traces.append({**edge, "y": numbers(seeds.min(1))})
            traces.append(
                {**edge, "y": numbers(seeds.max(1)), "fill": "tonexty", "fillcolor": _faint(colour)}
            )
        dash = DASHES[index // len(AGENT_COLOURS) % len(DASHES)]
        line = {"color": colour, "width": 2, "dash": dash}
        traces.append({**group, "y": numbers(seeds.mean(1)), "name": written(run), "line": line})
    layout = {
        "xaxis": {"title": {"text": "updates"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": written(metric)}},
        "legend": {"orientation": "h", "y": -0.25, "yanchor": "top"},
        "hovermode": "x unified" if len(curves) <= 8 else "closest",
    }
    label = f"{metric} of {len(curves)} runs over the updates"
    return {"data": traces, "layout": layout, "height": 340 + 18 * (len(curves) // 2), "label": label}


def mask_chart(edges: EdgeTable, agents: Sequence[str]) -> Chart:
    """A heat map of edge probabilities: variables below one another by owner, agents across."""
    names = [
        f"{title} {name}" if title != "nobody's" else name for title, group in edges.groups for name in group
    ]
    marks = np.full(edges.kept.shape, "", dtype=object)
    marks[edges.shared] = SHARED
    marks[edges.kept] = KEPT_TRUE
    if edges.cause is not None:
        marks[edges.kept & ~edges.cause] = KEPT_WRONG
        marks[~edges.kept & ~edges.shared & edges.cause] = MISSED
    trace = {
        "type": "heatmap",
        "x": [written(agent) for agent in agents],
        "y": [written(name) for name in names],
        "z": numbers(edges.probability, 3),
        "text": marks.tolist(),
        "texttemplate": "%{text}",
        "zmin": 0,
        "zmax": 1,
        "xgap": 2,
        "ygap": 1,
        "hovertemplate": "the reward of %{x} depends on %{y}:<br>probability %{z} %{text}<extra></extra>",
        "colorbar": {
            "title": {"text": "probability of the edge", "side": "top"},
            "orientation": "h",
            "thickness": 10,
            "len": 0.9,
            "y": 0,
            "yanchor": "top",
        },
    }
    layout = {
        "xaxis": {"side": "top", "showgrid": False, "type": "category", "automargin": True},
        "yaxis": {"autorange": "reversed", "showgrid": False, "type": "category", "automargin": True},
        "shapes": _rules(edges),
    }
    kept = int(edges.kept.sum())
    label = (
        f"probability that the reward of each of {len(agents)} agents depends on each of {len(names)} "
        f"variables; {kept} edges were kept"
    )
    return {"data": [trace], "layout": layout, "height": 160 + 19 * len(names), "label": label, "heat": True}


def _rules(edges: EdgeTable) -> list[dict[str, Any]]:
    """A line between the variables of different owners."""
    shapes, first = [], 0
    for _, group in edges.groups[:-1]:
        first += len(group)
        at = {"y0": first - 0.5, "y1": first - 0.5, "x0": 0, "x1": 1, "xref": "paper"}
        shapes.append({"type": "line", **at, "line": {"width": 1, "color": GREY}})
    return shapes


def recovered_chart(recovered: np.ndarray, truth: np.ndarray, agents: Sequence[str]) -> Chart:
    """Recovered against true reward, [H, N] each, a colour an agent (the first 24).

    Centred, as constants are not identifiable.
    """
    estimate, r = ((rewards - rewards.mean(0))[:, :MOST_AGENTS] for rewards in (recovered, truth))
    agents = agents[:MOST_AGENTS]
    rows = np.arange(0, len(r), max(1, -(-len(r) * len(agents) // MOST_POINTS)))
    low, high = float(min(estimate.min(), r.min())), float(max(estimate.max(), r.max()))
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [number(low), number(high)],
            "y": [number(low), number(high)],
            "line": {"dash": "dash", "width": 1, "color": GREY},
            "hoverinfo": "skip",
            "name": "exact",
        }
    ]
    for index, agent in enumerate(agents):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{index + 1} {written(agent)}",
                "x": numbers(r[rows, index], 3),
                "y": numbers(estimate[rows, index], 3),
                "marker": {"size": 5, "opacity": 0.6, "color": AGENT_COLOURS[index % len(AGENT_COLOURS)]},
                "hovertemplate": "true %{x}, recovered %{y}<extra>%{fullData.name}</extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": "true reward, above its mean"}},
        "yaxis": {"title": {"text": "recovered reward, above its mean"}},
        "legend": {"orientation": "h", "y": -0.22, "yanchor": "top"},
    }
    label = f"recovered against true reward of {len(agents)} agents on {len(r):,} transitions"
    return {"data": traces, "layout": layout, "height": 400 + 18 * (len(agents) // 3), "label": label}


def _faint(colour: str) -> str:
    """The colour of a band behind a line of `colour`."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"
