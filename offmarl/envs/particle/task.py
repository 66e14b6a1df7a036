"""What makes a particle world a task: who is in it, what each mover observes, what it is paid."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from offmarl.envs.particle.world import Entity, Rules, World
from offmarl.settings import Count

Actions = Literal["force", "buttons", "discrete"]


@dataclass(frozen=True)
class ParticleOptions:
    """Options that every particle task has."""

    agents: Count = 3  # learning agents; predators where there are predators
    horizon: Count = 25  # steps after which an episode is truncated
    actions: Actions = "force"  # 2-D force; or mpe2's five buttons, pressed continuously or one at a time
    rules: Rules = "pettingzoo"  # order of integration, see world.py


class Reading(NamedTuple):
    """One number of an observation: the difference of two rows of the world's table."""

    name: str
    plus: int
    minus: int


class Task(ABC):
    """One task in E copies. Movers are numbered as the entities are: they come first."""

    id: ClassVar[str]
    options_class: ClassVar[type[ParticleOptions]]
    shared_reward: ClassVar[bool] = False  # every learning agent is paid the same by construction

    def __init__(
        self,
        options: Any,
        entities: Sequence[Entity],
        num_envs: int,
        device: torch.device | str,
        dtype: torch.dtype,
        extra_rows: int = 0,
    ):
        self.options = options
        self.world = World(
            entities, num_envs, options.rules, extra_rows=extra_rows, device=device, dtype=dtype
        )

    @abstractmethod
    def observation(self, viewer: int) -> list[Reading]:
        """What mover `viewer` observes, in order."""

    @abstractmethod
    def reward(self) -> Tensor:
        """What each mover is paid for the world being as it is now, [V, E]."""

    def refresh(self) -> None:  # noqa: B027 (most tasks have no rows of their own)
        """Fill the task's own rows of the world's table."""

    def sides(self) -> dict[str, tuple[int, ...]]:
        """Movers by role: a partition of all of them, in order."""
        return {"agents": tuple(range(self.world.movers))}

    def causes(self, mover: int) -> tuple[str, ...] | None:
        """Names of the successor observation's numbers that decide the mover's reward, if they are known."""
        return None

    def own_motion(self, viewer: int) -> list[Reading]:
        """The viewer's velocity and position."""
        world = self.world
        rows = {"velocity": world.velocity_row, "position": world.position_row}
        return [
            Reading(f"{quantity}_{axis}", row(viewer, k), world.zero_row)
            for quantity, row in rows.items()
            for k, axis in enumerate("xy")
        ]

    def relative(self, viewer: int, entity: int, name: str | None = None) -> list[Reading]:
        """Where an entity is, seen from the viewer."""
        world = self.world
        name = name or world.entities[entity].name
        return [
            Reading(f"{name}.relative_{axis}", world.position_row(entity, k), world.position_row(viewer, k))
            for k, axis in enumerate("xy")
        ]

    def velocity_of(self, mover: int) -> list[Reading]:
        """How fast another mover is."""
        name = self.world.entities[mover].name
        return [
            Reading(f"{name}.velocity_{axis}", self.world.velocity_row(mover, k), self.world.zero_row)
            for k, axis in enumerate("xy")
        ]

    def silence_of(self, mover: int) -> list[Reading]:
        """The two zeros that mpe2 observes in place of a message from a mover who cannot speak."""
        name, zero = self.world.entities[mover].name, self.world.zero_row
        return [Reading(f"{name}.message_{k}", zero, zero) for k in range(2)]

    def others(self, viewer: int) -> list[int]:
        """All movers but the viewer, in order."""
        return [mover for mover in range(self.world.movers) if mover != viewer]
