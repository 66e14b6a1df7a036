"""The estimators by name, and what each says of policies given the data.

Every estimate is of the return that policies are scored by: an episode's undiscounted sum of the team's reward over
the number of agents, mean over the initial states of the data. Whatever rewards a policy was trained on, the team's
reward is what it is judged by.

Shapes: S policies, X resamples, E episodes, N agents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec
from offmarl.errors import UsageError, unknown_name
from offmarl.evaluation.ope.config import OpeConfig
from offmarl.evaluation.ope.d3rlpy_fqe import d3rlpy_fitted_q
from offmarl.evaluation.ope.fitted_q import QValues, fitted_q
from offmarl.evaluation.ope.importance import Weighted, cloned_probability, weighted_importance_sampling
from offmarl.evaluation.ope.logged import Logged
from offmarl.streams import stream_seed

RESAMPLES = 500  # of episodes; an interval needs its ends to a few percent of its length
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Judgement:
    """What one estimator says of S policies."""

    value: Tensor  # [S] float64, mean over agents; NaN where it cannot tell
    draws: Tensor  # [S, X] the same of episodes drawn with replacement
    details: Mapping[str, Tensor] = field(default_factory=dict)  # [S] each: how far to trust it


@dataclass(frozen=True)
class Question:
    """What an estimator is asked: the policies beside the data, and resamples of its episodes."""

    logged: Logged
    config: OpeConfig
    seed: int
    counts: Tensor  # [X, E] float64: how often each resample holds an episode
    progress: Progress | None = None


def fqe(question: Question) -> Judgement:
    """Fitted Q evaluation for the team."""
    return _of_q(question, fitted_q(*_fit(question), "team", question.seed, question.progress))


def fqe_agents(question: Question) -> Judgement:
    """Fitted Q evaluation per agent, summed over agents."""
    return _of_q(question, fitted_q(*_fit(question), "agents", question.seed, question.progress))


def d3rlpy_fqe(question: Question) -> Judgement:
    """d3rlpy's fitted Q evaluation for the team."""
    return _of_q(question, d3rlpy_fitted_q(*_fit(question), "team", question.seed, question.progress))


def d3rlpy_fqe_agents(question: Question) -> Judgement:
    """d3rlpy's fitted Q evaluation per agent, mean over agents."""
    return _of_q(question, d3rlpy_fitted_q(*_fit(question), "agents", question.seed, question.progress))


def wis(question: Question) -> Judgement:
    """Weighted importance sampling with the behaviour's own probabilities."""
    probability = question.logged.probability
    assert probability is not None, "require_possible sees to it"
    return _of_weights(question, probability)


def wis_cloned(question: Question) -> Judgement:
    """Weighted importance sampling with the probabilities of a clone of the behaviour."""
    return _of_weights(question, cloned_probability(question.logged, question.config, question.seed))


def behaviour(question: Question) -> Judgement:
    """What the data's own episodes earned, whatever the policy: the baseline that knows nothing of it."""
    returns = question.logged.returns(question.config.gamma)
    draws = question.counts @ returns / len(returns)
    policies = question.logged.n_policies
    return Judgement(returns.mean().expand(policies), draws.expand(policies, -1))


ESTIMATORS: dict[str, Callable[[Question], Judgement]] = {
    "fqe": fqe,
    "fqe_agents": fqe_agents,
    "wis": wis,
    "wis_cloned": wis_cloned,
    "behaviour": behaviour,
    "d3rlpy_fqe": d3rlpy_fqe,
    "d3rlpy_fqe_agents": d3rlpy_fqe_agents,
}
WEIGHTED = ("wis", "wis_cloned")


def check_names(names: Sequence[str]) -> None:
    """Raise `UsageError` for an estimator that does not exist, with near names, or none at all."""
    if not names:
        raise UsageError(f"--estimator: name at least one of {', '.join(ESTIMATORS)}")
    for name in names:
        if name not in ESTIMATORS:
            raise unknown_name("estimator", name, ESTIMATORS)


def require_possible(names: Sequence[str], spec: EnvSpec, dataset: str, known: bool) -> None:
    """Raise `UsageError` for an estimator that the data cannot answer; `known`: it holds behaviour probabilities."""
    check_names(names)
    weighted = [name for name in names if name in WEIGHTED]
    if weighted and not spec.discrete:
        raise UsageError(
            f"--estimator {weighted[0]}: actions of {spec.id} are continuous and policies deterministic, so no logged "
            "action is ever exactly theirs and importance weights are undefined; use fqe or fqe_agents"
        )
    if "wis" in names and not known:
        raise UsageError(
            f"--estimator wis: dataset {dataset} does not say how likely the behaviour was to act as it did; "
            "wis_cloned learns that from the data"
        )


def usual(spec: EnvSpec, known: bool) -> list[str]:
    """The estimators taken where none is named: all that the data can answer, but d3rlpy's."""
    weighted = [] if not spec.discrete else ["wis" if known else "wis_cloned"]
    return ["fqe", "fqe_agents", *weighted, "behaviour"]


def resamples(episodes: int, device: torch.device) -> Tensor:
    """[X, E] float64: how often each of X resamples with replacement holds an episode."""
    generator = np.random.default_rng(stream_seed(0, "bootstrap", "ope"))
    drawn = generator.multinomial(episodes, np.full(episodes, 1 / episodes), size=RESAMPLES)
    return torch.from_numpy(drawn).to(device, torch.float64)


def _fit(question: Question) -> tuple[Logged, OpeConfig]:
    return question.logged, question.config


def _of_q(question: Question, found: QValues) -> Judgement:
    policies, episodes = found.value.shape
    checked = found.held_out if bool(found.held_out.any()) else torch.ones_like(found.held_out)
    truth = question.logged.returns(question.config.gamma)[checked].mean()
    details = {
        "behaviour_estimated": found.behaviour[checked].mean().expand(policies),
        "behaviour_earned": truth.expand(policies),
    }
    return Judgement(found.value.mean(1), found.value @ question.counts.T / episodes, details)


def _of_weights(question: Question, probability: Tensor) -> Judgement:
    found: Weighted = weighted_importance_sampling(
        question.logged, probability, question.counts, question.config
    )
    return Judgement(found.value, found.draws, {"effective_episodes": found.effective})
