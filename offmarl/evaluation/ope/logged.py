"""The data as off-policy evaluation sees it: what it earned, and what policies would have done in each of its rows.

Shapes: S policies, R rows, M transitions, E episodes, T time, N agents, O observation, A action dimensions, K choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from offmarl.data.table import Transitions
from offmarl.learners.base import ObservingLearner

ROWS = 8_192  # acted on at once


@dataclass(frozen=True)
class Logged:
    """A dataset beside S deterministic policies: their actions in every row, memory and all as the data went."""

    transitions: Transitions
    action: Tensor  # [S, R, N, A] float, or [S, R, N] int64
    probability: Tensor | None = None  # [R, N] of what the data did, under the behaviour, where it is known

    @property
    def n_policies(self) -> int:
        """S."""
        return len(self.action)

    @cached_property
    def reward(self) -> Tensor:
        """[R] float64: the team's reward over the number of agents, 0 in the last row of an episode."""
        reward = self.transitions.column("team_reward").double() / self.transitions.spec.n_agents
        reward[self.transitions.episode_start[1:] - 1] = 0
        return reward

    @cached_property
    def episode(self) -> Tensor:
        """[R] int64: the episode that a row belongs to."""
        start = self.transitions.episode_start
        return torch.repeat_interleave(torch.arange(len(start) - 1, device=start.device), start.diff())

    @cached_property
    def time(self) -> Tensor:
        """[R] int64: steps since the episode began."""
        rows = torch.arange(len(self.episode), device=self.episode.device)
        return rows - self.transitions.episode_start[self.episode]

    def returns(self, gamma: float = 1.0) -> Tensor:
        """[E] float64: what the data's episodes earned, mean over agents."""
        total = self.reward.new_zeros(self.transitions.n_episodes)
        return total.index_add_(0, self.episode, self.reward * gamma ** self.time.double())

    def padded(self, values: Tensor, fill: float) -> Tensor:
        """Lay rows [R] out as episodes [E, T], T the steps of the longest; `fill` after an episode's last step."""
        steps = int(self.transitions.episode_start.diff().max()) - 1
        rows = self.transitions.transition_rows
        laid = values.new_full((self.transitions.n_episodes, steps), fill)
        laid[self.episode[rows], self.time[rows]] = values[rows]
        return laid

    def of(self, policies: slice) -> "Logged":
        """Keep some of the policies."""
        return Logged(self.transitions, self.action[policies], self.probability)


@torch.no_grad()
def policy_actions(learner: ObservingLearner, transitions: Transitions) -> Tensor:
    """What the greedy policies of a learner's S seeds do in every row: [S, R, N, A] float, or [S, R, N] int64.

    A policy with a memory remembers the episode as the data went until that row. Dimensions of an action that an agent
    does not have are 0, as in the data.
    """
    S, rows = len(learner.seeds), len(transitions.row)
    obs = transitions.column("obs")
    legal = transitions.column("legal").bool() if "legal" in transitions.columns else None

    def seen(values: Tensor, index: Tensor) -> Tensor:
        return values[index].to(learner.device).expand(S, len(index), *values.shape[1:])

    widths = torch.tensor([len(names) for names in learner.spec.action_names], device=learner.device)
    used = torch.arange(learner.spec.action_dim, device=learner.device) < widths.unsqueeze(1)  # [N, A]
    actions: Tensor | None = None
    memory = torch.zeros(S, 0)
    for index, going_on in _steps(transitions, learner.memory_dim > 0):
        if going_on is None:
            memory = torch.zeros(
                S, len(index), learner.spec.n_agents, learner.memory_dim, device=learner.device
            )
        else:
            memory = memory[:, going_on]
        chosen, memory = learner.step(seen(obs, index), None if legal is None else seen(legal, index), memory)
        if not learner.spec.discrete:
            chosen = chosen * used
        if actions is None:
            actions = torch.zeros(S, rows, *chosen.shape[2:], dtype=chosen.dtype, device=transitions.device)
        actions[:, index] = chosen.to(transitions.device)
    assert actions is not None
    return actions


def _steps(transitions: Transitions, remembers: bool) -> Sequence[tuple[Tensor, Tensor | None]]:
    """Rows to act on at once, and which of those before them go on (None: all are first steps)."""
    start, device = transitions.episode_start, transitions.device
    if not remembers:
        return [(rows, None) for rows in torch.arange(len(transitions.row), device=device).split(ROWS)]
    steps: list[tuple[Tensor, Tensor | None]] = []
    for first, length in zip(start[:-1].split(ROWS // 8), start.diff().split(ROWS // 8), strict=True):
        steps.append((first, None))
        for t in range(1, int(length.max())):
            going_on = length > t
            steps.append((first[going_on] + t, going_on[length >= t]))
    return steps
