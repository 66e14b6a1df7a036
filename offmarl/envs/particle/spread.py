"""Cooperative navigation: cover the landmarks, do not bump into each other."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from offmarl.envs.particle.task import ParticleOptions, Reading, Task
from offmarl.envs.particle.world import Entity, Rules
from offmarl.settings import Count, UpToOne


@dataclass(frozen=True)
class SpreadOptions(ParticleOptions):
    """Options of mpe_spread."""

    landmarks: Count | None = None  # as many as agents
    local_ratio: UpToOne = 0.5  # weight of an agent's own collisions, the rest is shared


@dataclass(frozen=True)
class SpreadOmarOptions(ParticleOptions):
    """Options of mpe_spread_omar."""

    rules: Rules = "classic"
    landmarks: Count | None = None  # as many as agents


class Spread(Task):
    """simple_spread_v3 of mpe2: -sum over landmarks of the nearest agent's distance, -1 a collision.

    Observation: velocity, position, landmarks, other agents, and two zeros an agent where messages would be.
    """

    id = "mpe_spread"
    options_class: ClassVar[type[ParticleOptions]] = SpreadOptions

    def __init__(
        self,
        options: SpreadOptions | SpreadOmarOptions,
        num_envs: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        reach = self.reset_range(options.agents)
        landmarks = options.landmarks or options.agents
        entities = [
            Entity(f"agent_{i}", "agent", size=0.15, movable=True, reset_range=reach)
            for i in range(options.agents)
        ]
        entities += [
            Entity(f"landmark_{i}", "landmark", size=0.05, collides=False, reset_range=reach)
            for i in range(landmarks)
        ]
        super().__init__(replace(options, landmarks=landmarks), entities, num_envs, device, dtype)
        self._agents, self._landmarks = slice(0, options.agents), slice(options.agents, None)
        self._reach = self.world.reach(self._agents, self._agents)

    def reset_range(self, agents: int) -> float:
        """Half the width of the square where episodes start."""
        return 1.0

    def observation(self, viewer: int) -> list[Reading]:
        """What mover `viewer` observes, in order."""
        readings = self.own_motion(viewer)
        for entity in range(self.world.movers, len(self.world.entities)):
            readings += self.relative(viewer, entity)
        for other in self.others(viewer):
            readings += self.relative(viewer, other)
        for other in self.others(viewer):
            readings += self.silence_of(other)
        return readings

    def nearest_distance(self) -> Tensor:
        """Of each landmark to its nearest agent, [landmarks, E]."""
        return self.world.distance(self._agents, self._landmarks).amin(0)

    def collisions(self) -> Tensor:
        """How many others each agent overlaps, [N, E]."""
        overlaps = self.world.distance(self._agents, self._agents) < self._reach
        return overlaps.sum(1) - 1  # an agent overlaps itself

    def reward(self) -> Tensor:
        """[V, E]."""
        shared = -self.nearest_distance().sum(0)
        own = -self.collisions()
        local_ratio = self.options.local_ratio
        return (1 - local_ratio) * shared + local_ratio * own


class SpreadOmar(Spread):
    """Cooperative navigation of OMAR and MACCA: sum over landmarks of min(1 / distance, 10), -5 a collision.

    Four agents or more start in a square twice as wide, as in OMAR's release.
    """

    id = "mpe_spread_omar"
    options_class = SpreadOmarOptions

    def reset_range(self, agents: int) -> float:
        """Half the width of the square where episodes start."""
        return 1.0 if agents <= 3 else 2.0

    def reward(self) -> Tensor:
        """[V, E]."""
        covered = self.nearest_distance().reciprocal_().clamp_(max=10.0).sum(0)
        return covered - 5 * self.collisions()
