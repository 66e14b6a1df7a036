"""Learners at play: the greedy policies of trained seeds, with whatever each remembers of its running episode.

Shapes: S seeds, E copies of the environment, N agents, A action dimensions, H memory.
"""

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec, Frame, Policy
from offmarl.errors import UsageError
from offmarl.learners.base import Learner, ObservingLearner
from offmarl.learners.meanfield.base import MeanFieldLearner
from offmarl.training.units import UnitPolicy


def acting(learner: Learner, spec: EnvSpec, index: int | None = None) -> Policy:
    """The greedy policies of all S seeds of any learner, or of one, in copies of `spec`.

    Raises `UsageError` for units that the learner does not know; whether observations fit is the caller's to check.
    """
    if isinstance(learner, MeanFieldLearner):
        return UnitPolicy(learner, spec, index)
    assert isinstance(learner, ObservingLearner), "there is no third sort"
    return LearnerPolicy(learner, index)


class LearnerPolicy:
    """The greedy policies of all S seeds of a learner in E copies: the first E / S copies are the first seed's.

    With `index` every copy is that seed's.
    """

    def __init__(self, learner: ObservingLearner, index: int | None = None) -> None:
        self.learner, self.index = learner, index
        self.spec, self.n_seeds = learner.spec, len(learner.seeds)
        self._memory: Tensor | None = None  # [S, E / S or E, N, H]

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        """Forget what was remembered in copies where `starting` [E] is true."""
        if self._memory is not None:
            over = self._per_seed(starting)
            # A policy may be taken from one environment to another, with another number of copies.
            same = over.shape == self._memory.shape[:2]
            self._memory = self._memory.masked_fill(over[..., None, None], 0.0) if same else None

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        """[E, N, A] float in [-1, 1], or [E, N] int64.

        Raises `UsageError` if the number of copies is no multiple of S.
        """
        obs = self._per_seed(frame.obs)
        if self._memory is None:
            self._memory = obs.new_zeros(*obs.shape[:3], self.learner.memory_dim)
        legal = None if frame.legal is None else self._per_seed(frame.legal)
        action, self._memory = self.learner.step(obs, legal, self._memory)
        chosen = action.flatten(0, 1) if self.index is None else action[self.index]
        return chosen.to(frame.obs.device)

    def _per_seed(self, values: Tensor) -> Tensor:
        """[E, ...] -> [S, E / S, ...], or with an index the same for all seeds [S, E, ...]."""
        values = values.to(self.learner.device)
        if self.index is not None:
            return values.expand(self.n_seeds, *values.shape)
        if len(values) % self.n_seeds:
            raise UsageError(
                f"{len(values)} copies of the environment cannot be shared among {self.n_seeds} seeds"
            )
        return values.unflatten(0, (self.n_seeds, -1))

    def annotations(self) -> dict[str, Tensor]:
        """No hidden facts."""
        return {}
