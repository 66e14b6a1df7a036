"""Networks with a memory: stacked gated recurrent units, unrolled over whole episodes.

Shapes: G networks, H hidden; P rows of all steps, one step after the other, M of the first step.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from offmarl.learners.networks import Stacked
from offmarl.native.recurrent import Gates, Recurrence

sigmoid_backward, tanh_backward = (
    torch.ops.aten.sigmoid_backward.grad_input,
    torch.ops.aten.tanh_backward.grad_input,
)


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

    def __call__(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Unroll steps of `counts` rows each, [G, P, inputs] -> [G, P, outputs], starting without memory."""
        return self.unroll(rows, rows.new_zeros(len(rows), counts[0], self.memory_dim), counts)[0]

    def unroll(self, rows: Tensor, memory: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Unroll [G, P, inputs] from a memory [G, M, H] -> [G, P, outputs] and the memory after the last step.

        P is the sum of `counts`, the rows of each step, M the first of them. Counts never grow: a step carries on the
        first rows of the step before it, and the others have come to their end.
        """
        hidden = rows
        for weight, bias in zip(self.weights[:-3], self.biases[:-3], strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu_()
        (of_input, of_memory, head), (input_bias, memory_bias, head_bias) = (
            self.weights[-3:],
            self.biases[-3:],
        )
        hidden = _Recurrence.apply(
            hidden, memory, of_input, input_bias, of_memory, memory_bias, tuple(counts)
        )
        return torch.baddbmm(head_bias, hidden, head), hidden[:, hidden.shape[1] - counts[-1] :].detach()


class _Recurrence(torch.autograd.Function):
    """h_t = (1 - z) n + z h_{t-1}, step after step, with the gradient derived by hand.

    Autograd would record ten small operations a step. Gates stay in blocks of their own, [G, P, H], of which a step
    is a contiguous piece, small enough for the cache.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        features: Tensor,
        start: Tensor,
        of_input: Tensor,
        input_bias: Tensor,
        of_memory: Tensor,
        memory_bias: Tensor,
        counts: tuple[int, ...],
    ) -> Tensor:
        """[G, P, I] and first memory [G, M, H] -> [G, P, H]; weights [G, I, 3H], [G, H, 3H], biases [G, 1, 3H]."""
        H = start.shape[2]
        given, bias = of_input.split(H, 2), input_bias.split(H, 2)
        own_bias = memory_bias.split(H, 2)
        # What the input contributes does not wait for the recurrence: all steps in one product.
        reset, update = (torch.baddbmm(bias[k] + own_bias[k], features, given[k]) for k in (0, 1))
        new = torch.baddbmm(bias[2], features, given[2])
        own, hidden = torch.empty_like(new), torch.empty_like(new)
        start = start.contiguous()
        gates, compiled = Gates(reset, update, new, own), Recurrence.of(of_memory, counts)
        if compiled is None:
            _unroll(of_memory, memory_bias, start, counts, gates, hidden)
        else:
            compiled.forward(memory_bias, start, gates, hidden)
        ctx.save_for_backward(features, start, of_input, of_memory, *gates, hidden)
        ctx.counts = counts  # type: ignore[attr-defined]
        return hidden

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """From dL/dh_t [G, P, H] to the gradients of what `forward` was given."""
        features, start, of_input, of_memory, *saved, hidden = ctx.saved_tensors  # type: ignore[attr-defined]
        counts, gates = ctx.counts, Gates(*saved)  # type: ignore[attr-defined]
        H = start.shape[2]
        before = [h[:, :count] for h, count in zip((start, *hidden.split(counts, 1)), counts, strict=False)]
        slopes, to_start = Gates(*(torch.empty_like(hidden) for _ in gates)), torch.empty_like(start)
        compiled = Recurrence.of(of_memory, counts)
        if compiled is None:
            _unroll_back(of_memory, counts, before, gates, gradient, slopes, to_start)
        else:
            compiled.backward(start, gates, hidden, gradient.contiguous(), slopes, to_start)
        previous, given = torch.cat(before, 1).mT, [gate.mT for gate in of_input.split(H, 2)]
        to_input = (slopes.reset, slopes.update, slopes.new)  # the reset gate is not between the input and n
        to_memory = (slopes.reset, slopes.update, slopes.own)
        to_features = torch.bmm(slopes.reset, given[0])
        to_features.baddbmm_(slopes.update, given[1]).baddbmm_(slopes.new, given[2])
        return (
            to_features,
            to_start,
            torch.cat([torch.bmm(features.mT, gate) for gate in to_input], 2),
            torch.cat([gate.sum(1, keepdim=True) for gate in to_input], 2),
            torch.cat([torch.bmm(previous, gate) for gate in to_memory], 2),
            torch.cat([gate.sum(1, keepdim=True) for gate in to_memory], 2),
            None,
        )


def _unroll(
    of_memory: Tensor, memory_bias: Tensor, start: Tensor, counts: Sequence[int], gates: Gates, hidden: Tensor
) -> None:
    """As `Recurrence.forward`, by PyTorch's operations, on any device."""
    H = start.shape[2]
    recalled, own_bias = [gate.contiguous() for gate in of_memory.split(H, 2)], memory_bias.split(H, 2)
    before = start
    for r, z, n, o, after in _steps(counts, *gates, hidden):
        before = before[:, : r.shape[1]]
        r.baddbmm_(before, recalled[0]).sigmoid_()
        z.baddbmm_(before, recalled[1]).sigmoid_()
        torch.baddbmm(own_bias[2], before, recalled[2], out=o)
        n.addcmul_(r, o)
        n.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, which as such takes four times as long
        before = torch.lerp(n, before, z, out=after)


def _unroll_back(
    of_memory: Tensor,
    counts: Sequence[int],
    before: Sequence[Tensor],
    gates: Gates,
    gradient: Tensor,
    slopes: Gates,
    to_start: Tensor,
) -> None:
    """As `Recurrence.backward`, by PyTorch's operations; `before`: what each step was given, [G, M, H] or fewer."""
    recalled = [gate.mT.contiguous() for gate in of_memory.split(to_start.shape[2], 2)]
    steps = _steps(counts, gradient, *gates, *slopes)
    later = gradient[:, :0]  # what reaches h_t from the steps after it
    for h, (here, r, z, n, o, dr, dz, dn, do) in zip(reversed(before), reversed(steps), strict=True):
        here = here.clone()
        here[:, : later.shape[1]] += later
        later = here * z
        tanh_backward(here - later, n, grad_input=dn)
        torch.mul(dn, r, out=do)
        sigmoid_backward(dn * o, r, grad_input=dr)
        sigmoid_backward(torch.sub(h, n).mul_(here), z, grad_input=dz)
        later.baddbmm_(dr, recalled[0]).baddbmm_(dz, recalled[1]).baddbmm_(do, recalled[2])
    to_start.copy_(later)


def _steps(counts: Sequence[int], *blocks: Tensor) -> list[tuple[Tensor, ...]]:
    """Cut blocks [G, P, H] into what belongs to each step."""
    return list(zip(*(block.split(counts, 1) for block in blocks), strict=True))
