"""Q(s, ·, ã) of a unit, split so that what depends on the state is computed once for all actions of its neighbours.

z = W_s trunk(s) + b is the state's part and e = W_a relu(W_e ã + b_e) + b_a the action's; Q = W_h relu(z + e) + b_h.
For the K one-hot actions e is a table, so that a counterfactual costs the last layer and no pass of the trunk.
Shapes: G networks, M units, O inputs (a view of side x side cells with C channels, then features), A actions of
neighbours, K choices, H hidden.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from offmarl.learners.networks import Stacked

EMBEDDING = 32  # of the mean action; MFQ's code (Yang et al. 2018) embeds it by layers of 64 and 32
FILTERS = 32  # of each 3 x 3 convolution, of which there are two, as in MFQ's code

Sizes = Sequence[int]  # side, C, features, hidden..., A (0: values do not depend on neighbours), K


class MeanFieldNetwork(Stacked):
    """G networks whose trunk is a perceptron. Values count `unit` for every 1 that is paid."""

    def __init__(self, copies: tuple[int, ...], sizes: Sizes, flat: Tensor, trainable: bool = True) -> None:
        super().__init__(copies, sizes, flat, trainable)
        self.side, self.channels = sizes[0], sizes[1]
        self.unit = flat.new_ones(1)
        names = [name for name, _, _ in self.layers(sizes)]
        self._linear = dict(zip(names, zip(self.weights, self.biases, strict=True), strict=True))
        self._trunk = [name for name in names if name.startswith("trunk")]

    @classmethod
    def layers(cls, sizes: Sizes) -> list[tuple[str, int, int]]:
        """The trunk, the state's part, the action's part and the head."""
        side, channels, features, *hidden, actions, choices = sizes
        widths = (cls.trunk_inputs(side, channels, features), *hidden)
        trunk = [(f"trunk_{k}", *pair) for k, pair in enumerate(pairwise(widths))]
        embedding = [("embedding", actions, EMBEDDING), ("action", EMBEDDING, hidden[-1])] if actions else []
        return [*trunk, ("state", hidden[-1], hidden[-1]), *embedding, ("head", hidden[-1], choices)]

    @staticmethod
    def trunk_inputs(side: int, channels: int, features: int) -> int:
        """O."""
        return side * side * channels + features

    def of_seed(self, index: int) -> Self:
        """The network of one seed, sharing memory; autograd sees no parameters in it."""
        alone = type(self)((1, 1), self.sizes, self.flat[index : index + 1], trainable=False)
        alone.unit = self.unit
        return alone

    def layer(self, name: str, rows: Tensor) -> Tensor:
        """Apply one linear layer: [G, M, inputs] -> [G, M, outputs]."""
        weight, bias = self._linear[name]
        return torch.baddbmm(bias, rows, weight)

    def state_part(self, inputs: Tensor) -> Tensor:
        """[G, M, O] -> z [G, M, H]."""
        hidden = inputs
        for name in self._trunk:
            hidden = self.layer(name, hidden).relu_()
        return self.layer("state", hidden)

    def action_part(self, action: Tensor) -> Tensor:
        """Mean actions [G, M, A] -> e [G, M, H]."""
        return self.layer("action", self.layer("embedding", action).relu_())

    def action_table(self) -> Tensor:
        """List e of the A one-hot actions, [G, A, H]."""
        actions = len(self._linear["embedding"][0][0])
        one_hots = torch.eye(actions, device=self.flat.device).expand(len(self.flat), -1, -1)
        return self.action_part(one_hots)

    def values(self, state_part: Tensor, action_part: Tensor | None = None) -> Tensor:
        """Q of all choices: [G, M, H] -> [G, M, K]."""
        merged = state_part if action_part is None else state_part + action_part
        return self.layer("head", merged.relu())

    def counterfactual_values(self, state_part: Tensor) -> Tensor:
        """Q where the merged agent does each of the A actions: [G, M, H] -> [G, K, M, A].

        Choices come first, the order of products that is fast for few of them.
        """
        merged = (state_part.unsqueeze(2) + self.action_table().unsqueeze(1)).relu_()  # [G, M, A, H]
        weight, bias = self._linear["head"]
        q = torch.baddbmm(bias.mT, weight.mT, merged.flatten(1, 2).mT)
        return q.unflatten(2, merged.shape[1:3])


class ConvolutionalNetwork(MeanFieldNetwork):
    """G networks whose trunk looks at the view by two 3 x 3 convolutions, as MFQ's code does."""

    @classmethod
    def layers(cls, sizes: Sizes) -> list[tuple[str, int, int]]:
        """Two convolutions (as products over patches), and what `MeanFieldNetwork` has."""
        channels = sizes[1]
        convolutions = [("conv_0", 9 * channels, FILTERS), ("conv_1", 9 * FILTERS, FILTERS)]
        return [*convolutions, *super().layers(sizes)]

    @staticmethod
    def trunk_inputs(side: int, channels: int, features: int) -> int:
        """What two convolutions without padding leave of the view, and the features."""
        return (side - 4) ** 2 * FILTERS + features

    def state_part(self, inputs: Tensor) -> Tensor:
        """[G, M, O] -> z [G, M, H]."""
        G, M, _ = inputs.shape
        cells = self.side**2 * self.channels
        seen = inputs[..., :cells].view(G, M, self.side, self.side, self.channels)
        image = seen.permute(1, 0, 4, 2, 3).flatten(1, 2)  # [M, G * C, side, side]
        for name in ("conv_0", "conv_1"):
            weight, bias = self._linear[name]  # [G, C * 9, filters], [G, 1, filters]
            kernel = weight.mT.reshape(G * FILTERS, -1, 3, 3)
            image = F.conv2d(image, kernel, bias.flatten(), groups=G).relu_()
        found = image.unflatten(1, (G, -1)).transpose(0, 1).flatten(2)  # [G, M, filters * cells]
        return super().state_part(torch.cat([found, inputs[..., cells:]], dim=2))
