"""Predators hunt prey: mpe2's simple_tag, the papers' predator-prey, and one with individual rewards."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from offmarl.envs.particle.task import ParticleOptions, Reading, Task
from offmarl.envs.particle.world import Entity, Rules
from offmarl.settings import Count, Natural


@dataclass(frozen=True)
class HuntOptions(ParticleOptions):
    """Options of every task with predators and prey. `agents` counts the predators."""

    prey: Count = 1
    obstacles: Natural = 2
    background: Literal["prey", "predators", "none"] = "prey"  # who does not learn; none: both sides do
    prey_policy: str = "trained"  # of background prey: trained, flee, random or a .safetensors file
    predator_policy: str = "chase"  # of background predators: chase, random or a .safetensors file


@dataclass(frozen=True)
class ClassicHuntOptions(HuntOptions):
    """The same under the original integration order."""

    rules: Rules = "classic"


class Hunt(Task):
    """What tasks with predators and prey share; mpe2 calls predators `adversary_i` and prey `agent_i`.

    Observation: velocity, position, landmarks, the other movers, and the velocities of other prey.
    """

    options_class: ClassVar[type[ParticleOptions]] = HuntOptions
    predator_name: ClassVar[str] = "predator"
    prey_name: ClassVar[str] = "prey"
    prey_size: ClassVar[float] = 0.05
    accelerations: ClassVar[tuple[float, float]] = (3.0, 4.0)  # predators, prey
    catch: ClassVar[float] = 10.0  # what a contact is worth
    prey_distance_reward: ClassVar[float] = 0.0  # per predator and unit of distance
    bound_penalty: ClassVar[float] = 1.0
    arena: ClassVar[float] = 1.0  # half the side of the square in which episodes start and prey should stay

    def __init__(
        self,
        options: HuntOptions,
        num_envs: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        scenery: tuple[Entity, ...] = (),
        extra_rows: int = 0,
    ):
        predators, prey = options.agents, options.prey
        fast, faster = self.accelerations
        numbered = prey > 1 or self.prey_name != "prey"
        entities = [
            Entity(
                f"{self.predator_name}_{i}",
                "predator",
                0.075,
                movable=True,
                acceleration=fast,
                max_speed=1.0,
                reset_range=self.arena,
            )
            for i in range(predators)
        ]
        entities += [
            Entity(
                f"{self.prey_name}_{i}" if numbered else self.prey_name,
                "prey",
                self.prey_size,
                movable=True,
                acceleration=faster,
                max_speed=1.3,
                reset_range=self.arena,
            )
            for i in range(prey)
        ]
        entities += [
            Entity(f"landmark_{i}", "obstacle", 0.2, reset_range=0.9 * self.arena)
            for i in range(options.obstacles)
        ]
        super().__init__(options, [*entities, *scenery], num_envs, device, dtype, extra_rows)
        self._predators, self._prey = slice(0, predators), slice(predators, predators + prey)
        self._reach = self.world.reach(self._predators, self._prey)

    def sides(self) -> dict[str, tuple[int, ...]]:
        """Movers by role."""
        movers = range(self.world.movers)
        return {"predators": tuple(movers[self._predators]), "prey": tuple(movers[self._prey])}

    def observation(self, viewer: int) -> list[Reading]:
        """What mover `viewer` observes, in order."""
        readings = self.own_motion(viewer)
        for entity in range(self.world.movers, len(self.world.entities)):
            readings += self.relative(viewer, entity)
        for other in self.others(viewer):
            readings += self.relative(viewer, other)
        for other in self.others(viewer):
            if other >= self._prey.start:
                readings += self.velocity_of(other)
        return readings

    def reward(self) -> Tensor:
        """[V, E]."""
        distance = self.world.distance(self._predators, self._prey)  # [predators, prey, E]
        contact = distance < self._reach
        return torch.cat([self.predator_reward(distance, contact), self.prey_reward(distance, contact)])

    def predator_reward(self, distance: Tensor, contact: Tensor) -> Tensor:
        """Of each predator [predators, E]: here all are paid for every contact, and for being near."""
        nearness = -0.1 * distance.amin(1).sum(0)
        team = self.catch * contact.sum((0, 1)) + nearness
        return team.expand(distance.shape[0], -1)

    def prey_reward(self, distance: Tensor, contact: Tensor) -> Tensor:
        """Of each prey [prey, E]: caught, far from the predators, and outside the square of ±0.9."""
        reward = -self.catch * contact.sum(0) + self.prey_distance_reward * distance.sum(0)
        return reward - self.bound_penalty * outside(self.world.position[self._prey]).sum(1)


class Tag(Hunt):
    """simple_tag_v3 of mpe2: +10 for all predators whenever one of them touches a prey."""

    id = "mpe_tag"
    predator_name = "adversary"
    prey_name = "agent"
    shared_reward = True

    def predator_reward(self, distance: Tensor, contact: Tensor) -> Tensor:
        """Of each predator [predators, E]."""
        return (self.catch * contact.sum((0, 1))).to(distance.dtype).expand(distance.shape[0], -1)


class TagOmar(Hunt):
    """Predator-prey of OMAR and MACCA: predators share +10 a contact and -0.1 for each one's distance.

    A full action pushes with the square of the acceleration (9 and 16), as in the particle world that they
    use.
    """

    id = "mpe_tag_omar"
    options_class = ClassicHuntOptions
    accelerations = (9.0, 16.0)
    prey_distance_reward = 0.1
    shared_reward = True


class TagIndividual(Hunt):
    """Tag where each predator is paid for its own contacts and its own distance to the nearest prey."""

    id = "mpe_tag_individual"
    options_class = ClassicHuntOptions

    def predator_reward(self, distance: Tensor, contact: Tensor) -> Tensor:
        """Of each predator [predators, E]."""
        return self.catch * contact.sum(1) - 0.1 * distance.amin(1)

    def causes(self, mover: int) -> tuple[str, ...] | None:
        """The offset to the prey after the step; a prey's reward has no such short list."""
        if mover >= self._prey.start:
            return None
        entities = self.world.entities
        return tuple(
            f"next.{entities[mover].name}.{prey.name}.relative_{axis}"
            for prey in entities[self._prey]
            for axis in "xy"
        )


def outside(position: Tensor) -> Tensor:
    """How far each coordinate is out of bounds: 0 within 0.9, linear, exponential beyond 1, at most 10."""
    x = position.abs()
    return torch.where(x < 1.0, (10 * (x - 0.9)).clamp_(min=0.0), torch.exp(2 * x - 2).clamp_(max=10.0))
