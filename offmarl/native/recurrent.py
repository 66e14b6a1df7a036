"""Gated recurrent units through recurrent.c: tensors in, tensors out.

Shapes: G networks, H hidden units; P rows of all steps, one step after the other, M of the first step.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from offmarl.native.library import Library, in_use
from offmarl.native.threads import share_out

STEP_ROWS = 96  # of a job, as in recurrent.c


class Gates(NamedTuple):
    """What a step's gates are, [G, P, H] each."""

    reset: Tensor
    update: Tensor
    new: Tensor
    own: Tensor  # the memory's share of the new gate before it is reset


class Recurrence:
    """G units with memory weights [G, H, 3H] (reset, update, new), unrolled over steps of `counts` rows."""

    def __init__(self, library: Library, weight: Tensor, counts: Sequence[int]) -> None:
        self._functions, self.weight, self.counts = library.functions, weight, counts

    @classmethod
    def of(cls, weight: Tensor, counts: Sequence[int]) -> "Recurrence | None":
        """Take on units if they are what recurrent.c can run, and if it is to be used."""
        if weight.device.type != "cpu" or weight.dtype != torch.float32 or not weight[0].is_contiguous():
            return None
        library = in_use()
        return None if library is None or weight.shape[1] % library.lanes else cls(library, weight, counts)

    def forward(self, bias: Tensor, start: Tensor, gates: Gates, hidden: Tensor) -> None:
        """From a memory [G, M, H] and what inputs add to the gates, in place to the gates, and to `hidden` [G, P, H].

        Of `bias` [G, 1, 3H] only the new gate's third is read: the others are part of what inputs add.
        """
        self._check([start], [*gates, hidden])
        self._call(self._functions.gru_forward, bias.stride(0), (self.weight, bias, start, *gates, hidden))

    def backward(
        self, start: Tensor, gates: Gates, hidden: Tensor, gradient: Tensor, into: Gates, to_start: Tensor
    ) -> None:
        """From dL/dhidden to the slopes by what inputs add (`own`: by the memory's share), and by the memory."""
        self._check([start, to_start], [*gates, hidden, gradient, *into])
        tensors = (self.weight, start, *gates, hidden, gradient, *into, to_start)
        self._call(self._functions.gru_backward, 0, tensors)

    def _check(self, memory: Sequence[Tensor], frames: Sequence[Tensor]) -> None:
        """C would read beyond what is there. Raises `ValueError`."""
        G, H, _ = self.weight.shape
        for rows, tensors in ((self.counts[0], memory), (sum(self.counts), frames)):
            for values in tensors:
                if (
                    values.shape != (G, rows, H)
                    or values.dtype != torch.float32
                    or not values.is_contiguous()
                ):
                    raise ValueError(
                        f"{tuple(values.shape)} of {values.dtype} is not [{G}, {rows}, {H}] of float32, in order"
                    )

    def _call(self, function: Callable[..., int], bias_stride: int, tensors: Sequence[Tensor]) -> None:
        G, H, _ = self.weight.shape
        steps, frames = len(self.counts), sum(self.counts)
        unroll = (G, self.counts[0], frames, steps, H, self.weight.stride(0), bias_stride)
        arguments = (
            (ctypes.c_int64 * len(unroll))(*unroll),
            (ctypes.c_int64 * steps)(*self.counts),
            *(values.data_ptr() for values in tensors),
        )
        blocks = -(-self.counts[0] // STEP_ROWS)
        share_out(function, arguments, G * blocks, 3 * G * frames * H * H)
