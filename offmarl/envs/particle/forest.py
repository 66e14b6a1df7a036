"""The papers' WORLD task: predators hunt among an obstacle, food and forests."""

from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.envs.particle.tag import ClassicHuntOptions, Hunt
from offmarl.envs.particle.task import Reading
from offmarl.envs.particle.world import Entity
from offmarl.settings import Natural


@dataclass(frozen=True)
class ForestOptions(ClassicHuntOptions):
    """Options of mpe_world_omar."""

    obstacles: Natural = 1
    food: Natural = 2
    forests: Natural = 2


class Forest(Hunt):
    """WORLD of OMAR and MACCA: all predators share +5 a contact and -0.1 for each one's distance to the prey.

    Everyone sees everything: forests hide nobody here, an agent only observes whether it is inside each (±1).
    Prey earn 2 for touching food, and 0.05 of the distance to the nearest food, whose sign is that of OMAR's
    release.
    """

    id = "mpe_world_omar"
    options_class = ForestOptions
    prey_size = 0.045
    accelerations = (9.0, 16.0)  # see TagOmar
    catch = 5.0
    prey_distance_reward = 0.1
    bound_penalty = 2.0
    shared_reward = True

    def __init__(
        self,
        options: ForestOptions,
        num_envs: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        movers = options.agents + options.prey
        scenery = [
            Entity(f"food_{i}", "food", 0.03, collides=False, reset_range=0.9) for i in range(options.food)
        ]
        scenery += [
            Entity(f"forest_{i}", "forest", 0.3, collides=False, reset_range=0.9)
            for i in range(options.forests)
        ]
        super().__init__(
            options, num_envs, device, dtype, tuple(scenery), extra_rows=movers * options.forests
        )
        end = len(self.world.entities)
        self._movers = slice(0, movers)
        self._forests = slice(end - options.forests, end)
        self._food = slice(end - options.forests - options.food, end - options.forests)
        self._forest_reach = self.world.reach(self._movers, self._forests)
        self._food_reach = self.world.reach(self._prey, self._food)

    def refresh(self) -> None:
        """Who is in which forest, ±1."""
        inside = self.world.distance(self._movers, self._forests) < self._forest_reach
        self.world.extra.copy_(inside.flatten(0, 1)).mul_(2.0).sub_(1.0)

    def observation(self, viewer: int) -> list[Reading]:
        """What mover `viewer` observes, in order."""
        forests = self.options.forests
        inside = [
            Reading(f"in_forest_{k}", self.world.extra_row(viewer * forests + k), self.world.zero_row)
            for k in range(forests)
        ]
        return super().observation(viewer) + inside

    def prey_reward(self, distance: Tensor, contact: Tensor) -> Tensor:
        """Of each prey [prey, E]."""
        reward = super().prey_reward(distance, contact)
        if not self.options.food:
            return reward
        to_food = self.world.distance(self._prey, self._food)
        return reward + 2 * (to_food < self._food_reach).sum(1) + 0.05 * to_food.amin(1)
