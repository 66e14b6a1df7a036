"""Predator-prey with many on both sides (Ma et al. 2025, CMFQ, appendix): the physics of tag in a larger square."""

from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.envs.particle.tag import ClassicHuntOptions, Hunt, outside
from offmarl.envs.particle.task import Actions
from offmarl.settings import Count, Natural


@dataclass(frozen=True)
class LargeHuntOptions(ClassicHuntOptions):
    """Options of mpe_predator_prey_large: the paper's numbers, and choices as in the paper."""

    agents: Count = 20
    prey: Count = 40
    obstacles: Natural = 20
    horizon: Count = 100  # the paper gives none; a predator crosses the square in 60 steps
    actions: Actions = "discrete"
    prey_policy: str = "flee"


class PredatorPreyLarge(Hunt):
    """Each predator earns 10 for every prey that it touches, each prey loses 10 for every predator that touches it.

    The paper draws an area for the prey without giving its size: here ±3, where bodies are about as dense as in tag.
    Who leaves it loses more the further out, at most 10 a step.
    """

    id = "mpe_predator_prey_large"
    options_class = LargeHuntOptions
    arena = 3.0
    most_penalty = 10.0

    def predator_reward(self, distance: Tensor, contact: Tensor) -> Tensor:
        """Of each predator [predators, E]."""
        return (self.catch * contact.sum(1)).to(distance.dtype)

    def prey_reward(self, distance: Tensor, contact: Tensor) -> Tensor:
        """Of each prey [prey, E]."""
        beyond = (self.world.position[self._prey].abs() - (self.arena - 1)).clamp(
            min=0
        )  # as if the edge were at 1
        penalty = torch.clamp(outside(beyond).sum(1), max=self.most_penalty)
        return -self.catch * contact.sum(0) - penalty
