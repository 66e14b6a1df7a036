"""Frames of windows of unequal length as networks see them: without padding.

Episodes of battles end at very different times: of a batch padded to its longest, a third to a half is padding.

Shapes: S seeds, B windows, T steps, N agents, P the frames there are; G networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedFrames:
    """Inputs of networks, one step after the other: at each step those of the windows that still have a frame."""

    rows: Tensor  # [G, P or P * N, inputs]
    counts: Sequence[int]  # [T] windows with a frame at each step: the first so many, ever fewer of them
    windows: int  # B

    @property
    def row_counts(self) -> list[int]:
        """[T]: how many of `rows` belong to each step."""
        per_window = self.rows.shape[1] // sum(self.counts)
        return [count * per_window for count in self.counts]

    def __getitem__(self, steps: slice) -> "PackedFrames":
        """Take some consecutive steps."""
        before, kept = sum(self.row_counts[: steps.start or 0]), sum(self.row_counts[steps])
        return PackedFrames(self.rows[:, before : before + kept], self.counts[steps], self.windows)

    def padded(self, values: Tensor) -> Tensor:
        """[S, P, ...] -> [S, B, T, ...], zero where a window has no frame."""
        where = places(self.counts, self.windows, values.device)
        if where is not None:
            everything = values.new_zeros(len(values), len(self.counts) * self.windows, *values.shape[2:])
            values = everything.index_copy(1, where, values)
        return values.unflatten(1, (-1, self.windows)).transpose(1, 2)


def packed(values: Tensor, counts: Sequence[int]) -> Tensor:
    """[S, B, T, ...] -> [S, P, ...]: what the first `counts[t]` windows hold at each step t, step after step."""
    steps = values.transpose(1, 2).flatten(1, 2)  # [S, T*B, ...], no copy of batches as tables gather them
    where = places(counts, values.shape[1], values.device)
    return steps if where is None else steps.index_select(1, where)


def places(counts: Sequence[int], windows: int, device: torch.device) -> Tensor | None:
    """Where frames are among T * B, [P] int64; none where all of them are there."""
    if counts[-1] == windows:
        return None
    there = torch.arange(windows) < torch.tensor(counts).unsqueeze(1)  # [T, B]
    return there.flatten().nonzero().squeeze(1).to(device)
