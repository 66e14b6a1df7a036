"""What weightings share that tell neighbours apart which did the same.

Shapes: S seeds, B units, P places of neighbours, A actions of neighbours, D state, H hidden.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from offmarl.envs.magent_render import Renderer
from offmarl.learners.meanfield.network import MeanFieldNetwork
from offmarl.learners.meanfield.q_learning import MeanFieldQ
from offmarl.learners.meanfield.seen import Neighbours, Seen, neighbours_of


class IndividualWeights(MeanFieldQ):
    """ã = Σ_k w_k a_k with a weight for every neighbour."""

    @abstractmethod
    def individual_weights(self, network: MeanFieldNetwork, z: Tensor, neighbours: Neighbours) -> Tensor:
        """Weigh every neighbour, w [S, B, P]: zero in empty places, else adding up to 1."""

    def look(
        self,
        renderer: Renderer,
        state: Tensor,
        unit: Tensor,
        generators: Sequence[torch.Generator],
        copy: Tensor | None = None,
    ) -> Seen:
        """What units see, and who their neighbours are."""
        seen = super().look(renderer, state, unit, generators, copy)
        neighbours = neighbours_of(renderer, state, unit, self.config.scope, self.config.radius, copy)
        return replace(seen, neighbours=neighbours)

    def mean_action(self, network: MeanFieldNetwork, z: Tensor, seen: Seen) -> Tensor:
        """ã [S, B, A]."""
        assert seen.neighbours is not None
        assert seen.counts is not None
        weights = self.individual_weights(network, z, seen.neighbours)
        return torch.zeros_like(seen.counts).scatter_add(2, seen.neighbours.action, weights)

    def neighbour_weights(self, network: MeanFieldNetwork, z: Tensor, seen: Seen) -> Tensor:
        """Weigh every neighbour, w [S, B, P]."""
        assert seen.neighbours is not None
        return self.individual_weights(network, z, seen.neighbours)
