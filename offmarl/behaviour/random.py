"""Acting at random: uniform over what is legal."""

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec, Frame


class RandomPolicy:
    """Uniform actions: in [-1, 1] per dimension, or uniform over the legal choices."""

    def __init__(self, spec: EnvSpec) -> None:
        self.discrete, self.width = spec.discrete, spec.action_dim
        self._choices: Tensor | None = None  # how many there were at the last `act`
        if spec.discrete:
            counts = torch.tensor([len(names) for names in spec.action_names])
            self.choosable = torch.arange(self.width) < counts.unsqueeze(1)  # [N, K]

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        """Nothing is remembered between steps."""

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        """[E, N, A] float in [-1, 1], or [E, N] int64."""
        copies, agents, _ = frame.obs.shape
        shape = (copies, agents, self.width)
        uniform = torch.rand(shape, generator=generator, device=frame.obs.device)  # [E, N, A]
        if not self.discrete:
            return 2 * uniform - 1
        choosable = self.choosable.to(frame.obs.device)
        allowed = choosable if frame.legal is None else frame.legal & choosable  # [E, N, K]
        self._choices = allowed.sum(-1).expand(copies, agents)  # [E, N]
        return (uniform + 1).masked_fill(~allowed, 0.0).argmax(-1)  # largest of i.i.d. draws is uniform

    def probability(self) -> Tensor | None:
        """Of what the last `act` chose: [E, N]; None where actions are continuous."""
        return None if self._choices is None else 1 / self._choices

    def annotations(self) -> dict[str, Tensor]:
        """No hidden facts."""
        return {}
