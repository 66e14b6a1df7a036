"""Adam over the flat buffer of a stack of networks."""

from typing import Any, Generic

import torch
from torch import Tensor

from offmarl.learners.networks import Network


class StackedAdam(Generic[Network]):
    """One fused Adam step for all G networks, each network's gradient clipped by its own norm."""

    def __init__(self, network: Network, learning_rate: float, gradient_clip: float | None) -> None:
        self.network, self.learning_rate, self.gradient_clip = network, learning_rate, gradient_clip
        flat = network.flat
        self.gradient = network.like(torch.zeros_like(flat))  # of the step being prepared: add to it
        self._steps = torch.zeros((), device=flat.device)
        self._mean, self._square = torch.zeros_like(flat), torch.zeros_like(flat)

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
        self._steps += 1
        # What torch.optim.Adam(fused=True) calls, whose own work takes longer than this.
        torch._fused_adam_(
            [self.network.flat],
            [gradient],
            [self._mean],
            [self._square],
            [],
            [self._steps],
            lr=self.learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        gradient.zero_()
        return norm

    def minimise(self, loss: Tensor) -> Tensor:
        """One step down `loss`. Returns the gradient norms before clipping [G]."""
        self.accumulate(loss)
        return self.step()

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step count, for checkpoints."""
        return {"step": self._steps, "exp_avg": self._mean, "exp_avg_sq": self._square}


def minimise(loss: Tensor, *optimisers: StackedAdam[Any]) -> list[Tensor]:
    """One step of several stacks of networks down one loss. Returns the gradient norms before clipping, [G] each."""
    parameters = [optimiser.network.parameters() for optimiser in optimisers]
    gradients = iter(torch.autograd.grad(loss, [view for views in parameters for view in views]))
    for optimiser, views in zip(optimisers, parameters, strict=True):
        own = [next(gradients).flatten(1) for _ in views]
        optimiser.gradient.flat.add_(torch.cat(own, dim=1))
    return [optimiser.step() for optimiser in optimisers]
