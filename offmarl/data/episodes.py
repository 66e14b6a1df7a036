"""Batches of windows of episodes: what learners of choices are taught with, one step or whole episodes at a time.

Shapes: S seeds, B windows, T steps, N agents, O observation, K choices, D state.
"""

from dataclasses import dataclass
from itertools import accumulate

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
    def present(self) -> list[int]:
        """[T + 1]: how many windows, counted from the first, hold all that have a frame at a step or later.

        As few as can be where the longest windows come first, as tables draw them.
        """
        _, B, T = self.valid.shape
        if T == 1:
            return [B, B]
        place = torch.arange(1, B + 1, device=self.valid.device).unsqueeze(1)
        last = (self.valid.bool().any(0) * place).amax(0).tolist()  # [T] of those that take the step
        return [B, *reversed(list(accumulate(reversed(last), max)))]

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
