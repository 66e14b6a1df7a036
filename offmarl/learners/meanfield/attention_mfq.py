"""Mean-field Q-learning with attention: neighbours count by how well what they are fits what a unit sees.

The baseline of Ma et al. 2025, after Wang et al. 2022 (Weighted mean field reinforcement learning for large-scale UAV
swarm confrontation): weights are attention scores between the central unit and its neighbours' attributes. Those are
here what the map shows of a neighbour (where it stands, its health, whose side it is on, what it did last), not its own
observation, which nobody else could know.
Shapes: S seeds, B units, P places of neighbours, A actions of neighbours, H hidden.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from offmarl.learners.meanfield.individual import IndividualWeights
from offmarl.learners.meanfield.network import ConvolutionalNetwork, MeanFieldNetwork, Sizes
from offmarl.learners.meanfield.seen import ATTRIBUTES, Neighbours

KEY = 32  # dimensions in which units and neighbours are compared; chosen, not varied


class _Attention(MeanFieldNetwork):
    """Asks by the state, answers by neighbours' attributes."""

    @classmethod
    def layers(cls, sizes: Sizes) -> list[tuple[str, int, int]]:
        """Those of the Q-network, the query of the state and the key of a neighbour."""
        *_, hidden, actions, _ = sizes
        return [*super().layers(sizes), ("query", hidden, KEY), ("key", ATTRIBUTES + actions, KEY)]

    def scores(self, z: Tensor, neighbours: Neighbours) -> Tensor:
        """Score every neighbour, q · k / √d: [G, B, P]."""
        weight, bias = self._linear["key"]  # [G, ATTRIBUTES + A, KEY], [G, 1, KEY]
        query = self.layer("query", z)  # [G, B, KEY]
        # Of a one-hot action the key takes one row: a product with the query for each action, then a look-up.
        by_action = torch.bmm(query, weight[:, ATTRIBUTES:].mT)  # [G, B, A]
        by_attribute = torch.bmm(query, weight[:, :ATTRIBUTES].mT)  # [G, B, ATTRIBUTES]
        score = (neighbours.attributes * by_attribute.unsqueeze(2)).sum(3) + torch.bmm(query, bias.mT)
        return (score + by_action.gather(2, neighbours.action)) * KEY**-0.5


class AttentionNetwork(_Attention):
    """With a perceptron for a trunk."""


class ConvolutionalAttentionNetwork(_Attention, ConvolutionalNetwork):
    """With a convolutional trunk."""


class AttentionMFQ(IndividualWeights):
    """w = softmax over neighbours of their scores, learnt with the Q-values."""

    trunks: ClassVar[Mapping[str, type[MeanFieldNetwork]]] = {
        "mlp": AttentionNetwork,
        "conv": ConvolutionalAttentionNetwork,
    }

    def individual_weights(self, network: MeanFieldNetwork, z: Tensor, neighbours: Neighbours) -> Tensor:
        """Softmax of the scores of those who are near: [S, B, P]."""
        assert isinstance(network, _Attention)
        scores = network.scores(z, neighbours).masked_fill(~neighbours.near, torch.finfo(z.dtype).min)
        return torch.softmax(scores, dim=2) * neighbours.near
