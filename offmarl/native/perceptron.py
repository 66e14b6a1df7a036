"""Stacks of perceptrons through perceptron.c: tensors in, tensors out.

Shapes: G networks, M states, K actions a state, O observation, A action dimensions, H hidden units.
"""

import ctypes
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from offmarl.native.library import Library, in_use, rounds
from offmarl.native.threads import share_out

LAYERS_MOST = 8  # as in perceptron.c
NARROW_MOST = 15  # outputs, as in perceptron.c; a wider last layer is PyTorch's


class Perceptrons:
    """G networks of `sizes` (inputs, hidden, outputs) whose parameters are the rows of `flat` [G, P]."""

    def __init__(self, library: Library, sizes: Sequence[int], flat: Tensor) -> None:
        self._functions, self.sizes, self.flat = library.functions, tuple(sizes), flat

    @classmethod
    def of(cls, sizes: Sequence[int], flat: Tensor) -> "Perceptrons | None":
        """Take on networks if they are what perceptron.c can run, and if it is to be used."""
        if flat.device.type != "cpu" or flat.dtype != torch.float32 or flat.stride(1) != 1:
            return None
        hidden = sizes[1:-1]
        if not 1 <= len(hidden) <= LAYERS_MOST or sizes[-1] > NARROW_MOST:
            return None
        library = in_use()
        if library is None or any(width % library.lanes for width in hidden):
            return None
        return cls(library, sizes, flat)

    def forward(self, obs: Tensor, action: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
        """[G, M, O] and [G, M, K, A] -> output [G, M * K, outputs], and activations for `backward` if to be kept.

        Actions may lie in memory in any order of their axes.
        Raises `ValueError` for values of other shapes, types or devices than the networks'.
        """
        G, M, K, _ = shape = self._shape(obs, action)
        obs = _in_rows(obs)
        output = obs.new_empty(G, M * K, self.sizes[-1])
        numbers = G * M * K * sum(self.sizes[1:-1])
        kept = obs.new_empty(numbers // 2 if rounds() else numbers) if keep else None
        packed = self._packed(shape, obs, action, self.flat)
        arguments = (packed, self.flat.data_ptr(), *_pointers(obs, action, kept), output.data_ptr())
        self._run(self._functions.forward, arguments, G, M * K)
        return output, kept

    def backward(
        self,
        obs: Tensor,
        action: Tensor | None,
        kept: Tensor,
        gradient: Tensor,
        into: Tensor | None,
        to_action: Tensor | None,
    ) -> None:
        """From dL/doutput [G, M * K, outputs], add dL/dparameters to `into` [G, P]; write dL/daction [G, M, K, A]."""
        G, M, K, _ = shape = self._shape(obs, action)
        self._check("gradient", gradient, gradient.numel() == G * M * K * self.sizes[-1])
        obs, action = _in_rows(obs), None if action is None else _in_rows(action)
        packed = self._packed(shape, obs, action, self.flat if into is None else into)
        gradient = gradient.contiguous()
        arguments = (
            packed,
            self.flat.data_ptr(),
            *_pointers(obs, action, kept, gradient, into, to_action),
        )
        self._run(self._functions.backward, arguments, G, M * K)

    def _shape(self, obs: Tensor, action: Tensor | None) -> tuple[int, int, int, int]:
        """Give G, M, K, A. C would read beyond what is there, so all of it is checked here."""
        G, M, width = obs.shape
        K, A = (1, 0) if action is None else action.shape[2:]
        self._check("obs", obs, len(self.flat) == G and width + A == self.sizes[0])
        if action is not None:
            self._check("action", action, action.shape[:2] == (G, M))
        return G, M, K, A

    def _check(self, name: str, values: Tensor, fits: bool) -> None:
        if not fits or values.dtype != torch.float32 or values.device.type != "cpu":
            raise ValueError(
                f"{name} {tuple(values.shape)} of {values.dtype} on {values.device} does not fit {len(self.flat)} "
                f"float32 perceptrons of sizes {self.sizes} on the CPU"
            )

    def _packed(
        self, shape: tuple[int, ...], obs: Tensor, action: Tensor | None, gradients: Tensor
    ) -> ctypes.Array:
        """Lay out `Shape` of perceptron.c."""
        G, M, K, A = shape
        hidden = self.sizes[1:-1]
        strides = (
            self.flat.stride(0),
            gradients.stride(0),
            obs.stride(0),
            *((0,) * 4 if action is None else action.stride()),
        )
        values = (
            G,
            M,
            K,
            obs.shape[2],
            A,
            *strides,
            rounds(),
            len(hidden),
            *hidden,
            *[0] * (LAYERS_MOST - len(hidden)),
        )
        return (ctypes.c_int64 * (len(values) + 1))(*values, self.sizes[-1])

    def _run(
        self, function: Callable[..., int], arguments: Sequence[object], networks: int, rows: int
    ) -> None:
        work = networks * rows * sum(inputs * outputs for inputs, outputs in pairwise(self.sizes))
        share_out(function, arguments, networks, work)


def _in_rows(values: Tensor) -> Tensor:
    """Let the rows of each network lie one after another, as perceptron.c expects."""
    return values if values[0].is_contiguous() else values.contiguous()


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
