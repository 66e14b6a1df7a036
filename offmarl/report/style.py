"""One look for all figures: colours that colour-blind readers and printers tell apart, fonts, saving."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offmarl.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")

# Okabe and Ito's palette ("Color universal design", 2008).
BLACK, GREY = "#000000", "#999999"
SKY, BLUE, GREEN = "#56B4E9", "#0072B2", "#009E73"
ORANGE, VERMILION, PINK, YELLOW = "#E69F00", "#D55E00", "#CC79A7", "#F0E442"
INK = "#333333"  # axes, references

COLOURS = {"team": GREY, "mean": SKY, "macca": VERMILION, "true": GREEN}
OTHER_COLOURS = (BLUE, PINK, ORANGE, BLACK, YELLOW)
MARKERS = "osD^vPX<>"


def colours_for(names: Iterable[str]) -> dict[str, str]:
    """A colour for every reward or method, the same in every figure for those with a colour of their own."""
    given, others = {}, 0
    for name in names:
        if name in COLOURS:
            given[name] = COLOURS[name]
        else:
            given[name] = OTHER_COLOURS[others % len(OTHER_COLOURS)]
            others += 1
    return given


def columns_for(panels: int, offered: Sequence[int]) -> int:
    """The number of columns that leaves the fewest places empty, the first of equals."""
    return min(panels, min(offered, key=lambda columns: -panels % min(columns, panels)))


@contextmanager
def paper() -> Iterator[None]:
    """Sizes that stay readable in a column of a paper, text that stays text in a PDF, the same file each time."""
    import matplotlib

    look: dict[Any, Any] = {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "lines.linewidth": 1.2,
        "pdf.fonttype": 42,  # what journals ask for
        "svg.hashsalt": "offmarl",
    }
    with matplotlib.rc_context(look):
        yield


def save(figure: "Figure", path: Path) -> None:
    """Write a figure atomically; the format follows the suffix of `path`."""
    dated = {".pdf": "CreationDate", ".svg": "Date"}.get(path.suffix)
    with replacing(path) as temporary, paper():
        figure.savefig(
            temporary,
            dpi=200,
            bbox_inches="tight",
            pad_inches=0.03,
            metadata={dated: None} if dated else None,
        )
