"""Weighted importance sampling of whole teams, per decision (Precup, Sutton & Singh 2000).

    V̂(π) = Σ_t γ^t Σ_e w_et R_et / Σ_e w_et / N,   w_et = Π_{t' <= t} Π_i π_i(a_t'i) / b_i(a_t'i)

Episodes that have ended keep their last weight and earn nothing. Greedy policies are taken with a share of uniform
legal choices (`OpeConfig.smoothing`), and that policy is what is evaluated. Weights of teams are products over agents
and steps: how many episodes are left to judge by is part of the answer.

Shapes: S policies, R rows, E episodes, T time, N agents, K choices, X resamples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.errors import DataError
from offmarl.evaluation.ope.config import OpeConfig
from offmarl.evaluation.ope.logged import Logged
from offmarl.learners.base import USUAL_BATCH
from offmarl.learners.bc import DiscreteBC, DiscreteBCConfig
from offmarl.learners.legality import allowed, choices
from offmarl.streams import stream

EPISODES = 256  # looked at together


@dataclass(frozen=True)
class Weighted:
    """What importance sampling says, mean over agents."""

    value: Tensor  # [S] float64; NaN where no episode of the data could be the policy's
    draws: Tensor  # [S, X] the same of episodes drawn with replacement
    effective: Tensor  # [S] how many equally weighted episodes the last weights are worth (Kish)


@torch.no_grad()
def weighted_importance_sampling(
    logged: Logged, probability: Tensor, counts: Tensor, config: OpeConfig
) -> Weighted:
    """Weigh the data's episodes by how much likelier a policy is to make them than the behaviour was.

    `probability` [R, N] is the behaviour's, of what it did; `counts` [X, E] says how often each resample holds an
    episode. Raises `DataError` where it gave no chance to an action that it took.
    """
    rows = logged.transitions.transition_rows
    impossible = ~(probability[rows] > 0).all(1)
    if bool(impossible.any()):
        row = int(rows[impossible][0])
        raise DataError(
            f"behaviour_probability, row {row}: what the behaviour did had no chance of happening"
        )
    reward = logged.padded(logged.reward, 0.0)  # [E, T]
    reward = reward * config.gamma ** torch.arange(reward.shape[1], device=reward.device)
    value, draws, effective = [], [], []
    for policy in range(logged.n_policies):
        likely = evaluated_probability(logged, policy, config.smoothing)  # [R, N]
        ratio = likely.log() - probability.double().log()
        if "alive" in logged.transitions.columns:  # the dead decide nothing
            ratio = ratio.masked_fill(~logged.transitions.column("alive").bool(), 0.0)
        weight = logged.padded(ratio.sum(1), 0.0).cumsum(1)  # [E, T], of logarithms
        most = weight.amax(0, keepdim=True)
        weight = (weight - torch.where(most.isfinite(), most, 0.0)).exp()
        last = weight[:, -1]
        effective.append((last.sum().square() / last.square().sum()).nan_to_num(0.0))
        value.append(_per_decision(weight.sum(0), (weight * reward).sum(0)))
        draws.append(_per_decision(counts @ weight, counts @ (weight * reward)))
    return Weighted(torch.stack(value), torch.stack(draws), torch.stack(effective))


def _per_decision(weight: Tensor, earned: Tensor) -> Tensor:
    """Σ_t earned_t / weight_t over the last axis; NaN where at some time nothing has weight."""
    return (earned / weight).sum(-1)


def evaluated_probability(logged: Logged, policy: int, smoothing: float) -> Tensor:
    """[R, N] float64: how likely the smoothed greedy policy is to do what the data did."""
    transitions = logged.transitions
    agrees = logged.action[policy] == transitions.column("action").long()
    legal = transitions.column("legal").bool() if "legal" in transitions.columns else None
    open_to = allowed(legal, choices(transitions.spec, transitions.device))
    count = transitions.spec.action_dim if open_to is None else open_to.sum(-1).clamp(min=1)
    uniform = torch.ones_like(agrees, dtype=torch.float64) / count
    return (1 - smoothing) * agrees + smoothing * uniform


def cloned_probability(logged: Logged, config: OpeConfig, seed: int = 0) -> Tensor:
    """[R, N]: how likely a clone of the behaviour is to do what the data did, at least `least_probability`.

    Where nobody recorded how likely the behaviour was to act as it did, this stands in for it.
    """
    transitions = logged.transitions
    learner = DiscreteBC(transitions.spec, DiscreteBCConfig(), [seed], transitions.device)
    learner.observe(transitions.statistics())
    batch_size = USUAL_BATCH[learner.batch_unit]
    held = transitions.n_episodes if learner.batch_unit == "episodes" else len(transitions)
    generators = [stream(seed, "ope", "clone", device=transitions.device)]
    for _ in range(config.clone_steps):
        learner.update(learner.sample(transitions, min(batch_size, held), generators))
    return _likelihood(learner, logged).clamp(min=config.least_probability)


@torch.no_grad()
def _likelihood(clone: DiscreteBC, logged: Logged) -> Tensor:
    """[R, N]: how likely the clone is to do what the data did; 1 in the last row of an episode."""
    transitions = logged.transitions
    likelihood = torch.ones_like(transitions.column("action"))
    start = transitions.episode_start
    for first, last in zip(start[:-1].split(EPISODES), (start[1:] - 1).split(EPISODES), strict=True):
        time = torch.arange(int((last - first).max()) + 1, device=start.device)
        rows = torch.minimum(first.unsqueeze(1) + time, last.unsqueeze(1))  # [E, T + 1]
        taken = time[:-1] < (last - first).unsqueeze(1)  # [E, T]

        def windows(name: str, rows: Tensor = rows) -> Tensor:
            return transitions.column(name)[rows].unsqueeze(0)

        batch = EpisodeBatch(
            obs=windows("obs"),
            action=windows("action", rows[:, :-1]).long(),
            reward=windows("reward", rows[:, :-1]),
            terminated=windows("terminated", rows[:, :-1]),
            valid=taken.float().unsqueeze(0),
            legal=windows("legal").bool() if "legal" in transitions.columns else None,
        )
        likely = (-clone.error(batch)[0][0]).exp()  # [E, T, N]
        likelihood[rows[:, :-1][taken]] = likely[taken]
    return likelihood
