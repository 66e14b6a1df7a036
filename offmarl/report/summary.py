"""From scores to what can be said of them: aggregates with intervals, profiles, who improves on whom, doubts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from offmarl.evaluation.statistics import (
    Bootstrap,
    Estimate,
    advantage,
    improvement,
    interquartile_mean,
    mean_of_tasks,
    median_of_tasks,
    optimality_gap,
)
from offmarl.report.study import TRUTH, Result, Study

FEW_SEEDS = 5  # below that an interval is hardly one
ENOUGH_SEEDS = 10  # Gorsane et al. 2022
THRESHOLDS = 101  # of the performance profile
MOST_NAMES = 3  # spelled out in a warning
LAST = "scores are those of the last checkpoint, never of the best evaluation"


@dataclass(frozen=True)
class Aggregate:
    """A method over all tasks that are compared."""

    method: str
    iqm: Estimate
    median: Estimate  # over tasks, of the means over seeds
    mean: Estimate
    optimality_gap: Estimate | None  # None where nobody knows what would be perfect
    seeds: int  # of the task that has fewest
    episodes: int | None  # for each seed, of the task that has fewest


@dataclass(frozen=True)
class Improvement:
    """One method against another, on the tasks that are compared."""

    first: str
    second: str
    probability: Estimate  # that a seed of the first scores better than one of the second
    advantage: Estimate  # by how much the interquartile mean of the first is better


@dataclass(frozen=True)
class Line:
    """A method on one task: a row of its table."""

    result: Result
    iqm: Estimate
    mean: Estimate
    best: bool  # of those without true rewards the best, or not told apart from it: the difference may be 0


@dataclass(frozen=True)
class Summary:
    """Everything that a report says of a study; the tables, figures and pages only show it."""

    study: Study
    compared: tuple[str, ...]  # tasks that the aggregates are over; none where they cannot be averaged
    aggregates: tuple[Aggregate, ...]  # best first
    improvements: tuple[Improvement, ...]  # every pair, the better one first; none if that is not known
    thresholds: tuple[float, ...]
    profiles: dict[str, tuple[Estimate, ...]]  # method -> one a threshold
    lines: dict[str, tuple[Line, ...]]  # task -> best first
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def seeds(self) -> int:
        """Of the method and task that has fewest."""
        return min(len(result.values[self.study.metric.name]) for result in self.study.results)

    def against(self, first: str, second: str) -> Improvement:
        """`first` compared with `second`. Raises `KeyError` for methods that were not compared."""
        for pair in self.improvements:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.first, pair.second) == (second, first):
                return _turned(pair)
        raise KeyError(first, second)

    @property
    def winner(self) -> str | None:
        """The best of the methods compared over tasks that does not see true rewards, if there is one.

        None where nothing is compared, or nobody knows whether more is better.
        """
        if not self.aggregates or self.study.metric.best is None:
            return None
        ranked = [aggregate.method for aggregate in self.aggregates]
        return next((method for method in ranked if not _privileged(self.study, method)), ranked[0])

    def is_best(self, method: str) -> bool:
        """Whether it is the winner over the tasks that are compared, or cannot be told apart from it."""
        if self.winner in (None, method):
            return self.winner is not None
        behind = self.against(self.winner, method).advantage
        return _alike(behind) and not _privileged(self.study, method)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **self.study.to_json(),
            "compared": self.compared,
            "aggregates": [asdict(aggregate) for aggregate in self.aggregates],
            "improvements": [asdict(pair) for pair in self.improvements],
            "profile": {
                "thresholds": self.thresholds,
                "methods": {name: [asdict(point) for point in line] for name, line in self.profiles.items()},
            },
            "tasks": {
                task: [
                    {
                        "method": line.result.method,
                        "iqm": asdict(line.iqm),
                        "mean": asdict(line.mean),
                        "best": line.best,
                        "seeds": len(line.result.seeds),
                        "episodes": line.result.episodes,
                    }
                    for line in lines
                ]
                for task, lines in self.lines.items()
            },
            "warnings": self.warnings,
            "notes": self.notes,
        }


def summarise(study: Study) -> Summary:
    """Compute all of it; the same study gives the same numbers."""
    compared = study.shared_tasks()
    if len(compared) > 1 and not study.metric.comparable:
        compared = []
    draws = {
        method: Bootstrap(study.strata(method, compared), method) for method in study.methods if compared
    }
    aggregates = [_aggregate(study, method, draw, compared) for method, draw in draws.items()]
    aggregates.sort(key=lambda aggregate: aggregate.iqm.value, reverse=study.metric.best != "smallest")
    ranked = [aggregate.method for aggregate in aggregates]
    pairs = combinations(ranked, 2) if study.metric.best is not None else ()
    thresholds = _thresholds(draws.values())
    return Summary(
        study=study,
        compared=tuple(compared),
        aggregates=tuple(aggregates),
        improvements=tuple(_improvement(study, draws, *pair) for pair in pairs),
        thresholds=tuple(thresholds),
        profiles={method: tuple(draws[method].profile(thresholds)) for method in ranked},
        lines={task: _lines(study, task) for task in study.tasks},
        warnings=tuple(_warnings(study, compared)),
        notes=tuple(_notes(study)),
    )


def compare(study: Study, first: str, second: str, tasks: Sequence[str]) -> Improvement:
    """`first` against `second` on `tasks`, which both have."""
    draws = {method: Bootstrap(study.strata(method, tasks), method) for method in (first, second)}
    return _improvement(study, draws, first, second)


def _improvement(study: Study, draws: Mapping[str, Bootstrap], first: str, second: str) -> Improvement:
    x, y = draws[first], draws[second]
    if study.metric.best == "smallest":
        x, y = y, x
    return Improvement(first, second, x.against(y, improvement), x.against(y, advantage))


def _turned(pair: Improvement) -> Improvement:
    """The same comparison from the other side."""

    def opposite(estimate: Estimate, of: float) -> Estimate:
        low, high = estimate.low, estimate.high
        turned = (None, None) if low is None or high is None else (of - high, of - low)
        return Estimate(of - estimate.value, *turned)

    return Improvement(
        pair.second, pair.first, opposite(pair.probability, 1.0), opposite(pair.advantage, 0.0)
    )


def _aggregate(study: Study, method: str, draw: Bootstrap, tasks: Sequence[str]) -> Aggregate:
    target = study.metric.perfect
    results = [result for task in tasks if (result := study.find(method, task)) is not None]
    episodes = [result.episodes for result in results if result.episodes is not None]
    return Aggregate(
        method=method,
        iqm=draw.estimate(interquartile_mean),
        median=draw.estimate(median_of_tasks),
        mean=draw.estimate(mean_of_tasks),
        optimality_gap=None if target is None else draw.estimate(partial(optimality_gap, target=target)),
        seeds=draw.fewest,
        episodes=min(episodes) if episodes else None,
    )


def _thresholds(draws: Iterable[Bootstrap]) -> list[float]:
    """From the smallest value to the largest."""
    values = [value for draw in draws for task in draw.strata for value in task]
    if not values:
        return []
    return [float(value) for value in np.linspace(min(values), max(values), THRESHOLDS)]


def _lines(study: Study, task: str) -> tuple[Line, ...]:
    """The methods on one task, the best interquartile mean first; the largest where nobody knows what is better."""
    results = {result.method: result for result in study.results if result.task == task}
    draws = {method: Bootstrap(study.strata(method, [task]), method) for method in results}
    ranked = sorted(
        results,
        key=lambda method: float(interquartile_mean(draws[method].strata)),
        reverse=study.metric.best != "smallest",
    )
    contenders = [method for method in ranked if results[method].rewards != TRUTH] or ranked[:1]
    top = contenders[0]
    lines = []
    for method in ranked:
        result, draw = results[method], draws[method]
        best = study.metric.best is not None and (
            method == top
            or (method in contenders and _alike(_improvement(study, draws, top, method).advantage))
        )
        lines.append(Line(result, draw.estimate(interquartile_mean), draw.estimate(mean_of_tasks), best))
    return tuple(lines)


def _alike(behind: Estimate) -> bool:
    """Whether a method that is so far behind cannot be told apart from the better one."""
    return behind.value == 0 or (behind.low is not None and behind.low <= 0)


def _privileged(study: Study, method: str) -> bool:
    """Whether it learned from rewards that only a simulator knows."""
    return any(result.rewards == TRUTH for result in study.results if result.method == method)


def _warnings(study: Study, compared: Sequence[str]) -> list[str]:
    """What makes the numbers less than they look."""
    warnings = []
    counts = {len(result.values[study.metric.name]): result for result in study.results}
    fewest = min(counts)
    if fewest < FEW_SEEDS:
        result = counts[fewest]
        seeds = "one seed has no interval" if fewest == 1 else f"the interval of {fewest} seeds is too narrow"
        where = "" if len(counts) == 1 else f" ({result.method} on {result.task})"
        warnings.append(f"fewer than {FEW_SEEDS} seeds{where}: {seeds}; use {FEW_SEEDS} or more")
    if len(counts) > 1:
        warnings.append(
            f"between {min(counts)} and {max(counts)} seeds: where tasks have different numbers of seeds, those "
            "with more weigh more in the interquartile mean"
        )
    if study.metric.comparable and len(compared) < len(study.tasks):
        left = [task for task in study.tasks if task not in compared]
        over = f"only over {_listed(compared)}" if compared else "on each task alone"
        warnings.append(f"not every method was measured on {_listed(left)}: methods are compared {over}")
    families: dict[tuple[str, str | None], set[str]] = {}
    for result in study.results:
        families.setdefault(result.family, set()).add(result.method)
    if any(len(methods) > 1 for methods in families.values()):
        most = max(len(methods) for methods in families.values())
        warnings.append(
            f"up to {most} settings of one learner on the same rewards are shown: the best of several is chosen by "
            "these very scores and looks better than it is"
        )
    for task in study.tasks:
        steps = {result.steps for result in study.results if result.task == task and result.steps is not None}
        if len(steps) > 1:
            warnings.append(
                f"{task}: methods had between {min(steps):,} and {max(steps):,} updates; compare with care"
            )
    return warnings


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else ""
    return "; ".join(names[:MOST_NAMES]) + more


def _notes(study: Study) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    notes = []
    policies = any(result.rewards is not None for result in study.results)
    if policies:
        notes.append(LAST)
    notes.append(
        "IQM: mean of the middle half of all seeds and tasks; intervals: 95 %, stratified bootstrap over the seeds of "
        "each task"
    )
    fewest = min(len(result.values[study.metric.name]) for result in study.results)
    if fewest < ENOUGH_SEEDS:
        notes.append(
            "of one task such an interval holds the truth in 76 % of cases with 3 seeds, 89 % with 5, 94 % with 10"
        )
    if len(study.tasks) > 1 and not study.metric.comparable:
        notes.append(f"{study.metric.title} has another scale in every task: nothing is averaged over tasks")
    if any(result.rewards == TRUTH for result in study.results):
        notes.append("true rewards are known to the simulator only: an upper bound, not a method")
    return [*notes, *study.notes]
