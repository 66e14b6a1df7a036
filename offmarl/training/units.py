"""Learners of many agents at play: on the map they were trained on, on its other side, or with more agents.

Shapes: S seeds, E copies of the environment, N agents, D state.
"""

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec, Frame
from offmarl.envs.magent_render import renderers
from offmarl.errors import UsageError
from offmarl.learners.meanfield.base import MeanFieldLearner


class UnitPolicy:
    """The policies of all S seeds of a learner in E copies of `spec`: the first E / S copies are the first seed's.

    With `index` every copy is that seed's. Greedy, but for a share `epsilon` of random choices. Raises `UsageError`
    for a task whose units the learner does not know.
    """

    def __init__(
        self, learner: MeanFieldLearner, spec: EnvSpec, index: int | None = None, epsilon: float = 0.0
    ) -> None:
        if not spec.rendered:
            raise UsageError(
                f"a policy of {learner.spec.id} cannot act in {spec.id}: it sees by rendering the state of a map"
            )
        self.spec, self.epsilon, self.index = spec, epsilon, index
        self.learner = learner
        self.n_seeds = len(learner.seeds)
        self._acting = learner if index is None else learner.of_seed(index)
        self._groups = list(renderers(spec).values())
        for renderer in self._groups:
            learner.require_known(renderer)

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        """Nothing is remembered between steps."""

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        """[E, N] int64. Raises `UsageError` if the number of copies is no multiple of S."""
        assert frame.state is not None
        learner = self._acting
        seeds = len(learner.seeds)
        if len(frame.state) % seeds:
            raise UsageError(
                f"{len(frame.state)} copies of the environment cannot be shared among {seeds} seeds"
            )
        state = frame.state.to(learner.device, torch.float32).unflatten(0, (seeds, -1))  # [S, E / S, D]
        generators = [generator] * seeds
        chosen = [learner.choose(state, renderer, self.epsilon, generators) for renderer in self._groups]
        return torch.cat(chosen, dim=2).flatten(0, 1).to(frame.obs.device)

    def annotations(self) -> dict[str, Tensor]:
        """No hidden facts."""
        return {}
