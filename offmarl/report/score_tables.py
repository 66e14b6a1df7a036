"""A study's numbers as tables, for the terminal, Markdown and LaTeX, and as plain values in CSV."""

import csv
from io import StringIO

from offmarl.evaluation.statistics import fixed
from offmarl.report.bench_tables import NOTHING, BenchTable
from offmarl.report.headline import headline
from offmarl.report.summary import Summary

CSV_COLUMNS = (
    *("task", "method", "learner", "rewards", "metric", "iqm", "iqm_low", "iqm_high"),
    *("mean", "mean_low", "mean_high", "seeds", "episodes", "steps", "values"),
)


def score_tables(summary: Summary) -> list[BenchTable]:
    """What is said of all tasks together, then a table for each of them."""
    return [*overall_tables(summary), *(task_table(summary, task) for task in summary.lines)]


def short_tables(summary: Summary) -> list[BenchTable]:
    """What fits a screen: of several tasks one table for all of them."""
    if len(summary.lines) == 1:
        return score_tables(summary)
    return [*overall_tables(summary), grid_table(summary)]


def overall_tables(summary: Summary) -> list[BenchTable]:
    """The aggregates over several tasks, and the winner against every other method."""
    tables = [overview_table(summary)] if len(summary.compared) > 1 else []
    return [*tables, improvement_table(summary)] if summary.improvements else tables


def overview_table(summary: Summary) -> BenchTable:
    """The aggregates over the tasks that every method has."""
    digits, metric = summary.study.metric.digits, summary.study.metric
    columns = ["method", "IQM", "median", "mean", "optimality gap", "seeds", "episodes"]
    rows = [
        [
            one.method,
            one.iqm.text(digits),
            one.median.text(digits),
            one.mean.text(digits),
            NOTHING if one.optimality_gap is None else one.optimality_gap.text(digits),
            str(one.seeds),
            _count(one.episodes),
        ]
        for one in summary.aggregates
    ]
    note = (
        f"{metric.title}, with 95 % stratified-bootstrap intervals; median over tasks of the means over seeds"
    )
    best = frozenset((row, 1) for row, one in enumerate(summary.aggregates) if summary.is_best(one.method))
    return BenchTable(f"Over {len(summary.compared)} tasks", columns, rows, note, best)


def improvement_table(summary: Summary) -> BenchTable:
    """The winner against each of the others, of which there is one."""
    metric, winner = summary.study.metric, summary.winner
    assert winner is not None, "there are improvements"
    rows = []
    for other in summary.aggregates:
        if other.method != winner:
            pair = summary.against(winner, other.method)
            rows.append(
                [other.method, pair.probability.text(2), pair.advantage.text(metric.digits), str(other.seeds)]
            )
    note = (
        f"probability: that one of its seeds scores {metric.better} than one of the method's; "
        "difference: of the interquartile means, in its favour"
    )
    columns = ["method", "probability of improvement", "difference", "seeds"]
    return BenchTable(f"{winner}, against", columns, rows, note)


def grid_table(summary: Summary) -> BenchTable:
    """Every method on every task; the longer of the two goes down."""
    study, digits = summary.study, summary.study.metric.digits
    found = {(line.result.method, task): line for task, lines in summary.lines.items() for line in lines}
    down, across = study.methods, study.tasks
    turned = len(across) > len(down)
    if turned:
        down, across = across, down
    rows, best = [], set[tuple[int, int]]()
    for i, first in enumerate(down):
        row = [first]
        for j, second in enumerate(across):
            line = found.get((second, first) if turned else (first, second))
            if line is not None and line.best:
                best.add((i, j + 1))
            row.append(NOTHING if line is None else line.iqm.text(digits))
        rows.append(row)
    seeds = {len(result.seeds) for result in study.results}
    episodes = {result.episodes for result in study.results if result.episodes is not None}
    note = f"{study.metric.title}: IQM with 95 % bootstrap intervals over {_range(seeds)} seeds"
    note += f" of {_range(episodes)} episodes" if episodes else ""
    return BenchTable("Every task", ["task" if turned else "method", *across], rows, note, frozenset(best))


def task_table(summary: Summary, task: str) -> BenchTable:
    """The methods on one task, best first, below the team that was logged; what is known of none is left out."""
    metric, lines = summary.study.metric, summary.lines[task]
    of_aggregate = {one.method: one for one in summary.aggregates} if len(summary.compared) == 1 else {}
    columns = ["method", "IQM", "mean", "optimality gap", "seeds", "episodes", "updates"]
    rows = []
    for line in lines:
        aggregate = of_aggregate.get(line.result.method)
        gap = None if aggregate is None else aggregate.optimality_gap
        rows.append(
            [
                line.result.method,
                line.iqm.text(metric.digits),
                line.mean.text(metric.digits),
                NOTHING if gap is None else gap.text(metric.digits),
                str(len(line.result.seeds)),
                _count(line.result.episodes),
                _count(line.result.steps),
            ]
        )
    known = [j for j in range(len(columns)) if any(row[j] != NOTHING for row in rows)]
    best = {(i, columns.index("IQM")) for i, line in enumerate(lines) if line.best}
    logged = lines[0].result.behaviour.get(metric.name)
    if logged is not None:
        rows.insert(0, ["(the logged team)", "", fixed(logged, metric.digits), "", "", "", ""])
        best = {(i + 1, j) for i, j in best}
    note = f"{metric.title}, with 95 % bootstrap intervals over seeds"
    if any(line.result.episodes is not None for line in lines):
        note += "; episodes for each seed"
    return BenchTable(
        task, [columns[j] for j in known], [[row[j] for j in known] for row in rows], note, frozenset(best)
    )


def markdown(summary: Summary, command: str) -> str:
    """All tables as a page, under the headline."""
    doubts = [f"- **Warning:** {text}" for text in summary.warnings] + [f"- {text}" for text in summary.notes]
    parts = [
        f"# {summary.study.title}\n",
        headline(summary) + "\n",
        "\n".join([*doubts, ""]),
        f"Written by `{command}`. Bold: the best without true rewards, and what cannot be told apart from it.\n",
        *(table.markdown() for table in score_tables(summary)),
    ]
    return "\n".join(parts)


def latex(summary: Summary, command: str) -> str:
    """All tables for a paper."""
    comments = [f"% written by {command}; needs \\usepackage{{booktabs}}"]
    comments += [f"% {text}" for text in (headline(summary), *summary.warnings, *summary.notes)]
    return "\n".join([*comments, "", *(table.latex() for table in score_tables(summary))])


def csv_text(summary: Summary) -> str:
    """A line for each method on each task, numbers in full; `values` holds those of the seeds, `;` between them."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for task, lines in summary.lines.items():
        for line in lines:
            result = line.result
            numbers = [
                *(line.iqm.value, line.iqm.low, line.iqm.high),
                *(line.mean.value, line.mean.low, line.mean.high),
            ]
            writer.writerow(
                [
                    *(task, result.method, result.learner, result.rewards, summary.study.metric.name),
                    *numbers,
                    *(len(result.seeds), result.episodes, result.steps),
                    ";".join(map(repr, result.values[summary.study.metric.name])),
                ]
            )
    return out.getvalue()


def _count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
