"""The physics of the particle world, E copies at once.

Movers (agents, whether they learn or not) come first among the entities. Everything is kept with the copies
on the last axis, so that an operation on an entity is one contiguous sweep over all copies.
Shapes: E copies, M entities of which V move, C of which collide, P pairs that may touch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rules = Literal["pettingzoo", "classic"]

TIME_STEP = 0.1  # seconds
DAMPING = 0.25  # share of the velocity that is lost a step
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3  # how deep bodies sink before they push, in world units


@dataclass(frozen=True)
class Entity:
    """A disc in the plane."""

    name: str
    kind: str  # agent, predator, prey, landmark, obstacle, food or forest; for whoever draws it
    size: float  # radius
    movable: bool = False
    collides: bool = True
    acceleration: float = 5.0  # force of a full action (the mass is 1)
    max_speed: float = math.inf
    reset_range: float = 1.0  # episodes start with both coordinates uniform in ± this


class World:
    """Positions and velocities of every entity in E copies, and how they change.

    `rules` is the order of integration: `pettingzoo` moves with the old velocity and then changes the
    velocity (mpe2 1.1), `classic` changes the velocity first (Lowe et al. 2017, the original environments).

    `table` holds all that an observation can refer to, one row a quantity: velocities of movers, positions of
    entities, one row of zeros, then `extra_rows` that a task fills itself. `position` and `velocity` are
    views of it.
    """

    def __init__(
        self,
        entities: Sequence[Entity],
        num_envs: int,
        rules: Rules = "pettingzoo",
        *,
        extra_rows: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.entities = tuple(entities)
        self.rules = rules
        self.movers = sum(entity.movable for entity in self.entities)
        if not all(entity.movable for entity in self.entities[: self.movers]):
            raise ValueError("entities that move must come before those that do not")

        rows = 2 * self.movers + 2 * len(self.entities)
        self.table = torch.zeros(rows + 1 + extra_rows, num_envs, device=device, dtype=dtype)
        self.velocity = self.table[: 2 * self.movers].view(self.movers, 2, num_envs)  # [V, 2, E]
        self.position = self.table[2 * self.movers : rows].view(len(self.entities), 2, num_envs)  # [M, 2, E]
        self.extra = self.table[rows + 1 :]  # [extra_rows, E]
        self.zero_row = rows

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=device, dtype=dtype)

        self.acceleration = column([e.acceleration for e in self.entities[: self.movers]]).view(-1, 1, 1)
        self._reset_range = column([e.reset_range for e in self.entities]).view(-1, 1, 1)
        limits = [e.max_speed for e in self.entities[: self.movers]]
        self._max_speed = column(limits).view(-1, 1, 1) if min(limits) < math.inf else None
        self._zero = column([0.0])

        pairs = [
            (first, second)
            for first in range(self.movers)
            for second in range(first + 1, len(self.entities))
            if self.entities[first].collides and self.entities[second].collides
        ]
        self._first = torch.tensor([pair[0] for pair in pairs], device=device, dtype=torch.int64)  # [P]
        self._second = torch.tensor([pair[1] for pair in pairs], device=device, dtype=torch.int64)
        self._touch = column([self.entities[a].size + self.entities[b].size for a, b in pairs]).view(-1, 1)
        # What pushes each mover: rows of [push, -push, 0]. A gather and a sum, and not index_add_, because
        # that adds in an arbitrary order on a GPU.
        pushes: list[list[int]] = [[] for _ in range(self.movers)]
        for pair, (first, second) in enumerate(pairs):
            pushes[first].append(pair)
            if second < self.movers:
                pushes[second].append(len(pairs) + pair)
        self._most_pushes = max(len(rows) for rows in pushes)
        padded = [rows + [2 * len(pairs)] * (self._most_pushes - len(rows)) for rows in pushes]
        self._pushes = torch.tensor(padded, device=device, dtype=torch.int64).flatten()  # [V * most]

    @property
    def num_envs(self) -> int:
        """E."""
        return self.table.shape[1]

    def velocity_row(self, mover: int, axis: int) -> int:
        """Row of `table` with a mover's velocity along x (0) or y (1)."""
        return 2 * mover + axis

    def position_row(self, entity: int, axis: int) -> int:
        """Row of `table` with an entity's position along x (0) or y (1)."""
        return 2 * self.movers + 2 * entity + axis

    def extra_row(self, index: int) -> int:
        """Row of `table` that the task fills itself."""
        return self.zero_row + 1 + index

    def reset(self, generator: torch.Generator, where: Tensor | None = None) -> None:
        """Draw new positions and stop everything, in all copies or in those where `where` [E] holds."""
        drawn = torch.rand(
            self.position.shape, generator=generator, device=self.table.device, dtype=self.table.dtype
        )
        drawn = (2 * drawn - 1) * self._reset_range
        if where is None:
            self.position.copy_(drawn)
            self.velocity.zero_()
        else:
            torch.where(where, drawn, self.position, out=self.position)
            self.velocity.masked_fill_(where, 0.0)

    def step(self, control: Tensor) -> None:
        """Advance by one time step; `control` [V, 2, E] in [-1, 1] is scaled by each mover's acceleration."""
        force = self._contacts(control * self.acceleration)
        moving = self.position[: self.movers]
        if self.rules == "pettingzoo":
            moving.add_(self.velocity, alpha=TIME_STEP)
        self.velocity.mul_(1 - DAMPING).add_(force, alpha=TIME_STEP)
        if self._max_speed is not None:
            speed = torch.hypot(self.velocity[:, 0], self.velocity[:, 1]).unsqueeze(1)
            self.velocity.mul_((self._max_speed / speed).clamp_(max=1.0))
        if self.rules == "classic":
            moving.add_(self.velocity, alpha=TIME_STEP)

    def _contacts(self, force: Tensor) -> Tensor:
        """`force` [V, 2, E] and what bodies that touch add to it: a soft wall that yields over the margin."""
        if not len(self._first):
            return force
        offset = self.position.index_select(0, self._first) - self.position.index_select(
            0, self._second
        )  # [P, 2, E]
        distance = torch.hypot(offset[:, 0], offset[:, 1])  # [P, E]
        depth = torch.logaddexp((self._touch - distance).div_(CONTACT_MARGIN), self._zero).mul_(
            CONTACT_MARGIN
        )
        strength = depth.mul_(CONTACT_FORCE).div_(distance.clamp_min_(1e-12))
        push = offset.mul_(strength.unsqueeze(1))
        both = torch.cat([push, -push, torch.zeros_like(push[:1])])
        received = both.index_select(0, self._pushes).view(self.movers, self._most_pushes, 2, -1)
        return force.add_(received.sum(1))

    def distance(self, first: slice, second: slice) -> Tensor:
        """Distances between two runs of entities, [first, second, E]."""
        a, b = self.position[first], self.position[second]
        return torch.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1])

    def reach(self, first: slice, second: slice) -> Tensor:
        """Distances below which two runs of entities overlap, [first, second, 1]."""
        sizes = [[a.size + b.size for b in self.entities[second]] for a in self.entities[first]]
        return torch.tensor(sizes, device=self.table.device, dtype=self.table.dtype).unsqueeze(-1)
