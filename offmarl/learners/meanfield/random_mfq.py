"""Random weights: the ablation of Ma et al. 2025, section V-A, which returns a random causal effect for each neighbour.

Shapes: S seeds, B units, M units that move, P places of neighbours, D state, H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offmarl.envs.magent_render import Renderer
from offmarl.learners.meanfield.individual import IndividualWeights
from offmarl.learners.meanfield.network import MeanFieldNetwork
from offmarl.learners.meanfield.q_learning import MeanFieldQConfig
from offmarl.learners.meanfield.seen import Neighbours, Seen
from offmarl.settings import Positive


@dataclass
class RandomMFQConfig(MeanFieldQConfig):
    """Settings of mean-field Q-learning with random weights."""

    epsilon: Positive = 0.01  # as CMFQ's


class RandomMFQ(IndividualWeights):
    """Causal effects drawn uniformly in [0, 1), anew whenever a unit looks."""

    config_class = RandomMFQConfig
    draws_weights = True
    config: RandomMFQConfig

    def look(
        self,
        renderer: Renderer,
        state: Tensor,
        unit: Tensor,
        generators: Sequence[torch.Generator],
        copy: Tensor | None = None,
    ) -> Seen:
        """What units see, who their neighbours are, and a draw for each."""
        seen = super().look(renderer, state, unit, generators, copy)
        assert seen.neighbours is not None
        # For all M, so that what a seed draws does not depend on the neighbours that units of other seeds have.
        shape = (unit.shape[1], renderer.grid.movers)
        draw = torch.stack([self._draw(torch.rand, shape, generator) for generator in generators])
        return replace(seen, neighbours=replace(seen.neighbours, draw=draw.gather(2, seen.neighbours.number)))

    def individual_weights(self, network: MeanFieldNetwork, z: Tensor, neighbours: Neighbours) -> Tensor:
        """(draw + ε) / Σ (draw + ε) (eq. 11): [S, B, P]."""
        assert neighbours.draw is not None
        essential = (neighbours.draw + self.config.epsilon) * neighbours.near
        return essential / essential.sum(2, keepdim=True).clamp(min=self.config.epsilon)
