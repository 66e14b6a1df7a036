"""What a report is about: the scores of methods on tasks, one value a seed, wherever they were measured.

A *task* is a dataset; a *method* is a learner on certain rewards, and where several were tried, its settings.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offmarl.errors import UsageError

SAME_DATA = "seeds are trained on the same data: intervals tell how training varies, not how datasets do"
IMITATION = "bc"  # the learner that does not look at rewards
TRUTH = "true"  # rewards that no log holds: an upper bound, not a method


@dataclass(frozen=True)
class Metric:
    """What is compared."""

    name: str  # as it is stored: score, return, skill, ...
    title: str  # on an axis
    unit: str  # "points" in "by 3.1 points"
    perfect: float | None  # what the optimality gap is measured to
    digits: int
    comparable: bool  # whether different tasks may be averaged
    best: Literal["largest", "smallest"] | None  # None: not known, so that nothing wins by it

    @property
    def better(self) -> str:
        """What the better one of two scores."""
        return "less" if self.best == "smallest" else "more"


METRICS = {  # in the order in which they are chosen where none is asked for
    "score": Metric("score", "normalised score", "points", 100.0, 1, True, "largest"),
    "return": Metric("return", "return, mean over agents", "of return", None, 1, False, "largest"),
    "skill": Metric("skill", "skill of the recovered rewards", "of skill", 1.0, 3, True, "largest"),
    "win_rate": Metric("win_rate", "share of episodes won", "of the episodes", 1.0, 3, True, "largest"),
}
LARGER = {"pearson", "r2", "skill", "f1", "recall", "fit_r2"}  # is better: of credit
LARGER |= {"points", "own_left", "annihilated", "reward_first", "reward_second"}  # of games
SMALLER = {"hijack", "foreign_edges", "enemies_left"}
SMALLER |= {"seconds", "cpu_seconds", "play_seconds", "play_cpu_seconds"}


def metric_named(name: str) -> Metric:
    """A metric of `METRICS`, or one that is not averaged over tasks; what is better may not be known of it."""
    if name in METRICS:
        return METRICS[name]
    what = name.removeprefix("rewards_")  # of those that were trained on
    best: Literal["largest", "smallest"] | None = (
        "largest" if what in LARGER else "smallest" if what in SMALLER else None
    )
    return Metric(name, name, f"of {name}", None, 3, False, best)


@dataclass(frozen=True)
class Measured:
    """One run, or one cell of a benchmark, as it is found; what it is compared with decides what it is called."""

    source: str  # run id or name of the cell
    env: str
    task: Mapping[str, Any]  # settings that make the data; "" -> the short name
    learner: str  # the decomposer where no policy is trained
    rewards: str | None  # None where no policy is trained
    settings: Mapping[str, Any]  # everything else that the result may depend on, seeds apart
    values: Mapping[str, Sequence[float]]  # metric -> one value a seed
    seeds: tuple[str, ...]
    episodes: int | None  # for each seed
    steps: int | None  # updates
    behaviour: Mapping[str, float]  # metric -> of the logged team

    @property
    def base(self) -> str:
        """Name of the method as long as one setting of it was tried."""
        if self.rewards is None or self.learner == IMITATION:
            return self.learner
        return f"{self.learner} on {short_rewards(self.rewards)}"


@dataclass(frozen=True)
class Result:
    """A method on a task."""

    method: str
    task: str
    env: str
    learner: str
    rewards: str | None
    values: Mapping[str, tuple[float, ...]]  # metric -> one value a seed
    seeds: tuple[str, ...]
    episodes: int | None  # for each seed
    steps: int | None
    sources: tuple[str, ...]
    behaviour: Mapping[str, float]

    @property
    def family(self) -> tuple[str, str | None]:
        """What methods share that differ in their settings only."""
        return self.learner, None if self.learner == IMITATION else self.rewards


@dataclass(frozen=True)
class Curve:
    """A metric of one method on one task along training, with the 95 % bootstrap band of the mean over seeds."""

    method: str
    task: str
    metric: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...] | None  # None with one seed
    high: tuple[float, ...] | None
    values: tuple[tuple[float, ...], ...]  # at each step, one a seed


@dataclass(frozen=True)
class Study:
    """All results that are reported together."""

    title: str
    metric: Metric
    results: tuple[Result, ...]
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def methods(self) -> list[str]:
        """In the order of their first result."""
        return list(dict.fromkeys(result.method for result in self.results))

    @property
    def tasks(self) -> list[str]:
        """In the order of their first result."""
        return list(dict.fromkeys(result.task for result in self.results))

    def find(self, method: str, task: str) -> Result | None:
        """The result of a method on a task, if there is one."""
        return next((r for r in self.results if (r.method, r.task) == (method, task)), None)

    def strata(self, method: str, tasks: Iterable[str]) -> list[np.ndarray]:
        """T arrays [V], the values of `method` on each of `tasks`."""
        found = [self.find(method, task) for task in tasks]
        return [np.asarray(result.values[self.metric.name]) for result in found if result is not None]

    def shared_tasks(self) -> list[str]:
        """The tasks on which every method was measured."""
        return [task for task in self.tasks if all(self.find(method, task) for method in self.methods)]

    def to_json(self) -> dict[str, Any]:
        """For `--json`: every value that the rest is computed from."""
        return {
            "title": self.title,
            "metric": asdict(self.metric),
            "results": [asdict(result) for result in self.results],
            "curves": [asdict(curve) for curve in self.curves],
        }


def make_study(
    title: str,
    measured: Sequence[Measured],
    metric: str | None,
    notes: Sequence[str] = (),
    curves: Callable[[Mapping[str, tuple[str, str]]], Sequence[Curve]] = lambda named: (),
) -> Study:
    """Name methods and tasks, join the seeds of what is the same, choose the metric.

    `curves` gets source -> (method, task). Raises `UsageError` where two sources are the same measurement, for
    a metric that was not measured, and where there is nothing.
    """
    if not measured:
        raise UsageError(f"{title}: nothing is measured yet")
    chosen, doubts = _metric(measured, metric)
    measured = [one for one in measured if one.values.get(chosen.name)]
    tasks = _task_names(measured)
    methods = _method_names(measured, tasks)
    grouped: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        grouped.setdefault((methods[one.source], tasks[one.source]), []).append(one)
    results = tuple(_joined(method, task, group) for (method, task), group in grouped.items())
    named = {one.source: (methods[one.source], tasks[one.source]) for one in measured}
    return Study(title, chosen, results, tuple(curves(named)), (*notes, *doubts))


def short_rewards(rewards: str) -> str:
    """A file of rewards by its name."""
    return Path(rewards).stem if rewards.endswith(".h5") else rewards


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their path, `train.settings.alpha`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _metric(measured: Sequence[Measured], asked: str | None) -> tuple[Metric, list[str]]:
    """What to compare: what was asked for, else normalised scores if all have them, else returns, else skill."""
    known = {name for one in measured for name, values in one.values.items() if values}
    if asked is not None:
        if asked not in known:
            raise UsageError(f"--metric {asked}: not measured; known: {', '.join(sorted(known))}")
        lacking = [one.source for one in measured if not one.values.get(asked)]
        return metric_named(asked), _left_out(asked, lacking)
    for name in METRICS:
        if all(one.values.get(name) for one in measured):
            doubt = []
            if name == "return":
                doubt = ["no reference returns are known for every task: returns, not normalised scores"]
            return METRICS[name], doubt
    for name in METRICS:
        if name in known:
            return METRICS[name], _left_out(name, [o.source for o in measured if not o.values.get(name)])
    raise UsageError(f"choose with --metric: {', '.join(sorted(known)) or 'nothing is measured'}")


def _left_out(metric: str, lacking: Sequence[str]) -> list[str]:
    if not lacking:
        return []
    more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
    return [f"without {metric}, and so left out: {lacking[0]}{more}"]


def _task_names(measured: Sequence[Measured]) -> dict[str, str]:
    """Source -> name of its data: the short name, and what tells apart those that share it."""
    keys = {one.source: (str(one.task[""]), told_apart(one.task)) for one in measured}
    names = distinguished(keys.values())
    return {source: names[key] for source, key in keys.items()}


def _method_names(measured: Sequence[Measured], tasks: Mapping[str, str]) -> dict[str, str]:
    """Source -> name of its method.

    Settings that follow the task, as a table of tuned ones does, are one method; where a task has several
    settings of the same learner and rewards, they are methods of their own.
    """
    keys = {one.source: (one.base, told_apart(_method_settings(one))) for one in measured}
    variants: dict[tuple[str, str], set[Any]] = {}
    for source, (base, settings) in keys.items():
        variants.setdefault((base, tasks[source]), set()).add(settings)
    several = {base for (base, _), found in variants.items() if len(found) > 1}
    names = distinguished(key for key in keys.values() if key[0] in several)
    return {source: names.get(key, key[0]) for source, key in keys.items()}


def _method_settings(one: Measured) -> dict[str, Any]:
    """Settings that may tell methods apart; rewards too where the name of the method does not say them all."""
    named = one.rewards is None or (one.learner != IMITATION and one.rewards == short_rewards(one.rewards))
    return {**one.settings, **({} if named else {"rewards": one.rewards})}


def told_apart(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Settings as `distinguished` takes them."""
    return tuple(sorted((key, _text(value)) for key, value in flat(settings).items() if key))


def distinguished(
    keys: Iterable[tuple[str, tuple[tuple[str, str], ...]]],
) -> dict[tuple[str, tuple[tuple[str, str], ...]], str]:
    """Name each key by its first part and those of its settings in which it differs from its namesakes."""
    keys, names = dict.fromkeys(keys), {}
    for base, settings in keys:
        alike = [dict(other) for name, other in keys if name == base]
        differing = [
            f"{key.rpartition('.')[2]} {value}"
            for key, value in settings
            if any(other.get(key) != value for other in alike)
        ]
        names[base, settings] = ", ".join([base, *differing])
    return names


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _joined(method: str, task: str, group: Sequence[Measured]) -> Result:
    """The seeds of one method on one task. Raises `UsageError` where a seed is there twice."""
    first = group[0]
    if len(group) > 1:
        owner: dict[str, str] = {}
        for one in group:
            for seed in one.seeds:
                other = owner.setdefault(seed, one.source)
                if other != one.source:
                    raise UsageError(
                        f"{other} and {one.source} are the same method ({method}) with the same seed {seed} "
                        f"on {task}: name one of them"
                    )
    metrics = [name for name in first.values if all(one.values.get(name) for one in group)]
    episodes = [one.episodes for one in group if one.episodes is not None]
    return Result(
        method=method,
        task=task,
        env=first.env,
        learner=first.learner,
        rewards=None if first.rewards is None else short_rewards(first.rewards),
        values={name: tuple(float(value) for one in group for value in one.values[name]) for name in metrics},
        seeds=tuple(seed for one in group for seed in one.seeds),
        episodes=min(episodes) if episodes else None,
        steps=first.steps,
        sources=tuple(one.source for one in group),
        behaviour=dict(first.behaviour),
    )
