"""Many small networks as one: the parameters of G networks in one flat buffer, multi-layer perceptrons first of all.

Shapes: G networks (any number of leading axes, such as twins x seeds x agents), M rows or states and P parameters
each; K actions a state, O observation, A action dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Self, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from offmarl.native.library import rounds
from offmarl.native.perceptron import Perceptrons

# Below this many outputs a batched product of [M, inputs] and [inputs, outputs] wastes most of the unit on
# CPUs; its transpose is up to eight times faster (measured: 1,024 rows, 64 inputs, 1 to 8 outputs).
NARROW = 16

# How much of one layer's activations is worked on at once on CPUs, so that forward and backward pass find them in
# the cache. Measured for CQL (2 x 64, batch 1,024, 11 actions a state; 1 MiB of L2 for two cores, 32 MiB of L3): 45
# to 46 ms an update at 2 to 4 MiB, 50 at 1, 68 at 3/8, where the overhead of operations tells, and 82 in one piece.
TILE_BYTES = 3 * 1024 * 1024
# Compiled, a pass keeps to the cache by itself, and a tile is what lies between its forward and its backward half.
# Measured for the same on a Zen 4 core: 28.4 ms an update at 3/4 to 1.5 MiB, 30 at 3 and 31 at 3/8.
# In bfloat16, two bytes a number: 18 to 18.5 ms at 1.5 MiB, 18.3 to 19.4 at 2, 20 to 21 at 1.
COMPILED_TILE_BYTES = 3 * 512 * 1024


class Stacked:
    """G independent networks made of linear layers, all of one architecture, with the parameters of all in `flat`.

    `flat` [G, P] holds one network a row, so that an optimiser step, a gradient norm per network and a target
    update are one operation each; `weights` and `biases` are views of it.
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
        for _, inputs, outputs in self.layers(sizes):
            for views, rows in ((self.weights, inputs), (self.biases, 1)):
                view = flat[:, start : start + rows * outputs].view(len(flat), rows, outputs)
                views.append(view.detach().requires_grad_(trainable))
                start += rows * outputs

    @classmethod
    def layers(cls, sizes: Sequence[int]) -> list[tuple[str, int, int]]:
        """Give the name, inputs and outputs of each linear layer of a network of `sizes`: inputs, hidden, outputs."""
        return [(str(layer), *widths) for layer, widths in enumerate(pairwise(sizes))]

    @classmethod
    def initialised(
        cls,
        copies: tuple[int, ...],
        seed_axis: int,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        device: torch.device,
        last_bound: float | None = None,
    ) -> Self:
        """Networks with weights and biases uniform in ±1/√inputs, the last layer in ±`last_bound` if given.

        `generators` holds one generator a seed (on the CPU), and `copies[seed_axis]` is their number: what a
        seed draws depends on nothing but its own generator.
        """
        bounds = []
        for _, inputs, outputs in cls.layers(sizes):
            bounds.append(torch.full(((inputs + 1) * outputs,), inputs**-0.5))
        if last_bound is not None:
            bounds[-1].fill_(last_bound)
        bound = torch.cat(bounds)  # [P]
        others = copies[:seed_axis] + copies[seed_axis + 1 :]
        drawn = [torch.rand(*others, len(bound), generator=generator) for generator in generators]
        uniform = torch.stack(drawn, seed_axis)  # [*copies, P]
        flat = ((2 * uniform - 1) * bound).reshape(-1, len(bound)).to(device)
        return cls(copies, sizes, flat)

    def target(self) -> Self:
        """Make a copy that starts equal and receives no gradient."""
        return self.like(self.flat.clone())

    def like(self, flat: Tensor) -> Self:
        """View `flat` [G, P] as networks of this architecture, for what belongs to each weight, as gradients do."""
        return type(self)(self.copies, self.sizes, flat, trainable=False)

    def parameters(self) -> list[Tensor]:
        """List the trainable views in the order in which they lie in `flat`."""
        return [view for pair in zip(self.weights, self.biases, strict=True) for view in pair]

    def tensors(self) -> dict[str, Tensor]:
        """Every layer under its own name, with the leading axes spelled out, for checkpoints."""
        named = {}
        names = [name for name, _, _ in self.layers(self.sizes)]
        for name, weight, bias in zip(names, self.weights, self.biases, strict=True):
            named[f"{name}.weight"] = weight.detach().unflatten(0, self.copies)
            named[f"{name}.bias"] = bias.detach().squeeze(1).unflatten(0, self.copies)
        return named

    @torch.no_grad()
    def follow(self, source: "Stacked", tau: float) -> None:
        """Move every parameter the share `tau` of the way to `source` (Polyak averaging)."""
        self.flat.lerp_(source.flat, tau)


Network = TypeVar("Network", bound=Stacked)


class StackedMLP(Stacked):
    """G independent ReLU perceptrons, run by batched matrix products."""

    def __init__(
        self,
        copies: tuple[int, ...],
        sizes: Sequence[int],
        flat: Tensor,
        trainable: bool = True,
    ) -> None:
        super().__init__(copies, sizes, flat, trainable)
        self._parts: dict[tuple[int, int], StackedMLP] = {}

    def part(self, networks: slice) -> "StackedMLP":
        """View some of the G networks, sharing memory; autograd sees no parameters in it."""
        key = (networks.start, networks.stop)
        if key not in self._parts:
            flat = self.flat[networks]
            self._parts[key] = StackedMLP((len(flat),), self.sizes, flat, trainable=False)
        return self._parts[key]

    def first(self) -> "StackedMLP":
        """View the networks at index 0 of the leading axis, as `part` does."""
        return self.part(slice(0, prod(self.copies[1:])))

    def __call__(self, rows: Tensor) -> Tensor:
        """[G, M, inputs] -> [G, M, outputs], for autograd to differentiate."""
        if not torch.is_grad_enabled():
            return self.outputs(rows)
        hidden = torch.baddbmm(self.biases[0], rows, self.weights[0]).relu_()
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu_()
        weight, bias = self.weights[-1], self.biases[-1]
        if weight.shape[2] < NARROW:
            outputs: Tensor = _NarrowLayer.apply(hidden, weight, bias)
            return outputs
        return torch.baddbmm(bias, hidden, weight)

    @torch.no_grad()
    def outputs(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """Give the output alone of `forward`; either way activations stay in the cache of a CPU."""
        compiled = Perceptrons.of(self.sizes, self.flat)
        if compiled is not None:
            return CompiledPass(compiled, obs, action, keep=False).output
        shape = obs.shape[:2] if action is None else action.shape[:3]
        output = obs.new_empty(*shape, self.sizes[-1])
        for tile in tiles(self, obs.shape[1], 1 if action is None else action.shape[2]):
            acted = None if action is None else action[tile]
            output[tile] = self.part(tile[0])._forward(obs[tile], acted).output
        return output

    @torch.no_grad()
    def forward(self, obs: Tensor, action: Tensor | None = None) -> "Pass":
        """Keep the activations of a pass, for the gradient derived by hand.

        The output for [G, M, O] is [G, M, outputs]; with K actions in each state, [G, M, K, A], it is
        [G, M, K, outputs]. The first layer is linear, so the observation's share of it is computed once a state.
        """
        compiled = Perceptrons.of(self.sizes, self.flat)
        return self._forward(obs, action) if compiled is None else CompiledPass(compiled, obs, action)

    def _forward(self, obs: Tensor, action: Tensor | None) -> "TorchPass":
        G, M, width = obs.shape
        rows = None
        if action is None or action.shape[2] == 1:  # nothing to compute once
            obs = obs if action is None else torch.cat([obs, action.squeeze(2)], dim=2)
            hidden = [torch.baddbmm(self.biases[0], obs, self.weights[0]).relu_()]
        else:
            rows = action.reshape(G, -1, action.shape[3])
            once = torch.baddbmm(self.biases[0], obs, self.weights[0][:, :width])  # [G, M, H]
            each = torch.bmm(rows, self.weights[0][:, width:]).unflatten(1, (M, -1))
            hidden = [each.add_(once.unsqueeze(2)).relu_().flatten(1, 2)]
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            hidden.append(torch.baddbmm(bias, hidden[-1], weight).relu_())
        weight, bias = self.weights[-1], self.biases[-1]
        if weight.shape[2] < NARROW:
            output = torch.baddbmm(bias.mT, weight.mT, hidden[-1].mT).mT
        else:
            output = torch.baddbmm(bias, hidden[-1], weight)
        shape = (M,) if action is None else (M, action.shape[2])
        return TorchPass(self, width, obs, rows, hidden, output.unflatten(1, shape))


class Pass(ABC):
    """One forward pass, and its gradient, which can be asked for once: it uses the activations up."""

    output: Tensor  # [G, M, outputs] or [G, M, K, outputs]

    @abstractmethod
    def backward(self, gradient: Tensor, into: StackedMLP) -> None:
        """Add dL/dparameters to `into`, from dL/doutput, shaped like `output`."""

    @abstractmethod
    def to_action(self, gradient: Tensor) -> Tensor:
        """Go from dL/doutput to dL/daction, [G, M, K, A], leaving parameters alone."""


@dataclass
class TorchPass(Pass):
    """By PyTorch's operations, on any device."""

    network: StackedMLP
    obs_width: int  # O
    state: Tensor  # [G, M, O]; with one action a state [G, M, O + A]
    action: Tensor | None  # [G, M*K, A] where K > 1
    hidden: list[Tensor]  # [G, M*K, H] each, after ReLU
    output: Tensor  # [G, M, outputs] or [G, M, K, outputs]

    @torch.no_grad()
    def backward(self, gradient: Tensor, into: StackedMLP) -> None:
        """As `Pass`."""
        self._to_first_layer(gradient, into)

    def _to_first_layer(self, gradient: Tensor, into: StackedMLP | None) -> Tensor:
        """Give dL/d(first layer before its ReLU), [G, M*K, H]."""
        above = gradient.reshape(len(self.state), -1, gradient.shape[-1])
        weights = self.network.weights
        for layer in range(len(weights) - 1, 0, -1):
            below, width = self.hidden.pop(), above.shape[2]
            if into is not None:
                if width < NARROW:
                    into.weights[layer].add_(torch.bmm(above.mT, below).mT)
                else:
                    into.weights[layer].baddbmm_(below.mT, above)
                into.biases[layer].add_(above.sum(1, keepdim=True))
            above = above * weights[layer].mT if width == 1 else torch.bmm(above, weights[layer].mT)
            torch.ops.aten.threshold_backward.grad_input(
                above, below, 0, grad_input=above
            )  # of ReLU, in one pass
        if into is not None:
            once, width = above, self.state.shape[2]
            if self.action is not None:
                into.weights[0][:, width:].baddbmm_(self.action.mT, above)
                once = above.unflatten(1, (self.state.shape[1], -1)).sum(2)  # [G, M, H]
            into.weights[0][:, :width].baddbmm_(self.state.mT, once)
            into.biases[0].add_(once.sum(1, keepdim=True))
        return above

    @torch.no_grad()
    def to_action(self, gradient: Tensor) -> Tensor:
        """As `Pass`."""
        from_action = self.network.weights[0][:, self.obs_width :]
        above = self._to_first_layer(gradient, None)
        return torch.bmm(above, from_action.mT).unflatten(1, (self.state.shape[1], -1))


class CompiledPass(Pass):
    """By offmarl/native, on a CPU."""

    def __init__(self, compiled: Perceptrons, obs: Tensor, action: Tensor | None, keep: bool = True) -> None:
        self.compiled = compiled
        self.obs, self.action = obs, action  # [G, M, O], [G, M, K, A]
        output, self.activations = compiled.forward(obs, action, keep)
        self.output = output if action is None else output.unflatten(1, action.shape[1:3])

    @torch.no_grad()
    def backward(self, gradient: Tensor, into: StackedMLP) -> None:
        """As `Pass`."""
        assert self.activations is not None
        self.compiled.backward(self.obs, self.action, self.activations, gradient, into.flat, None)

    @torch.no_grad()
    def to_action(self, gradient: Tensor) -> Tensor:
        """As `Pass`."""
        assert self.activations is not None
        assert self.action is not None
        to_action = torch.empty_like(self.action, memory_format=torch.contiguous_format)
        self.compiled.backward(self.obs, self.action, self.activations, gradient, None, to_action)
        return to_action


def tiles(network: StackedMLP, states: int, actions: int) -> Iterator[tuple[slice, slice]]:
    """Split G networks x M states with K actions each into what is worked on at once: on a GPU everything."""
    networks = len(network.flat)
    if network.flat.device.type != "cpu":
        yield slice(0, networks), slice(0, states)
        return
    together = 1  # networks whose states may be split
    tile_bytes, number_bytes = TILE_BYTES, 4
    if Perceptrons.of(network.sizes, network.flat) is not None:  # threads take a network each
        together = min(torch.get_num_threads(), networks)
        tile_bytes, number_bytes = COMPILED_TILE_BYTES * together, 2 if rounds() else 4
    rows = tile_bytes // (number_bytes * max(network.sizes))
    some_networks = max(together, rows // max(1, states * actions))
    some_states = max(1, states if some_networks > together else rows // (together * actions))
    for first in range(0, networks, some_networks):
        for start in range(0, states, some_states):
            yield (
                slice(first, min(first + some_networks, networks)),
                slice(start, min(start + some_states, states)),
            )


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
