"""Every agent has a landmark of its own: individual rewards that add up to the team's."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from offmarl.envs.particle.task import ParticleOptions, Reading, Task
from offmarl.envs.particle.world import Entity, Rules
from offmarl.settings import Count


@dataclass(frozen=True)
class TargetsOptions(ParticleOptions):
    """Options of mpe_targets."""

    agents: Count = 8
    rules: Rules = "classic"
    size: Annotated[float, Field(gt=0)] = 0.05  # radius of an agent
    collides: bool = True  # agents push each other; no reward depends on it


class Targets(Task):
    """Agent i earns min(1 / distance, 10) for its own landmark, the only one that it observes."""

    id = "mpe_targets"
    options_class = TargetsOptions

    def __init__(
        self,
        options: TargetsOptions,
        num_envs: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        entities = [
            Entity(f"agent_{i}", "agent", size=options.size, movable=True, collides=options.collides)
            for i in range(options.agents)
        ]
        entities += [
            Entity(f"target_{i}", "landmark", size=0.05, collides=False) for i in range(options.agents)
        ]
        super().__init__(options, entities, num_envs, device, dtype)

    def observation(self, viewer: int) -> list[Reading]:
        """What mover `viewer` observes, in order."""
        readings = self.own_motion(viewer) + self.relative(viewer, self.world.movers + viewer, "target")
        for other in self.others(viewer):
            readings += self.relative(viewer, other)
        return readings

    def reward(self) -> Tensor:
        """[V, E]."""
        position = self.world.position
        offset = position[: self.world.movers] - position[self.world.movers :]
        return torch.hypot(offset[:, 0], offset[:, 1]).reciprocal_().clamp_(max=10.0)

    def causes(self, mover: int) -> tuple[str, ...]:
        """The offset to its own landmark after the step."""
        name = self.world.entities[mover].name
        return tuple(f"next.{name}.target.relative_{axis}" for axis in "xy")
