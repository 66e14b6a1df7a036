"""`offmarl evaluate --offline`: runs judged by the data that they were trained on; no environment is touched."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from offmarl.atomic import write_json
from offmarl.data.catalog import find_dataset
from offmarl.data.load import load_transitions
from offmarl.data.store import Dataset
from offmarl.errors import DataError, OffmarlError, UsageError
from offmarl.evaluation.ope.config import OpeConfig
from offmarl.evaluation.ope.coverage import coverage
from offmarl.evaluation.ope.estimators import (
    ESTIMATORS,
    Judgement,
    Question,
    require_possible,
    resamples,
    usual,
)
from offmarl.evaluation.ope.logged import Logged, policy_actions
from offmarl.evaluation.scores import say_if_unfinished
from offmarl.evaluation.statistics import CONFIDENCE, estimate_text
from offmarl.learners.base import Learner, ObservingLearner
from offmarl.reporter import Reporter
from offmarl.training.run import RunFolder, load_policy

NAME = "offline_evaluation.json"  # in a run's folder
PREFIX = "ope_"  # of metrics in a benchmark's cells
TOGETHER = 16  # policies that are evaluated side by side
LEAST_COVERAGE = 0.8  # below which the printout warns
LEAST_EPISODES = 10  # effective ones, below which importance sampling is one or two episodes' return


@dataclass(frozen=True)
class OfflineEstimate:
    """What one estimator says of a run. Returns are means over agents of an episode's undiscounted sum."""

    per_seed: tuple[float | None, ...]  # None where it cannot tell
    value: float | None  # mean over seeds
    low: float | None  # 95 % bootstrap interval over the data's episodes; what the fit got wrong is not in it
    high: float | None
    details: dict[str, float]  # mean over seeds


@dataclass(frozen=True)
class OfflineEvaluation:
    """One run judged by its data."""

    run: str
    dataset: str
    dataset_sha256: str
    env: str
    learner: str
    rewards: str
    steps: int
    seeds: tuple[int, ...]
    episodes: int  # of the data
    estimates: dict[str, OfflineEstimate]
    coverage: tuple[float, ...]  # of each seed: share of decisions that lie within the data
    references: dict[str, float] | None
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json` and the run's folder."""
        return asdict(self)


@dataclass(frozen=True)
class OfflineReport:
    """Several runs beside each other."""

    evaluations: tuple[OfflineEvaluation, ...]

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"{', '.join(self._datasets)} · estimated from the data, no environment touched"

    @property
    def estimators(self) -> list[str]:
        """All that were asked of any run."""
        return list(dict.fromkeys(name for one in self.evaluations for name in one.estimates))

    def columns(self) -> list[str]:
        """Header of the table."""
        dataset = ["dataset"] if len(self._datasets) > 1 else []
        return [*dataset, "learner", "rewards", *self.estimators, "coverage", "seeds"]

    @property
    def _datasets(self) -> list[str]:
        return sorted({one.dataset for one in self.evaluations})

    def rows(self) -> list[list[str]]:
        """A line a run, as the first estimator ranks them."""
        first = self.estimators[0]

        def key(one: OfflineEvaluation) -> float:
            estimate = one.estimates.get(first)
            return -float("inf") if estimate is None or estimate.value is None else estimate.value

        return [
            [
                *([one.dataset] if len(self._datasets) > 1 else []),
                one.learner,
                one.rewards,
                *(_text(one.estimates.get(name)) for name in self.estimators),
                f"{sum(one.coverage) / len(one.coverage):.0%}",
                str(len(one.seeds)),
            ]
            for one in sorted(self.evaluations, key=key, reverse=True)
        ]

    def notes(self) -> list[str]:
        """What a reader must know to read the table rightly."""
        gamma = self.evaluations[0].settings["gamma"]
        summed = (
            "summed team reward"
            if gamma == 1
            else f"team reward, summed with a discount of {gamma:g} a step, which returns of play are without"
        )
        notes = [
            f"estimated: the mean over agents of an episode's {summed}, from the initial states of the data "
            "[95 % interval over its episodes: what the fit got wrong is not in it]"
        ]
        for name in ("fqe", "fqe_agents", "d3rlpy_fqe", "d3rlpy_fqe_agents"):
            checked = {
                one.dataset: one.estimates[name].details for one in self.evaluations if name in one.estimates
            }
            for dataset, details in checked.items():
                said, earned = details["behaviour_estimated"], details["behaviour_earned"]
                of = f" of {dataset}" if len(self._datasets) > 1 else ""
                notes.append(
                    f"{name} gives the data's own policy{of} {said:.1f} where it earned {earned:.1f}"
                )
        for name in ("wis", "wis_cloned"):
            effective = [
                one.estimates[name].details["effective_episodes"]
                for one in self.evaluations
                if name in one.estimates
            ]
            if effective:
                smoothing = self.evaluations[0].settings["smoothing"]
                notes.append(
                    f"{name} is of policies that take {smoothing:.0%} of their choices at random, and rests on "
                    f"{min(effective):.0f} to {max(effective):.0f} effective episodes"
                )
        return notes + self.warnings()

    def warnings(self) -> list[str]:
        """Where an estimate is a guess."""
        warnings = []
        outside = [
            one.run for one in self.evaluations if sum(one.coverage) / len(one.coverage) < LEAST_COVERAGE
        ]
        if outside:
            more = f" and {len(outside) - 1} more" if outside[1:] else ""
            warnings.append(
                f"warning: {outside[0]}{more} act outside of the data in more than {1 - LEAST_COVERAGE:.0%} of their "
                "decisions: what is said of them is extrapolated"
            )
        for name in ("wis", "wis_cloned"):
            few = [
                one.run
                for one in self.evaluations
                if name in one.estimates
                and one.estimates[name].details["effective_episodes"] < LEAST_EPISODES
            ]
            if few:
                more = f" and {len(few) - 1} more" if few[1:] else ""
                warnings.append(
                    f"warning: {name} judges {few[0]}{more} by fewer than {LEAST_EPISODES} effective episodes"
                )
        return warnings

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"runs": [one.to_json() for one in self.evaluations], "warnings": self.warnings()}


def data_of(run: RunFolder) -> Dataset:
    """The dataset that a run was trained on, where it was or under its id.

    Raises `DataError` where it is gone or holds other data now.
    """
    source = run.record["dataset"]
    changed = False
    for place in (Path(source["path"]), source["id"]):
        try:
            dataset = find_dataset(place)
        except OffmarlError:
            continue
        if dataset.card.sha256 == source["sha256"]:
            return dataset
        dataset.close()
        changed = True
    if changed:
        raise DataError(
            f"run {run.id} was trained on {source['id']} as it was then (sha256 {source['sha256'][:12]}), and its "
            "data have changed since: an offline evaluation needs the ones that it was trained on"
        )
    raise DataError(
        f"the data of run {run.id} are not in {source['path']} any more, nor is there a dataset {source['id']}: "
        "an offline evaluation needs them; collect or import them again"
    )


def evaluate_runs_offline(
    runs: Sequence[RunFolder],
    estimators: Sequence[str] | None,
    config: OpeConfig,
    seed: int,
    out: Path | None,
    device: str,
    reporter: Reporter,
    reuse: bool = False,
) -> OfflineReport:
    """Judge each run by its data; results are written into the run's folder, or into `out`.

    Runs on one dataset are evaluated side by side. Without `estimators` all that the data can answer are taken. With
    `reuse` what the same settings said of the same checkpoint before is read from the run's folder. Raises
    `UsageError` for an estimator that the data cannot answer, `DataError` where the data are gone.
    """
    found: dict[str, OfflineEvaluation] = {}  # by the run's folder
    known_before: set[str] = set()
    by_data: dict[str, list[RunFolder]] = {}
    for run in runs:
        by_data.setdefault(run.record["dataset"]["sha256"], []).append(run)
    for own in by_data.values():
        with data_of(own[0]) as dataset:
            known = "behaviour_probability" in dataset.card.arrays
            names = list(estimators) if estimators is not None else usual(dataset.spec, known)
            require_possible(names, dataset.spec, dataset.id, known)
            stored = {
                str(run.folder): said for run in own if reuse and (said := _stored(run, names, config, seed))
            }
            todo = [run for run in own if str(run.folder) not in stored]
            known_before |= stored.keys()
            found |= stored | _judge(todo, dataset, names, config, seed, device, reporter)
    for run in runs:
        if str(run.folder) in known_before and out is None:
            continue
        name = NAME if out is None else f"{run.id.replace('/', '_')}-offline.json"
        target = (run.folder if out is None else out) / name
        record = {"created": datetime.now(UTC).isoformat(), "seed": seed}
        write_json(target, {**found[str(run.folder)].to_json(), **record})
    return OfflineReport(tuple(found[str(run.folder)] for run in runs))


def _judge(
    runs: Sequence[RunFolder],
    dataset: Dataset,
    names: Sequence[str],
    config: OpeConfig,
    seed: int,
    device: str,
    reporter: Reporter,
) -> dict[str, OfflineEvaluation]:
    """Evaluate runs on one dataset, by the folder of each."""
    if not runs:
        return {}
    policies = [load_policy(run, device) for run in runs]
    for run, policy in zip(runs, policies, strict=True):
        say_if_unfinished(run, policy.steps, reporter)
    learners = [_observing(run, policy.learner) for run, policy in zip(runs, policies, strict=True)]
    transitions = load_transitions(dataset, device)
    action = torch.cat([policy_actions(learner, transitions) for learner in learners])
    probability = None
    if "behaviour_probability" in dataset.card.arrays:
        probability = dataset.read("behaviour_probability").to(device)
    logged = Logged(transitions, action, probability)
    judged = {name: _by_parts(name, logged, config, seed, reporter) for name in names}
    covered = coverage(logged)
    answers, first = {}, 0
    for run, policy in zip(runs, policies, strict=True):
        own = slice(first, first + policy.n_seeds)
        first += policy.n_seeds
        source = run.record["dataset"]
        answers[str(run.folder)] = OfflineEvaluation(
            run=run.id,
            dataset=dataset.id,
            dataset_sha256=source["sha256"],
            env=dataset.spec.id,
            learner=run.record["learner"],
            rewards=run.record["rewards"],
            steps=policy.steps,
            seeds=tuple(run.record["seeds"]),
            episodes=transitions.n_episodes,
            estimates={name: _estimate(judged[name], own) for name in names},
            coverage=tuple(covered[own].tolist()),
            references=source.get("references"),
            settings=_plain(config),
        )
    return answers


def _observing(run: RunFolder, learner: Learner) -> ObservingLearner:
    """The learner itself. Raises `UsageError` for one that acts for units of a rendered battle."""
    if not isinstance(learner, ObservingLearner):
        raise UsageError(
            f"run {run.id}: {run.record['learner']} acts for units on a map, and offline evaluation is of agents that "
            "observe; play it: offmarl evaluate without --offline"
        )
    return learner


def _by_parts(name: str, logged: Logged, config: OpeConfig, seed: int, reporter: Reporter) -> Judgement:
    """Ask an estimator about so many policies at a time that their networks stay in the memory."""
    counts = resamples(logged.transitions.n_episodes, logged.transitions.device)
    parts = [slice(first, first + TOGETHER) for first in range(0, logged.n_policies, TOGETHER)]
    said = []
    with reporter.bar(f"estimate ({name})") as progress:
        for done, part in enumerate(parts):

            def on_step(step: int, steps: int, done: int = done) -> None:
                progress(done * steps + step, len(parts) * steps)

            said.append(ESTIMATORS[name](Question(logged.of(part), config, seed, counts, on_step)))
    return Judgement(
        torch.cat([one.value for one in said]),
        torch.cat([one.draws for one in said]),
        {key: torch.cat([one.details[key] for one in said]) for key in said[0].details},
    )


def _estimate(judged: Judgement, own: slice) -> OfflineEstimate:
    """The policies `own` of one run."""
    per_seed = [value if math.isfinite(value) else None for value in judged.value[own].tolist()]
    known = [value for value in per_seed if value is not None]
    value = mean(known) if len(known) == len(per_seed) else None  # exact: of equal values it is that value
    low, high = _middle(judged.draws[own].mean(0)) if value is not None else (None, None)
    details = {key: float(numbers[own].mean()) for key, numbers in judged.details.items()}
    return OfflineEstimate(tuple(per_seed), value, low, high, details)


def _middle(draws: Tensor) -> tuple[float | None, float | None]:
    """The middle 95 % of those resamples that gave an answer."""
    answered = draws[draws.isfinite()]
    if not len(answered):
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = answered.quantile(answered.new_tensor([tail, 1 - tail])).tolist()
    return low, high


def _stored(run: RunFolder, names: Sequence[str], config: OpeConfig, seed: int) -> OfflineEvaluation | None:
    """What was said of this checkpoint before with the same settings, if all of `names` were asked."""
    try:
        said = json.loads((run.folder / NAME).read_text(encoding="utf-8"))
        same = (
            said.pop("seed") == seed
            and said["settings"] == _plain(config)
            and said["steps"] == run.record["steps"]
            and said["dataset_sha256"] == run.record["dataset"]["sha256"]
            and set(names) <= set(said["estimates"])
        )
        if not same:
            return None
        del said["created"]
        estimates = {
            name: OfflineEstimate(
                **{**said["estimates"][name], "per_seed": tuple(said["estimates"][name]["per_seed"])}
            )
            for name in names
        }
        lists = {name: tuple(said[name]) for name in ("seeds", "coverage")}
        return OfflineEvaluation(**{**said, **lists, "estimates": estimates})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain(config: OpeConfig) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _text(estimate: OfflineEstimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "-"
    return estimate_text(estimate.value, estimate.low, estimate.high, 1)


def estimated_values(evaluation: OfflineEvaluation) -> dict[str, list[float]]:
    """`ope_NAME` of every estimator that could tell, and `ope_coverage`: a number a seed."""
    values = {f"{PREFIX}coverage": list(evaluation.coverage)}
    for name, estimate in evaluation.estimates.items():
        known = [value for value in estimate.per_seed if value is not None]
        if len(known) == len(estimate.per_seed):
            values[f"{PREFIX}{name}"] = known
    return values
