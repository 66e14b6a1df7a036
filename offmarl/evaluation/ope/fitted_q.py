"""Fitted Q evaluation (Le et al. 2019, "Batch policy learning under constraints"), for teams.

    Q(s_t, a_t) ← R_t / N + γ Q'(s_t+1, π(s_t+1)),   V̂(π) = mean over initial states of Q(s_0, π(s_0))

with Q' a slowly following copy. Time since the episode began is part of what Q sees, and an episode of the data ends
where it ended, by the time limit as well: so γ = 1 estimates the very return that episodes are scored by.

For the team there is one Q of everyone's observations, or the state where the data has one, and the joint action. Per
agent Q is a sum over agents, Q = Σ_i Q_i(o_i, a_i), as in VDN (Sunehag et al. 2018): it cannot say what agents earn
by acting together, but knows far fewer joint actions to be wrong about.

All policies share initial weights and batches, so that they are compared on the same draws, and what is said of one
does not depend on which others are evaluated beside it.

Shapes: S policies, R rows, B batch, E episodes, N agents, O observation, A what an action takes as input, G networks
(S, or S x N per agent), I network inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from offmarl.data.table import Transitions
from offmarl.errors import DataError
from offmarl.evaluation.ope.config import OpeConfig
from offmarl.evaluation.ope.logged import Logged
from offmarl.learners.networks import StackedMLP
from offmarl.learners.optimiser import StackedAdam
from offmarl.policy import OBSERVATION_LIMIT
from offmarl.streams import stream
from offmarl.training.memory import keep_freed_memory
from offmarl.training.precision import matmul_precision

Scope = Literal["team", "agents"]
GRADIENT_CLIP = 10.0  # of a network's norm; targets have standard deviation 1


@dataclass(frozen=True)
class QValues:
    """What fitted Q functions say of the initial states, mean over agents."""

    value: Tensor  # [S, E] float64, of the policies
    behaviour: Tensor  # [E] of the data's own actions, whose truth is known
    held_out: Tensor  # [E] bool: episodes that took no part in the fit


class QInputs:
    """What Q functions see: one row of inputs for the team, or one for each agent; L of them (1 or N)."""

    def __init__(self, transitions: Transitions, time: Tensor, scope: Scope) -> None:
        self.spec, self.scope = transitions.spec, scope
        statistics = transitions.statistics()
        seen, mean, std = transitions.column("obs"), statistics.obs_mean, statistics.obs_std  # [R, N, O]
        if scope == "team":
            if statistics.state_mean is not None and statistics.state_std is not None:
                seen, mean, std = transitions.column("state"), statistics.state_mean, statistics.state_std
            seen, mean, std = seen.flatten(1).unsqueeze(1), mean.flatten(), std.flatten()  # [R, 1, ...]
        scale = torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 1.0)
        scaled = ((seen - mean) * scale).clamp(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)
        clock = (time / self.spec.horizon).float()[:, None, None].expand(*scaled.shape[:2], 1)
        self.seen = torch.cat([scaled, clock], dim=2)  # [R, L, I - A]
        choices = self.spec.action_dim
        self.action_width = choices * (self.spec.n_agents if scope == "team" else 1)

    @property
    def width(self) -> int:
        """I."""
        return self.seen.shape[2] + self.action_width

    @property
    def per_policy(self) -> int:
        """L, networks a policy."""
        return self.seen.shape[1]

    def of(self, rows: Tensor, action: Tensor) -> Tensor:
        """Inputs of rows [B] with actions [S, B, N(, A)]: [S * L, B, I]."""
        acted = F.one_hot(action, self.spec.action_dim).float() if self.spec.discrete else action
        if self.scope == "team":
            acted = acted.flatten(2).unsqueeze(2)  # [S, B, 1, N * A]
        seen = self.seen[rows].expand(len(action), -1, -1, -1)  # [S, B, L, I - A]
        return torch.cat([seen, acted], dim=3).transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def fitted_q(
    logged: Logged,
    config: OpeConfig,
    scope: Scope = "team",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> QValues:
    """Fit a Q function to each policy and evaluate it in the initial states.

    The data's own actions are one more policy: what is said of them on held-out episodes shows how far to trust the
    rest. Raises `DataError` where there are fewer than two episodes, or no reward ever differs from another.
    """
    transitions, device = logged.transitions, logged.transitions.device
    if device.type == "cpu":
        keep_freed_memory()
    with_data = torch.cat([logged.action, recorded_actions(transitions).unsqueeze(0)])  # [S + 1, R, N(, A)]
    policies, inputs = len(with_data), QInputs(transitions, logged.time, scope)
    held_out = hold_out(transitions.n_episodes, config.held_out).to(device)
    rows = transitions.transition_rows
    rows = rows[~held_out[logged.episode[rows]]]
    offset, scale = moments_to_go(logged, rows, config.gamma)
    reward = (logged.reward / scale).float()
    ended = transitions.column("done")
    lowest, highest = (bound / scale for bound in possible(logged))

    def total(output: Tensor) -> Tensor:
        """[S * L, B, 1] -> [S, B], in standard deviations around the mean return to go."""
        return output.squeeze(2).unflatten(0, (policies, -1)).sum(1)

    generator = stream(seed, "ope", "fitted_q", scope)
    one = StackedMLP.initialised((1, 1), 0, (inputs.width, *config.hidden, 1), [generator], device)
    G = policies * inputs.per_policy
    critic = StackedMLP((policies, inputs.per_policy), one.sizes, one.flat.expand(G, -1).clone())
    target_critic = critic.target()
    optimiser = StackedAdam(critic, config.learning_rate, GRADIENT_CLIP)
    recorded = with_data[-1:]
    with matmul_precision("auto", device):
        for step in range(1, config.steps + 1):
            drawn = rows[torch.randint(len(rows), (config.batch_size,), generator=generator).to(device)]
            successor = inputs.of(drawn + 1, with_data[:, drawn + 1])
            ahead = total(target_critic.outputs(successor)) + offset / scale
            following = config.gamma * torch.clamp(ahead, lowest[drawn + 1], highest[drawn + 1])
            target = reward[drawn] + (1 - ended[drawn]) * following - offset / scale  # [S, B]
            now = inputs.of(drawn, recorded[:, drawn])  # [L, B, I], the same for every policy
            passed = critic.forward(now.repeat(policies, 1, 1))
            error = (total(passed.output) - target) / config.batch_size
            passed.backward(
                error.repeat_interleave(inputs.per_policy, 0).unsqueeze(2), into=optimiser.gradient
            )
            optimiser.step()
            target_critic.follow(critic, config.tau)
            if progress is not None:
                progress(step, config.steps)
        first = transitions.episode_start[:-1]
        standardised = total(target_critic.outputs(inputs.of(first, with_data[:, first])))
        standardised = torch.clamp(standardised + offset / scale, lowest[first], highest[first])
    value = require_finite(standardised.double() * scale)
    return QValues(value[:-1], value[-1], held_out)


def require_finite(value: Tensor) -> Tensor:
    """Give the values back. Raises `DataError` where a fit diverged."""
    if not bool(value.isfinite().all()):
        raise DataError("fitted Q evaluation diverged: lower ope.learning_rate with --set")
    return value


def hold_out(episodes: int, share: float) -> Tensor:
    """[E] bool: evenly spread episodes, at most half of them, that take no part in a fit."""
    count = min(round(share * episodes), episodes // 2)
    chosen = torch.zeros(episodes, dtype=torch.bool)
    if count:
        chosen[torch.linspace(0, episodes - 1, count).round().long()] = True
    return chosen


def possible(logged: Logged) -> tuple[Tensor, Tensor]:
    """[R] twice: the least and the most that can be earned from each row on.

    The data's lowest and highest reward at every step that is left of the longest episode, or nothing where an end
    may come at once. Without such bounds the values of a policy that leaves the data can grow without end.
    """
    left = (logged.transitions.episode_start.diff().max() - 1 - logged.time).float()
    reward = logged.reward[logged.transitions.transition_rows].float()
    return left * reward.min().clamp(max=0), left * reward.max().clamp(min=0)


def moments_to_go(logged: Logged, rows: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what was earned from `rows` [B] on, float32.

    Raises `DataError` where there are fewer than two episodes, or nothing differs.
    """
    if logged.transitions.n_episodes < 2:
        raise DataError("fitted Q evaluation needs at least two episodes")
    to_go = returns_to_go(logged, gamma)[rows]
    mean, scale = to_go.mean().float(), to_go.std().float()
    if not scale > 0:
        raise DataError(
            "no two steps of the data differ in what is earned from there on: nothing to evaluate"
        )
    return mean, scale


def returns_to_go(logged: Logged, gamma: float) -> Tensor:
    """[R] float64: what the data's episodes earned from each row on, discounted from there."""
    laid = logged.padded(logged.reward, 0.0)  # [E, T]
    for t in range(laid.shape[1] - 2, -1, -1):
        laid[:, t] += gamma * laid[:, t + 1]
    rows = logged.transitions.transition_rows
    to_go = torch.zeros_like(logged.reward)
    to_go[rows] = laid[logged.episode[rows], logged.time[rows]]
    return to_go


def recorded_actions(transitions: Transitions) -> Tensor:
    """What the data did: [R, N, A] float, or [R, N] int64."""
    action = transitions.column("action")
    return action.long() if transitions.spec.discrete else action
