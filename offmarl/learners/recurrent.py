"""Networks with a memory: stacked gated recurrent units, unrolled over whole episodes.

Shapes: G networks, T time, M rows, H hidden; inside a recurrence features come before rows, [G, H, M], so that each
gate is one contiguous block.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from offmarl.learners.networks import Stacked


class StackedGRU(Stacked):
    """G independent networks: ReLU layers, a gated recurrent unit (Cho et al. 2014), a linear layer.

    Of the hidden `sizes` the last is that of the memory. With hidden (64, 64) this is the agent network of QMIX
    (Rashid et al. 2018). Gates as in `torch.nn.GRU`: reset, update, new.
    """

    @classmethod
    def layers(cls, sizes: Sequence[int]) -> list[tuple[str, int, int]]:
        """Name the layers in front, the two of the recurrent unit (of its input, of its memory) and the head."""
        front = [(str(layer), *widths) for layer, widths in enumerate(pairwise(sizes[:-2]))]
        below, memory, outputs = sizes[-3:]
        return [
            *front,
            ("input", below, 3 * memory),
            ("memory", memory, 3 * memory),
            ("head", memory, outputs),
        ]

    @property
    def memory_dim(self) -> int:
        """H, what a network carries from one step to the next."""
        return self.sizes[-2]

    def __call__(self, rows: Tensor) -> Tensor:
        """[G, T, M, inputs] -> [G, T, M, outputs], starting without memory, for autograd to differentiate."""
        G, _, M, _ = rows.shape
        return self.unroll(rows, rows.new_zeros(G, M, self.memory_dim))[0]

    def unroll(self, rows: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """[G, T, M, inputs] and the memory before them [G, M, H] -> [G, T, M, outputs] and the memory after them."""
        _, T, M, _ = rows.shape
        hidden = rows.flatten(1, 2)  # [G, T*M, inputs]
        for weight, bias in zip(self.weights[:-3], self.biases[:-3], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu_()
        features = hidden.unflatten(1, (T, M)).permute(1, 0, 3, 2)  # [T, G, H, M]
        of_input, of_memory, head = (weight.mT for weight in self.weights[-3:])
        input_bias, memory_bias, head_bias = (bias.mT for bias in self.biases[-3:])
        # What the input contributes does not wait for the recurrence: all steps in one product.
        gates = torch.matmul(of_input, features) + input_bias  # [T, G, 3H, M]
        hidden = _Recurrence.apply(gates, memory.mT.contiguous(), of_memory, memory_bias)  # [T, G, H, M]
        outputs = torch.matmul(head, hidden) + head_bias
        return outputs.permute(1, 0, 3, 2), hidden[-1].detach().mT


class _Recurrence(torch.autograd.Function):
    """h_t = (1 - z) n + z h_{t-1} over T steps, with the gradient derived by hand.

    Autograd would record ten small operations a step; measured, this halves the time of both directions.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, gates: Tensor, start: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Gates of the input [T, G, 3H, M], first memory [G, H, M], weight [G, 3H, H], bias [G, 3H, 1]."""
        T, G, _, M = gates.shape
        H = start.shape[1]
        hidden = gates.new_empty(T + 1, G, H, M)
        hidden[0] = start
        activated = torch.empty_like(gates)
        from_memory = torch.empty_like(gates)
        for t in range(T):
            given, active, own = gates[t], activated[t], from_memory[t]
            torch.baddbmm(bias, weight, hidden[t], out=own)
            torch.add(given[:, : 2 * H], own[:, : 2 * H], out=active[:, : 2 * H]).sigmoid_()
            reset, update, new = active[:, :H], active[:, H : 2 * H], active[:, 2 * H :]
            torch.addcmul(given[:, 2 * H :], reset, own[:, 2 * H :], out=new)
            new.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, which as such takes four times as long
            torch.lerp(new, hidden[t], update, out=hidden[t + 1])
        ctx.save_for_backward(hidden, activated, from_memory, weight)
        return hidden[1:]

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From dL/dh_t [T, G, H, M] to the gradients of what `forward` was given."""
        hidden, activated, from_memory, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        T, G, H, _ = gradient.shape
        reset, update, new = activated.split(H, dim=2)
        # dL/d(gates of the memory) is dL/dh times this, which is known for all steps at once.
        to_new = (1 - update).mul_(1 - new.square())
        slope = torch.empty_like(activated)  # [T, G, 3H, M]
        torch.mul(to_new, from_memory[:, :, 2 * H :], out=slope[:, :, :H]).mul_(reset).mul_(1 - reset)
        torch.sub(hidden[:-1], new, out=slope[:, :, H : 2 * H]).mul_(update).mul_(1 - update)
        torch.mul(to_new, reset, out=slope[:, :, 2 * H :])
        slope = slope.unflatten(2, (3, H))
        to_gates = torch.empty_like(slope)
        to_hidden = torch.empty_like(gradient)
        to_weight = torch.zeros_like(weight)
        later = torch.zeros_like(gradient[0])  # what reaches h_t from the steps after it
        for t in range(T - 1, -1, -1):
            here, own = to_hidden[t], to_gates[t]
            torch.add(gradient[t], later, out=here)
            torch.mul(slope[t], here.unsqueeze(1), out=own)
            own = own.flatten(1, 2)
            to_weight.baddbmm_(own, hidden[t].mT)
            later = torch.baddbmm(here * update[t], weight.mT, own)
        to_bias = to_gates.sum((0, 4)).view(G, 3 * H, 1)
        to_gates[:, :, 2] = to_hidden.mul_(to_new)  # the reset gate is not between the input and n
        return to_gates.flatten(2, 3), later, to_weight, to_bias
