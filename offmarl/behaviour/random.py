"""Acting at random: uniform over what is legal."""

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec, Frame


class RandomPolicy:
    """Uniform actions: in [-1, 1] per dimension, or uniform over the legal choices."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        """Nothing is remembered between steps."""

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        """[E, N, A] float in [-1, 1], or [E, N] int64."""
        copies, agents, _ = frame.obs.shape
        shape = (copies, agents, self.spec.action_dim)
        uniform = torch.rand(shape, generator=generator, device=frame.obs.device)  # [E, N, A]
        if not self.spec.discrete:
            return 2 * uniform - 1
        choosable = torch.tensor(
            [[k < len(names) for k in range(self.spec.action_dim)] for names in self.spec.action_names],
            device=frame.obs.device,
        )  # [N, K]
        allowed = choosable if frame.legal is None else frame.legal & choosable  # [E, N, K]
        return (uniform + 1).masked_fill(~allowed, 0.0).argmax(-1)  # largest of i.i.d. draws is uniform

    def annotations(self) -> dict[str, Tensor]:
        """No hidden facts."""
        return {}
