"""Many small networks as one: the parameters of G multi-layer perceptrons in one flat buffer.

Shapes: G networks (any number of leading axes, such as twins x seeds x agents), M rows and P parameters each.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# Below this many outputs a batched product of [M, inputs] and [inputs, outputs] wastes most of the unit on
# CPUs; its transpose is up to eight times faster (measured: 1,024 rows, 64 inputs, 1 to 8 outputs).
NARROW = 16


class StackedMLP:
    """G independent ReLU perceptrons of one architecture, run by batched matrix products.

    `flat` [G, P] holds everything, one network a row, so that an optimiser step, a gradient norm per network
    and a target update are one operation each; `weights` and `biases` are views of it.
    """

    def __init__(
        self,
        copies: tuple[int, ...],
        sizes: Sequence[int],
        flat: Tensor,
        trainable: bool = True,
    ) -> None:
        self.copies, self.sizes, self.flat = copies, tuple(sizes), flat
        self.weights: list[Tensor] = []  # [G, inputs, outputs] each
        self.biases: list[Tensor] = []  # [G, 1, outputs] each
        start = 0
        for inputs, outputs in pairwise(self.sizes):
            for views, rows in ((self.weights, inputs), (self.biases, 1)):
                view = flat[:, start : start + rows * outputs].view(-1, rows, outputs)
                views.append(view.detach().requires_grad_(trainable))
                start += rows * outputs

    @classmethod
    def initialised(
        cls,
        copies: tuple[int, ...],
        seed_axis: int,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        device: torch.device,
        last_bound: float | None = None,
    ) -> "StackedMLP":
        """Networks with weights and biases uniform in ±1/√inputs, the last layer in ±`last_bound` if given.

        `generators` holds one generator a seed (on the CPU), and `copies[seed_axis]` is their number: what a
        seed draws depends on nothing but its own generator.
        """
        bounds = []
        for inputs, outputs in pairwise(sizes):
            bounds.append(torch.full(((inputs + 1) * outputs,), inputs**-0.5))
        if last_bound is not None:
            bounds[-1].fill_(last_bound)
        bound = torch.cat(bounds)  # [P]
        others = copies[:seed_axis] + copies[seed_axis + 1 :]
        drawn = [torch.rand(*others, len(bound), generator=generator) for generator in generators]
        uniform = torch.stack(drawn, seed_axis)  # [*copies, P]
        flat = ((2 * uniform - 1) * bound).reshape(-1, len(bound)).to(device)
        return cls(copies, sizes, flat)

    def target(self) -> "StackedMLP":
        """Make a copy that starts equal and receives no gradient."""
        return StackedMLP(self.copies, self.sizes, self.flat.clone(), trainable=False)

    def first(self) -> "StackedMLP":
        """View the networks at index 0 of the leading axis, sharing memory, without gradient for weights."""
        rows = prod(self.copies[1:])
        return StackedMLP(self.copies[1:], self.sizes, self.flat[:rows], trainable=False)

    def parameters(self) -> list[Tensor]:
        """List the trainable views in the order in which they lie in `flat`."""
        return [view for pair in zip(self.weights, self.biases, strict=True) for view in pair]

    def tensors(self) -> dict[str, Tensor]:
        """Every layer under its own name, with the leading axes spelled out, for checkpoints."""
        named = {}
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            named[f"{layer}.weight"] = weight.detach().unflatten(0, self.copies)
            named[f"{layer}.bias"] = bias.detach().squeeze(1).unflatten(0, self.copies)
        return named

    @torch.no_grad()
    def follow(self, source: "StackedMLP", tau: float) -> None:
        """Move every parameter the share `tau` of the way to `source` (Polyak averaging)."""
        self.flat.lerp_(source.flat, tau)

    def __call__(self, rows: Tensor) -> Tensor:
        """[G, M, inputs] -> [G, M, outputs]."""
        return self._after_first(torch.baddbmm(self.biases[0], rows, self.weights[0]).relu_())

    def pairs(self, obs: Tensor, action: Tensor) -> Tensor:
        """Evaluate K actions in each state: [G, M, O] and [G, M, K, A] -> [G, M, K, outputs].

        The first layer is linear, so the observation's share of it is computed once per state.
        """
        G, M, K, A = action.shape
        from_obs, from_action = self.weights[0].split([obs.shape[-1], A], dim=1)
        once = torch.baddbmm(self.biases[0], obs, from_obs)  # [G, M, H]
        rows = torch.bmm(action.reshape(G, M * K, A), from_action).view(G, M, K, -1)
        # relu_ on the fresh sum, not on a view: autograd copies whole buffers for in-place writes to views.
        hidden = (rows + once.unsqueeze(2)).relu_().view(G, M * K, -1)
        return self._after_first(hidden).view(G, M, K, -1)

    def _after_first(self, hidden: Tensor) -> Tensor:
        """Run the layers after the first, given its activation."""
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu_()
        weight, bias = self.weights[-1], self.biases[-1]
        if weight.shape[2] < NARROW:
            outputs: Tensor = _NarrowLayer.apply(hidden, weight, bias)
            return outputs
        return torch.baddbmm(bias, hidden, weight)


class _NarrowLayer(torch.autograd.Function):
    """A linear layer of few outputs, in the order of products that is fast for it."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return torch.baddbmm(bias.mT, weight.mT, rows.mT).mT

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        to_rows, to_weight, to_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        one = weight.shape[2] == 1
        return (
            (gradient * weight.mT if one else torch.bmm(gradient, weight.mT)) if to_rows else None,
            torch.bmm(gradient.mT, rows).mT if to_weight else None,
            gradient.sum(1, keepdim=True) if to_bias else None,
        )
