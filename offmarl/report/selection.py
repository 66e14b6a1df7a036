"""Choosing a policy by estimates from the data: ranks, and how well they agree with true returns."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from offmarl.evaluation.ope.ranking import Accuracy, Candidate, accuracies
from offmarl.evaluation.statistics import estimate_text, fixed
from offmarl.report.style import BLUE, GREY, columns_for, paper, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KNOWS_NOTHING = "behaviour"  # gives every policy the same
NOTHING = "-"
ACCURACY_COLUMNS = ["data", "estimator", "policies", "rank correlation", "regret@1", "off by"]
ACCURACY_NOTE = (
    "rank correlation: Spearman's, of estimated and true returns [95 % bootstrap interval over policies]; regret@1: "
    "what is lost by taking the policy that looks best, 0 = the best of them, 1 = the worst (behaviour: one at "
    "random); off by: mean absolute difference to the true return"
)


@dataclass(frozen=True)
class Selection:
    """Candidates on one or several datasets, and what the estimators say of them."""

    title: str
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()

    @property
    def estimators(self) -> list[str]:
        """All that were asked of any candidate, as they come."""
        return list(dict.fromkeys(name for one in self.candidates for name in one.estimates))

    @property
    def by(self) -> str:
        """The estimator that ranks: the first one."""
        return self.estimators[0]

    @property
    def data(self) -> list[str]:
        """The datasets, as they come."""
        return list(dict.fromkeys(one.data for one in self.candidates))

    def accuracies(self) -> list[Accuracy]:
        """How well each estimator ranked, where true returns are known."""
        return accuracies(self.candidates, self.estimators)

    def ranked(self, data: str) -> list[Candidate]:
        """The candidates on one dataset, the best-looking one first; those that cannot be judged last."""

        def key(one: Candidate) -> float:
            value = one.estimates.get(self.by)
            return float("inf") if value is None else -value

        return sorted((one for one in self.candidates if one.data == data), key=key)

    def digits(self, data: str) -> int:
        """How many decimals returns on a dataset need: 1, or 3 where none reaches ten."""
        known = [
            abs(value)
            for one in self.candidates
            if one.data == data
            for value in (one.true_return, *one.estimates.values())
            if value is not None
        ]
        return 1 if max(known, default=0.0) >= 10 else 3

    def columns(self) -> list[str]:
        """Header of the table of candidates."""
        return ["", "policy", *self.estimators, "true return"]

    def rows(self, data: str) -> list[list[str]]:
        """A line a candidate, with its rank."""
        return [
            [
                str(rank),
                one.name,
                *(_number(one.estimates.get(name), self.digits(data)) for name in self.estimators),
                _number(one.true_return, self.digits(data)),
            ]
            for rank, one in enumerate(self.ranked(data), 1)
        ]

    def headlines(self) -> list[str]:
        """Which policy to take on each dataset, and how far that judgement could be checked."""
        found = {(one.data, one.estimator): one for one in self.accuracies()}
        sentences = []
        for data in self.data:
            first = self.ranked(data)[0]
            value = first.estimates.get(self.by)
            if value is None:
                sentences.append(f"{data}: {self.by} cannot judge any of the policies")
                continue
            sentence = (
                f"{data}: by {self.by} take {first.name}, estimated return {fixed(value, self.digits(data))}"
            )
            checked = found.get((data, self.by))
            if checked is not None:
                sentence += (
                    f"; true return {_number(first.true_return, self.digits(data))}, the best is {checked.best} "
                    f"(regret {fixed(checked.regret, 2)})"
                )
            sentences.append(sentence)
        return sentences

    def accuracy_rows(self) -> list[list[str]]:
        """A line for each dataset and estimator and, of several datasets, their means."""
        found = self.accuracies()
        rows = [
            [
                one.data,
                one.estimator,
                f"{one.answered} of {one.candidates}" if one.answered < one.candidates else str(one.answered),
                NOTHING if one.spearman is None else estimate_text(one.spearman, one.low, one.high, 2),
                fixed(one.regret, 2),
                fixed(one.error, self.digits(one.data)),
            ]
            for one in found
        ]
        if len({one.data for one in found}) > 1:
            for name in self.estimators:
                own = [one for one in found if one.estimator == name]
                known = [one.spearman for one in own if one.spearman is not None]
                if own:
                    mean = NOTHING if not known else fixed(fmean(known), 2)
                    regret = fixed(fmean(one.regret for one in own), 2)
                    rows.append([f"mean of {len(own)}", name, "", mean, regret, NOTHING])
        return rows

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "title": self.title,
            "by": self.by,
            "ranking": {data: [asdict(one) for one in self.ranked(data)] for data in self.data},
            "accuracy": [one.to_json() for one in self.accuracies()],
            "notes": list(self.notes),
        }

    def markdown(self, command: str, figure: str | None = None) -> str:
        """All tables as a page; `figure` is the path of the scatter plot, as the page should name it."""
        parts = [f"# {self.title}", *self.notes, f"Written by `{command}`."]
        checked = self.accuracy_rows()
        if checked:
            parts += [
                "## How well the estimates ranked",
                ACCURACY_NOTE + ".",
                _table(ACCURACY_COLUMNS, checked),
            ]
        if figure is not None:
            parts.append(f"![Estimated against true returns]({figure})")
        parts.append("## The policies")
        for data in self.data:
            parts += [f"### {data}", _table(self.columns(), self.rows(data))]
        return "\n\n".join(parts) + "\n"


def draw_selection(selection: Selection, path: Path) -> None:
    """Draw true against estimated returns: a row of panels for each dataset, a column for each estimator."""
    with paper():
        from matplotlib.figure import Figure

        names = [name for name in selection.estimators if name != KNOWS_NOTHING]
        shown = [
            (data, name, points)
            for data in selection.data
            for name in names
            if (points := _points(selection.candidates, data, name))
        ]
        columns = columns_for(len(shown), (2, 3)) if shown else 1
        rows = max(1, -(-len(shown) // columns))
        figure = Figure(figsize=(2.3 * columns, 2.2 * rows), layout="constrained")
        found = {(one.data, one.estimator): one for one in selection.accuracies()}
        for place, (data, name, points) in enumerate(shown):
            axes = figure.add_subplot(rows, columns, place + 1)
            _scatter(axes, points)
            accuracy = found.get((data, name))
            ranked = "" if accuracy is None or accuracy.spearman is None else f", ρ {accuracy.spearman:.2f}"
            axes.set_title(f"{data}\n{name}{ranked}")
        figure.supxlabel("estimated return", size=8)
        figure.supylabel("true return", size=8)
        save(figure, path)


def _points(candidates: Sequence[Candidate], data: str, name: str) -> list[tuple[float, float]]:
    return [
        (value, one.true_return)
        for one in candidates
        if one.data == data and one.true_return is not None and (value := one.estimates.get(name)) is not None
    ]


def _scatter(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    """A dot a policy, and the line on which estimates are right."""
    low, high = min(map(min, points)), max(map(max, points))
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, zorder=0)
    estimated, true = zip(*points, strict=True)
    axes.scatter(estimated, true, s=10, color=BLUE, alpha=0.8, linewidths=0)


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else fixed(value, digits)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
