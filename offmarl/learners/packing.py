"""What networks are shown of windows of episodes, without what teaches nothing: padding, and agents that have died.

Episodes of battles end at very different times and agents before them: of a batch padded to its longest, about half is
agents alive.

Shapes: G networks, T steps, M rows that a network unrolls, P of their T * M frames that are needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedFrames:
    """Inputs of networks, one step after the other: at each step those of the rows that are not over."""

    inputs: Tensor  # [G, P, inputs]
    # [T] rows at each step, ever fewer: a step carries on the first rows of the step before.
    counts: Sequence[int]
    members: int  # M
    # [G, P] int64: where frames are among the T * M; none where all are there, in order.
    places: Tensor | None = None

    def __getitem__(self, steps: slice) -> "PackedFrames":
        """Take some consecutive steps."""
        first = len(self.counts[: steps.start or 0])
        before, kept = sum(self.counts[:first]), sum(self.counts[steps])
        frames = slice(before, before + kept)
        places = None if self.places is None else self.places[:, frames] - first * self.members
        return PackedFrames(self.inputs[:, frames], self.counts[steps], self.members, places)

    def padded(self, values: Tensor) -> Tensor:
        """[G, P, ...] -> [G, T * M, ...], zero where a frame is missing."""
        if self.places is None:
            return values
        frames, networks = len(self.counts) * self.members, len(values)
        everything = values.new_zeros(networks * frames, *values.shape[2:])
        filled = everything.index_copy(0, _across_networks(self.places, frames), values.flatten(0, 1))
        return filled.unflatten(0, (networks, frames))


def packed(inputs: Tensor, needed: Tensor) -> PackedFrames:
    """Pack [G, T * M, inputs], of each row the frames that are `needed` from the first on: [G, M] int64."""
    G, M = needed.shape
    steps = inputs.shape[1] // M
    needed, order = needed.sort(dim=1, descending=True, stable=True)
    time = torch.arange(steps, device=needed.device)
    counts = (needed.unsqueeze(2) > time).sum(1).amax(0).tolist()  # [T]
    if counts[-1] == M:
        return PackedFrames(inputs, counts, M)
    there = torch.arange(M) < torch.tensor(counts).unsqueeze(1)  # [T, M]
    step, rank = (place.to(needed.device) for place in there.nonzero(as_tuple=True))  # [P] each
    places = order[:, rank] + step * M
    rows = inputs.flatten(0, 1).index_select(0, _across_networks(places, steps * M))
    return PackedFrames(rows.unflatten(0, (G, -1)), counts, M, places)


def _across_networks(places: Tensor, frames: int) -> Tensor:
    """Places [G, P] among the frames of each network -> [G * P] among those of all."""
    return (places + torch.arange(len(places), device=places.device).unsqueeze(1) * frames).flatten()
