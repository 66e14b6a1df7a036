"""Tables of a benchmark: measured cells become means with intervals, for the terminal and for Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from offmarl.evaluation.statistics import bootstrap_interval, fixed

NOTHING = "-"
TEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "·": r"\textperiodcentered{}",
    "²": r"\textsuperscript{2}",
    "±": r"\textpm{}",
}


class Best(BaseModel):
    """Of the values of some axes, only the best one is shown: by the mean of `metric` over the seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    over: Annotated[list[str], Field(min_length=1)]
    metric: str
    largest: bool = True


class Published(BaseModel):
    """Numbers of a paper, shown beside one's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    numbers: dict[str, dict[str, str]]  # labels of a row, joined by blanks -> column -> what the paper says


class TableSpec(BaseModel):
    """What a table shows of the grid.

    A row for every combination of the axes in `rows`; a column for every metric or, with `across`, one for
    every value of that axis, showing the only metric.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    rows: Annotated[list[str], Field(min_length=1)]
    metrics: Annotated[list[str], Field(min_length=1)]
    across: str | None = None
    where: dict[str, list[str]] = {}  # only the cells with these labels
    best: Best | None = None
    over: Literal["cells", "seeds"] = (
        "cells"  # what is independent: whole cells, or each of their trained seeds
    )
    digits: Annotated[int, Field(ge=0, le=6)] = 2
    published: Published | None = None  # for tables with `across`

    @model_validator(mode="after")
    def _one_metric_across(self) -> "TableSpec":
        if self.across is not None and len(self.metrics) != 1:
            raise ValueError(f"table '{self.title}': with 'across' give exactly one metric")
        if self.published is not None and self.across is None:
            raise ValueError(
                f"table '{self.title}': 'published' needs 'across', whose values are its columns"
            )
        return self

    def axes(self) -> list[str]:
        """Every axis that it names."""
        best = [] if self.best is None else self.best.over
        return [*self.rows, *([self.across] if self.across else []), *self.where, *best]


@dataclass(frozen=True)
class MeasuredCell:
    """A cell of the grid, measured or not yet."""

    coordinates: Mapping[str, str]  # axis -> label
    values: Mapping[str, Sequence[float]]  # metric -> one value a trained seed; empty: nothing measured


@dataclass(frozen=True)
class BenchTable:
    """A finished table."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column) of the entries that stand out

    def markdown(self) -> str:
        """As Markdown, under a heading."""
        lines = [f"## {self.title}", "", *([self.note, ""] if self.note else [])]
        rows = [
            [f"**{entry}**" if (i, j) in self.best else entry for j, entry in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        lines += [_line(self.columns), _line(["---"] * len(self.columns)), *(_line(row) for row in rows)]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """As a LaTeX table; the document loads booktabs."""
        rows = [
            [
                f"\\textbf{{{_tex(entry)}}}" if (i, j) in self.best else _tex(entry)
                for j, entry in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]
        body = [" & ".join(row) + r" \\" for row in rows]
        caption = self.title if not self.note else f"{self.title}: {self.note}"
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_tex(caption)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                r"\toprule",
                " & ".join(map(_tex, self.columns)) + r" \\",
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"title": self.title, "columns": self.columns, "rows": self.rows}


def make_table(spec: TableSpec, cells: Sequence[MeasuredCell]) -> BenchTable:
    """Build a table from all cells in the order of the recipe, which is the order of the rows.

    Rows of which nothing is measured yet are left out. The last column counts the values that the means are
    over, from the fewest to the most.
    """
    shown = [
        cell
        for cell in cells
        if all(cell.coordinates.get(axis) in labels for axis, labels in spec.where.items())
    ]
    order = {axis: _labels(shown, axis) for axis in spec.axes()}
    columns = [""] if spec.across is None else order[spec.across]
    groups: dict[tuple[str, ...], dict[str, list[MeasuredCell]]] = {}  # row -> column -> its cells
    for cell in shown:
        key = tuple(cell.coordinates.get(axis, "") for axis in spec.rows)
        column = "" if spec.across is None else cell.coordinates.get(spec.across, "")
        groups.setdefault(key, {}).setdefault(column, []).append(cell)
    ranked = sorted(
        groups,
        key=lambda key: [order[axis].index(label) for axis, label in zip(spec.rows, key, strict=True)],
    )
    rows = []
    for key in ranked:
        measured = {
            column: _best(spec, [cell for cell in group if cell.values])
            for column, group in groups[key].items()
        }
        if not any(measured.values()):
            continue
        entries = [entry for column in columns for entry in _entries(spec, measured.get(column, []))]
        if spec.published is not None:
            said = spec.published.numbers.get(" ".join(key), {})
            entries = [
                f"{entry} ({said[column]})" if column in said else entry
                for entry, column in zip(entries, columns, strict=True)
            ]
        counts = [count for group in measured.values() for count in _counts(spec, group)] or [0]
        count = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"
        rows.append([*(label or NOTHING for label in key), *entries, count])
    header = [*spec.rows, *(spec.metrics if spec.across is None else columns)]
    if spec.best is not None and spec.across is None:
        header.append(", ".join(spec.best.over))
    return BenchTable(spec.title, [*header, "seeds"], rows, _note(spec, shown))


def _note(spec: TableSpec, cells: Sequence[MeasuredCell]) -> str:
    """What a reader must know to read the table rightly."""
    shown = f"{spec.metrics[0]}, " if spec.across is not None else ""
    note = f"{shown}mean [95 % bootstrap interval] over seeds"
    trained = max((len(cell.values.get(spec.metrics[0], ())) for cell in cells), default=0)
    if trained > 1:
        each = "each the mean of up to" if spec.over == "cells" else "all those trained, up to"
        note += f", {each} {trained} on the same data"
    if spec.best is not None:
        note += (
            f"; of {', '.join(spec.best.over)} the {'largest' if spec.best.largest else 'smallest'} mean "
            f"{spec.best.metric} is shown, chosen alike in every entry"
        )
    if spec.published is not None:
        note += f"; in round brackets {spec.published.source}"
    return note


def _entries(spec: TableSpec, group: list[MeasuredCell]) -> list[str]:
    """What a row shows of one group: its metrics, and which was the best where there was a choice."""
    entries = [_text(spec, group, metric) for metric in spec.metrics]
    if spec.best is None:
        return entries
    label = _chosen_label(spec.best, group) if group else ""
    if spec.across is None:
        return [*entries, label or NOTHING]
    return [f"{entries[0]} ({label})" if label else entries[0]]


def _best(spec: TableSpec, group: list[MeasuredCell]) -> list[MeasuredCell]:
    """The cells of the best value of the axes that are chosen over; all of them where there is no choice."""
    if spec.best is None:
        return group
    best, variants = spec.best, _variants(spec.best, group)
    known = {
        label: values for label, cells in variants.items() if (values := _values(spec, cells, best.metric))
    }
    if not known:
        return group[:0]
    means = {label: sum(values) / len(values) for label, values in known.items()}
    return variants[(max if best.largest else min)(means, key=lambda label: means[label])]


def _variants(best: Best, group: Sequence[MeasuredCell]) -> dict[tuple[str, ...], list[MeasuredCell]]:
    found: dict[tuple[str, ...], list[MeasuredCell]] = {}
    for cell in group:
        found.setdefault(tuple(cell.coordinates.get(axis, "") for axis in best.over), []).append(cell)
    return found


def _chosen_label(best: Best, group: Sequence[MeasuredCell]) -> str:
    return ", ".join(label for label in next(iter(_variants(best, group))) if label)


def _values(spec: TableSpec, group: Sequence[MeasuredCell], metric: str) -> list[float]:
    """One value for each independent measurement; cells that do not have the metric are passed over."""
    per_cell = [values for cell in group if (values := cell.values.get(metric))]
    if spec.over == "seeds":
        return [value for values in per_cell for value in values]
    return [sum(values) / len(values) for values in per_cell]


def _counts(spec: TableSpec, group: Sequence[MeasuredCell]) -> list[int]:
    """How many values each mean of a group is over; 0 where none of its cells is measured yet."""
    if not group:
        return [0]
    return [count for metric in spec.metrics if (count := len(_values(spec, group, metric)))]


def _text(spec: TableSpec, group: Sequence[MeasuredCell], metric: str) -> str:
    values = _values(spec, group, metric)
    if not values:
        return NOTHING
    interval = bootstrap_interval(values, spec.over)
    mean = fixed(interval.mean, spec.digits)
    if interval.low is None or interval.high is None:
        return mean
    low, high = fixed(interval.low, spec.digits), fixed(interval.high, spec.digits)
    return mean if low == mean == high else f"{mean} [{low}, {high}]"


def _labels(cells: Sequence[MeasuredCell], axis: str) -> list[str]:
    return list(dict.fromkeys(cell.coordinates.get(axis, "") for cell in cells))


def _tex(text: str) -> str:
    """`text` with what LaTeX takes for commands written so that it prints."""
    return "".join(TEX.get(letter, letter) for letter in text)


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"
