"""The cross tables of a tournament as a figure: who against whom, a panel for every number of agents."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from offmarl.report.style import BLACK, BLUE, GREY, ORANGE, paper, save
from offmarl.report.tournament import TournamentReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

CELL = 0.52  # inches
DARK = 0.45  # lightness below which numbers are white
PALE = "#e9ecef"  # where nobody met


def draw_tournament(report: TournamentReport, path: Path) -> None:
    """Draw what each row achieves against each column, with the number in the cell.

    In a battle orange loses, white is even and blue wins; in a pursuit the darker the more the predators earn. The
    format follows the suffix of `path`.
    """
    from matplotlib.figure import Figure

    names, sizes = report.names, report.sizes
    values = np.array(
        [[[_number(report.value(row, column, size)) for column in names] for row in names] for size in sizes]
    )  # [sizes, rows, columns]
    labels = [report.labels[name] for name in names]
    longest = max(map(len, labels))
    side = CELL * len(names)
    with paper():
        figure = Figure(
            figsize=(0.07 * longest + 0.4 + (side + 0.25) * len(sizes), side + 0.06 * longest + 0.7),
            layout="constrained",
        )
        panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
        colours = _colours(report.battle)
        low, high = (0.0, 1.0) if report.battle else _limits(values)
        for axes, size, table in zip(panels, sizes, values, strict=True):
            image = axes.imshow(table, cmap=colours, vmin=low, vmax=high)
            _write_numbers(axes, table, image.to_rgba(table), 2 if report.battle else 3)
            axes.set_title(f"{size} {'a side' if report.battle else 'predators'}")
            axes.set_xticks(range(len(names)), labels, rotation=40, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(names)), labels)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel("points of" if report.battle else "predators")
        figure.supxlabel("against" if report.battle else "prey", fontsize=8)
    save(figure, path)


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return min(low, 0.0), max(high, low + 1e-6)


def _colours(diverging: bool) -> "Colormap":
    from matplotlib.colors import LinearSegmentedColormap

    steps = [ORANGE, "#ffffff", BLUE] if diverging else ["#ffffff", BLUE]
    return LinearSegmentedColormap.from_list("tournament", steps).with_extremes(bad=PALE)


def _write_numbers(axes: "Axes", table: np.ndarray, colours: np.ndarray, digits: int) -> None:
    """The numbers of a panel, in what can be read on the cells' `colours` [rows, columns, 4]."""
    for (row, column), value in np.ndenumerate(table):
        if np.isnan(value):
            axes.text(column, row, "–", ha="center", va="center", color=GREY, fontsize=7)
            continue
        lightness = float(colours[row, column, :3] @ np.array([0.2126, 0.7152, 0.0722]))
        ink = "#ffffff" if lightness < DARK else BLACK
        axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=ink, fontsize=7)
