"""Batches of windows of episodes: what learners of choices are taught with, one step or whole episodes at a time.

Shapes: S seeds, B windows, T steps, N agents, O observation, K choices, D state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class EpisodeBatch:
    """B windows of T steps for each of S seeds, with the frame that follows the last step.

    Windows shorter than T end with steps that are not `valid`. There frames repeat the episode's last one, so
    that they stay something a network can be shown. Float fields are views of one gathered block: clone before
    writing to them.
    """

    obs: Tensor  # [S, B, T + 1, N, O]
    action: Tensor  # [S, B, T, N] int64
    reward: Tensor  # [S, B, T, N] what each agent is taught with
    terminated: Tensor  # [S, B, T] float, 1 where the future is worth nothing
    valid: Tensor  # [S, B, T] float, 1 for a step that was taken, 0 for padding
    state: Tensor | None = None  # [S, B, T + 1, D]
    legal: Tensor | None = None  # [S, B, T + 1, N, K] bool
    alive: Tensor | None = None  # [S, B, T + 1, N] bool

    @property
    def steps(self) -> int:
        """T."""
        return self.action.shape[2]

    @property
    def lifetimes(self) -> Tensor:
        """[S, B, N] int64: how many frames there are of an agent up to the last in which it is alive."""
        S, B, T = self.valid.shape
        there = torch.cat([self.valid.new_ones(S, B, 1), self.valid], 2).unsqueeze(3)  # [S, B, T + 1, 1]
        if self.alive is not None:
            there = there * self.alive
        number = torch.arange(1, T + 2, device=there.device).view(-1, 1)
        return (there * number).amax(2).long().expand(S, B, self.action.shape[3])

    @property
    def weight(self) -> Tensor:
        """[S, B, T, N] float: 1 where a living agent chose, 0 for the dead and for padding."""
        valid = self.valid.unsqueeze(3).expand(self.action.shape)
        return valid if self.alive is None else valid * self.alive[:, :, :-1]

    @property
    def lives_on(self) -> Tensor:
        """[S, B, T, N] float: 1 where the task goes on after the step and the agent is alive in it."""
        going_on = (1 - self.terminated).unsqueeze(3).expand(self.action.shape)
        return going_on if self.alive is None else going_on * self.alive[:, :, 1:]

    @property
    def legal_now(self) -> Tensor | None:
        """[S, B, T, N, K] bool: what was legal when the choices were made."""
        return None if self.legal is None else self.legal[:, :, :-1]

    @property
    def next_legal(self) -> Tensor | None:
        """[S, B, T, N, K] bool: what was legal in the frames that the choices led to."""
        return None if self.legal is None else self.legal[:, :, 1:]
