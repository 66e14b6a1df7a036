"""Adam over the flat buffer of a stack of networks."""

from typing import Any, Generic

import torch
from torch import Tensor

from offmarl.learners.networks import Network


class StackedAdam(Generic[Network]):
    """One fused Adam step for all G networks, each network's gradient clipped by its own norm."""

    def __init__(self, network: Network, learning_rate: float, gradient_clip: float | None) -> None:
        self.network, self.gradient_clip = network, gradient_clip
        self._flat = network.flat
        self._flat.grad = torch.zeros_like(self._flat)
        self.gradient = network.like(self._flat.grad)  # of the step being prepared: add to it
        self._adam = torch.optim.Adam([self._flat], lr=learning_rate, fused=True)
        # Made now rather than at the first step, so that a checkpoint always holds the same tensors.
        self._adam.state[self._flat] = {
            "step": torch.zeros((), device=self._flat.device),
            "exp_avg": torch.zeros_like(self._flat),
            "exp_avg_sq": torch.zeros_like(self._flat),
        }

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of `loss` (a sum over networks), which autograd finds, to the step being prepared."""
        gradients = torch.autograd.grad(loss, self.network.parameters())
        self.gradient.flat.add_(torch.cat([part.flatten(1) for part in gradients], dim=1))

    @torch.no_grad()
    def step(self) -> Tensor:
        """One step down the accumulated gradient. Returns its norms before clipping [G]."""
        gradient = self.gradient.flat
        norm = torch.linalg.vector_norm(gradient, dim=1)
        if self.gradient_clip is not None:
            gradient.mul_((self.gradient_clip / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1))
        self._adam.step()
        gradient.zero_()
        return norm

    def minimise(self, loss: Tensor) -> Tensor:
        """One step down `loss`. Returns the gradient norms before clipping [G]."""
        self.accumulate(loss)
        return self.step()

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step count, for checkpoints."""
        return dict(self._adam.state[self._flat])


def minimise(loss: Tensor, *optimisers: StackedAdam[Any]) -> list[Tensor]:
    """One step of several stacks of networks down one loss. Returns the gradient norms before clipping, [G] each."""
    parameters = [optimiser.network.parameters() for optimiser in optimisers]
    gradients = iter(torch.autograd.grad(loss, [view for views in parameters for view in views]))
    for optimiser, views in zip(optimisers, parameters, strict=True):
        own = [next(gradients).flatten(1) for _ in views]
        optimiser.gradient.flat.add_(torch.cat(own, dim=1))
    return [optimiser.step() for optimiser in optimisers]
