"""The rules of the MAgent tasks as numbers: who is on the map, where, what they see and what they may do.

Follows magent2 0.3.4 (Zheng et al. 2018, MAgent): battle_v4, adversarial_pursuit_v4 and gather_v5. Imports neither
torch nor magent2, so that a worker starts quickly and a dataset can be read where magent2 is missing.
Shapes: U units, of which the first M move (the rest is food), W inner walls, D state, H x H a view, C its channels,
F features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offmarl.errors import UsageError

VERSION = "0.3.4"  # of magent2, whose rules these are
GAP = 3  # free columns between the middle of a battle's map and each army
WALL_SHARE = 0.03  # of a pursuit's cells
PREDATOR_SHARE = 0.0125
CROWDED = 0.25  # more of the inner map than this is not filled with bodies placed at random
PATTERN = 53  # cells along a side of the food pattern in the middle of a gather map
LEAST_GATHER_MAP = 80  # on smaller ones agents would start on the pattern
NO_ACTION = -1  # last action of a unit that has not acted yet, or is dead


def circle(radius: float, inner: float = 0.0, even: bool = False) -> NDArray[np.bool_]:
    """Cells of a square [H, H] (row, column) within `radius` of its middle and not nearer than `inner`.

    `even` squares have their middle between cells, where bodies of even width have it.
    """
    middle = int(radius)
    side = 2 * middle + (0 if even else 1)
    offset = np.abs(np.arange(side) - middle + (0.5 if even else 0.0))
    distance = np.hypot(offset[:, None], offset[None, :])
    eps = 1e-8
    return np.asarray((distance < radius + eps) & (distance > inner - eps))


def _offsets(cells: NDArray[np.bool_], radius: float) -> list[tuple[int, int]]:
    """(dx, dy) of each cell, in the order in which magent2 numbers actions."""
    rows, columns = np.nonzero(cells)
    return [
        (int(column) - int(radius), int(row) - int(radius)) for row, column in zip(rows, columns, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Kind:
    """A type of unit; `attributes` are what magent2 is told beside the ranges."""

    name: str
    view_radius: float
    speed: float
    attack_radius: float
    health: float
    body: int = 1  # cells along a side
    attributes: dict[str, float] = field(default_factory=dict)

    @cached_property
    def view(self) -> NDArray[np.bool_]:
        """What is seen of the square around the unit, [H, H]."""
        return circle(self.view_radius, even=self.body % 2 == 0)

    @cached_property
    def actions(self) -> tuple[str, ...]:
        """Moves, then attacks, by the cells they aim at."""
        moves = _offsets(circle(self.speed), self.speed)
        reach = circle(self.attack_radius, self.body / 2, even=self.body % 2 == 0)
        attacks = _offsets(reach, self.attack_radius) if reach.any() else []
        return (
            *(f"move_{dx:+d}_{dy:+d}" for dx, dy in moves),
            *(f"attack_{dx:+d}_{dy:+d}" for dx, dy in attacks),
        )


@dataclass(frozen=True, eq=False)
class Group:
    """Units of one kind that magent2 keeps together; `places` [units, 2] are x, y, None: drawn at random."""

    name: str
    kind: Kind
    count: int
    places: NDArray[np.int32] | None = None
    moves: bool = True  # food does not


@dataclass(frozen=True, eq=False)
class Hit:
    """Who is paid what when a unit of one group hits one of another and does not kill it."""

    attacker: int
    victim: int
    attacker_reward: float
    victim_reward: float = 0.0


@dataclass(frozen=True, eq=False)
class Grid:
    """All of a task: the map, its groups in the order in which their units are numbered, its rules.

    `handles` are magent2's own numbers of the groups: they decide the order of channels in a view.
    """

    task: str
    map_size: int
    groups: tuple[Group, ...]
    handles: tuple[int, ...]
    hits: tuple[Hit, ...]  # by position in `groups`
    walls: int = 0  # W, drawn at random inside the map
    minimap: bool = True
    id_bits: int = 10  # of a unit's number, as features

    @property
    def units(self) -> int:
        """U."""
        return sum(group.count for group in self.groups)

    @property
    def movers(self) -> int:
        """M."""
        return sum(group.count for group in self.groups if group.moves)

    def slots(self, group: int) -> slice:
        """The units of a group, by number."""
        start = sum(one.count for one in self.groups[:group])
        return slice(start, start + self.groups[group].count)

    def number(self, name: str) -> int:
        """Position of the group called `name`."""
        return [group.name for group in self.groups].index(name)

    def unit_names(self) -> tuple[str, ...]:
        """`red_0`, `red_1`, ... of all U units."""
        return tuple(f"{group.name}_{i}" for group in self.groups for i in range(group.count))

    # The state: everything that a view depends on, and no more. A unit is alive where its health is above zero:
    # magent2 lets one live with exactly zero only between an attack and the recovery of the same step.
    @cached_property
    def columns(self) -> dict[str, slice]:
        """Where each quantity of the units lies in a state [D]: x, y, action, reward [M], health [U], walls [W]."""
        widths = dict.fromkeys(("x", "y", "action", "reward"), self.movers)
        widths |= {"health": self.units, "wall_x": self.walls, "wall_y": self.walls}
        bounds = np.cumsum([0, *widths.values()]).tolist()
        return {name: slice(a, b) for name, a, b in zip(widths, bounds[:-1], bounds[1:], strict=True)}

    @property
    def state_dim(self) -> int:
        """D."""
        return self.columns["wall_y"].stop

    def state_names(self) -> tuple[str, ...]:
        """D names: `red_0.x`, ..."""
        units = self.unit_names()
        names = [
            f"{unit}.{what}"
            for what in ("x", "y", "last_action", "last_reward")
            for unit in units[: self.movers]
        ]
        names += [f"{unit}.health" for unit in units]
        return (*names, *(f"wall_{k}.{axis}" for axis in "xy" for k in range(self.walls)))

    @property
    def channels_per_group(self) -> int:
        """Presence, health, and its share of the minimap's cells."""
        return 3 if self.minimap else 2

    def channel(self, viewer: int, seen: int) -> int:
        """First channel of the group `seen` in the view of a unit of `viewer`: one's own group comes first."""
        distance = (self.handles[seen] - self.handles[viewer]) % len(self.groups)
        return 1 + self.channels_per_group * distance

    @property
    def channels(self) -> int:
        """C: walls, then those of the groups."""
        return 1 + self.channels_per_group * len(self.groups)

    def feature_names(self, viewer: int) -> tuple[str, ...]:
        """F names: bits of the unit's number, its last action, its last reward, and its place on the minimap."""
        bits = [f"id_bit_{k}" for k in range(self.id_bits)]
        last = [f"last_{action}" for action in self.groups[viewer].kind.actions]
        place = ["position_x", "position_y"] if self.minimap else []
        return (*bits, *last, "last_reward", *place)

    def obs_names(self, viewer: int) -> tuple[str, ...]:
        """Names of H * H * C view entries, row by row, and F features."""
        named = {self.channel(viewer, k): group.name for k, group in enumerate(self.groups)}
        channels = ["wall"]
        for first in sorted(named):
            channels += [named[first], f"{named[first]}_health", f"{named[first]}_minimap"][
                : self.channels_per_group
            ]
        side = len(self.groups[viewer].kind.view)
        view = [
            f"view_{row}_{column}.{name}"
            for row in range(side)
            for column in range(side)
            for name in channels
        ]
        return (*view, *self.feature_names(viewer))


def least_battle_map(agents: int) -> int:
    """Cells along a side of the smallest map on which two armies of `agents` fit."""
    rows = math.isqrt(agents - 1) + 1
    columns = -(-agents // rows)
    return max(2 * (2 * columns + GAP + 1), 2 * rows + 2)


def battle(
    agents: int,
    map_size: int | None,
    minimap: bool,
    rewards: dict[str, float],
) -> Grid:
    """Two armies in square formation. magent2's own, where `agents` is its number for the map (64 on 40, 100 on 50).

    Raises `UsageError` for a map on which they do not fit.
    """
    least = least_battle_map(agents)
    size = max(least, math.ceil(5 * math.sqrt(agents))) if map_size is None else map_size
    if size < least:
        raise UsageError(
            f"magent_battle: {agents} agents a side do not fit on a map of {size} x {size}, "
            f"the smallest is {least} (--set env.map_size={least})"
        )
    rows = math.isqrt(agents - 1) + 1
    columns = -(-agents // rows)
    top = (size - 2 * rows) // 2
    reds, blues = [], []
    for column in range(columns):  # from the front backwards, so that the last, incomplete one is in the rear
        for row in range(rows if column < columns - 1 else agents - rows * (columns - 1)):
            reds.append((size // 2 - GAP - 2 * (column + 1), top + 2 * row))
            blues.append((size // 2 + GAP + 2 * column, top + 2 * row))
    soldier = Kind(
        "small",
        view_radius=6,
        speed=2,
        attack_radius=1.5,
        health=10,
        attributes={
            "damage": 2,
            "step_recover": 0.1,
            "kill_reward": rewards["kill_reward"],
            "step_reward": rewards["step_reward"],
            "dead_penalty": rewards["dead_penalty"],
            "attack_penalty": rewards["attack_penalty"],
        },
    )
    groups = tuple(
        Group(name, soldier, agents, _places(place)) for name, place in (("red", reds), ("blue", blues))
    )
    bonus = rewards["attack_opponent_reward"]
    return Grid("magent_battle", size, groups, (0, 1), (Hit(0, 1, bonus), Hit(1, 0, bonus)), minimap=minimap)


def least_pursuit_map(predators: int, prey: int) -> int:
    """Cells along a side of the smallest map that the bodies do not crowd."""
    return math.ceil(math.sqrt((4 * predators + prey) / CROWDED)) + 2


def pursuit(
    predators: int, prey: int, map_size: int | None, minimap: bool, rewards: dict[str, float]
) -> Grid:
    """Predators of 2 x 2 cells that tag faster prey among random walls; nobody dies.

    Raises `UsageError` for a map that is too crowded.
    """
    least = least_pursuit_map(predators, prey)
    size = max(least, math.ceil(math.sqrt(predators / PREDATOR_SHARE))) if map_size is None else map_size
    if size < least:
        raise UsageError(
            f"magent_pursuit: {predators} predators and {prey} prey do not fit on a map of {size} x {size}, "
            f"the smallest is {least} (--set env.map_size={least})"
        )
    hunter = Kind(
        "predator",
        view_radius=5,
        speed=1,
        attack_radius=2,
        health=1,
        body=2,
        attributes={"attack_penalty": rewards["tag_penalty"]},
    )
    hunted = Kind("prey", view_radius=4, speed=1.5, attack_radius=0, health=1)
    return Grid(
        "magent_pursuit",
        size,
        (Group("predator", hunter, predators), Group("prey", hunted, prey)),
        (0, 1),
        (Hit(0, 1, rewards["tag_reward"], -rewards["tag_reward"]),),
        walls=int(size * size * WALL_SHARE),
        minimap=minimap,
    )


def _squares(size: int, shares: Sequence[tuple[float, float, int]]) -> list[tuple[int, int]]:
    """Cells along the edges of squares around the middle: (share of the map, cells less, step), each cell once."""
    middle = size // 2
    cells: dict[tuple[int, int], None] = {}
    for share, less, step in shares:
        side = int(size * share - less)
        half = side // 2
        for along in range(middle - half, middle + half + 1, step):
            cells |= dict.fromkeys([(along, middle - half), (along, middle + half)])
        for along in range(middle - half, middle + half + 1, step):
            cells |= dict.fromkeys([(middle - half, along), (middle + half, along)])
    return list(cells)


def gather(agents: int | None, map_size: int, minimap: bool, rewards: dict[str, float]) -> Grid:
    """Agents around a field of food, which takes five hits to eat; they can kill each other.

    With fewer agents than magent2 has on the map they take every so manieth of its places. Raises `UsageError` for a
    map that is too small, or more agents than it has places.
    """
    places = _squares(map_size, [(0.9, 0, 3), (0.8, 0, 4), (0.7, 0, 6)])
    if map_size < LEAST_GATHER_MAP or (agents or 0) > len(places):
        least = LEAST_GATHER_MAP
        while len(_squares(least, [(0.9, 0, 3), (0.8, 0, 4), (0.7, 0, 6)])) < (agents or 0):
            least += 1
        raise UsageError(
            f"magent_gather: {agents or len(places)} agents do not fit on a map of {map_size} x {map_size}, "
            f"the smallest is {least} (--set env.map_size={least})"
        )
    if agents is not None:
        places = [places[k * len(places) // agents] for k in range(agents)]
    rings = [(0.65, 0, 10), (0.6, 0, 10), (0.55, 0, 10), (0.5, 0, 4), (0.45, 0, 3), (0.4, 0, 1)]
    rings += [(0.3, less, 1) for less in (0, 2, 4, 6)]
    food = dict.fromkeys(_squares(map_size, rings))
    first = map_size // 2 - PATTERN // 2
    for row in range(PATTERN):
        for column in range(PATTERN):
            if row % 4 > 1 and column % 4 > 1:
                food[(first + column, first + row)] = None
    taken = set(places)
    eaten = [cell for cell in food if cell not in taken]
    omnivore = Kind(
        "agent",
        view_radius=7,
        speed=3,
        attack_radius=1,
        health=3,
        attributes={
            "damage": 6,
            "step_recover": 0,
            "attack_in_group": 1,
            "step_reward": rewards["step_reward"],
            "attack_penalty": rewards["attack_penalty"],
            "dead_penalty": rewards["dead_penalty"],
        },
    )
    meal = Kind("food", 1, 0, 0, health=25, attributes={"kill_reward": rewards["kill_reward"]})
    return Grid(
        "magent_gather",
        map_size,
        (
            Group("omnivore", omnivore, len(places), np.array(places, np.int32)),
            Group("food", meal, len(eaten), np.array(eaten, np.int32), moves=False),
        ),
        (1, 0),
        (Hit(0, 1, rewards["attack_food_reward"]),),
        minimap=minimap,
        id_bits=0,
    )


def _places(cells: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """Column by column, as magent2 numbers an army."""
    return np.array(sorted(cells), np.int32)
