"""What units of a MAgent map see, made from the state alone: exactly what magent2 shows them.

A dataset holds states; views, features and neighbourhoods are rendered for the units that a learner draws, when it
draws them, so that scope and radius of a neighbourhood stay choices after collection.
Shapes: B states, k units of each, N all units of a group, U units, M units that move, D state, H x H a view, C its
channels, F features, O = H * H * C + F, A choices.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec
from offmarl.envs.magent_options import grid_of
from offmarl.envs.magent_rules import VERSION, Grid, Kind
from offmarl.errors import DataError

Scope = Literal["own", "both"]

_BLOCK = 1 << 25  # numbers of observations that `observations` holds at a time


class Scene(NamedTuple):
    """A state [B, D] by its parts: views, not copies."""

    x: Tensor  # [B, M] cells from the left, of a body's top left cell
    y: Tensor  # [B, M] cells from the top
    action: Tensor  # [B, M] last choice, -1: none
    reward: Tensor  # [B, M] last reward
    health: Tensor  # [B, U] share of the full health; zero: dead
    wall_x: Tensor  # [B, W]
    wall_y: Tensor  # [B, W]

    @property
    def alive(self) -> Tensor:
        """[B, U] bool."""
        return self.health > 0


def scene(grid: Grid, state: Tensor) -> Scene:
    """The parts of a state [B, D]."""
    return Scene(**{name: state[:, columns] for name, columns in grid.columns.items()})


@dataclass(frozen=True, eq=False)
class Renderer:
    """Sees with the eyes of one group: `group` is its position in the grid's groups."""

    grid: Grid
    group: int

    @property
    def name(self) -> str:
        """The group's: red, predator, ..."""
        return self.grid.groups[self.group].name

    @property
    def kind(self) -> Kind:
        """What the group's units are."""
        return self.grid.groups[self.group].kind

    @property
    def slots(self) -> slice:
        """The group's units among all U."""
        return self.grid.slots(self.group)

    @cached_property
    def side(self) -> int:
        """H."""
        return len(self.kind.view)

    @property
    def features_dim(self) -> int:
        """F."""
        return len(self.grid.feature_names(self.group))

    @property
    def obs_dim(self) -> int:
        """O."""
        return self.side**2 * self.grid.channels + self.features_dim

    def views(self, state: Tensor, unit: Tensor) -> Tensor:
        """What `unit` [B] (numbered within the group) sees in each state [B, D]: [B, H, H, C].

        Zero for the dead. Equal to magent2's view once the dead of the last step are cleared away.
        """
        grid, seen = self.grid, scene(self.grid, state)
        views = state.new_zeros(len(state), self.side, self.side, grid.channels)
        number = (unit + self.slots.start).unsqueeze(1)  # [B, 1] among all units
        own_x, own_y = seen.x.gather(1, number), seen.y.gather(1, number)  # [B, 1]
        # The middle of the view stands on this cell of the body; `left`, `top` are the view's first cells.
        shift = self.kind.body // 2 - int(self.kind.view_radius)
        left, top = own_x + shift, own_y + shift
        self._add_ground(views, seen, left, top)
        for k, group in enumerate(grid.groups):
            if group.moves:
                slots = grid.slots(k)
                for along in range(group.kind.body):
                    for down in range(group.kind.body):
                        corner = (left - along, top - down)
                        self._put(
                            views, seen.x[:, slots], seen.y[:, slots], *corner, grid.channel(self.group, k),
                            seen.health[:, slots],
                        )  # fmt: skip
        if grid.walls:
            self._put(views, seen.wall_x, seen.wall_y, left, top, 0)
        if grid.minimap:
            self._add_minimap(views, seen, own_x, own_y)
        dead = (seen.health.gather(1, number).squeeze(1) <= 0).nonzero().squeeze(1)
        return views.index_fill_(0, dead, 0.0) if len(dead) else views

    def views_of_many(self, state: Tensor, sample: Tensor, unit: Tensor) -> Tensor:
        """What living units see, `unit` [k] in the states `sample` [k] of [B, D]: [k, H, H, C].

        As `views`, but each state's map is drawn once and views are cut out of it: faster for many units of a state.
        """
        grid, seen, side = self.grid, scene(self.grid, state), self.side
        size, ground = self._ground
        ground = ground.to(state.device)
        drawn = state.new_zeros(len(state), size * size, grid.channels)
        drawn[..., 0] = ground == -2
        if grid.walls:
            copies = torch.arange(len(state), device=state.device).unsqueeze(1)
            drawn[copies, ((seen.wall_y + side) * size + seen.wall_x + side).long(), 0] = 1.0
        for k, group in enumerate(grid.groups):
            channel, slots = grid.channel(self.group, k), grid.slots(k)
            health = seen.health[:, slots]
            copy, one = (health > 0).nonzero(as_tuple=True)
            left_over = health[copy, one]
            if group.moves:
                first = ((seen.y[:, slots] + side) * size + seen.x[:, slots] + side)[copy, one].long()
                cells = [
                    first + down * size + along
                    for along in range(group.kind.body)
                    for down in range(group.kind.body)
                ]
            else:
                places = torch.as_tensor(group.places, device=state.device).long() + side
                cells = [(places[:, 1] * size + places[:, 0])[one]]
            for cell in cells:
                drawn[copy, cell, channel], drawn[copy, cell, channel + 1] = 1.0, left_over
        number = unit + self.slots.start  # [k]
        own_x, own_y = seen.x[sample, number], seen.y[sample, number]
        shift = self.kind.body // 2 - int(self.kind.view_radius) + side
        corner = ((own_y + shift) * size + own_x + shift).long() + sample * size * size
        along = torch.arange(side, device=state.device)
        inside = (along.unsqueeze(1) * size + along).flatten()  # [H * H]
        cells_seen = (corner.unsqueeze(1) + inside).flatten()
        views = drawn.view(-1, grid.channels).index_select(0, cells_seen).view(len(unit), -1, grid.channels)
        views *= self._visible.to(state.device).unsqueeze(1)
        if grid.minimap:
            self._add_minimap(views, seen, own_x.unsqueeze(1), own_y.unsqueeze(1), sample)
        return views.view(len(unit), side, side, grid.channels)

    def features(self, state: Tensor, unit: Tensor, sample: Tensor | None = None) -> Tensor:
        """The numbers beside the view of `unit` [B]: [B, F]; zero for the dead.

        `sample` [B] says which of the states each is in, where it is not the one in its row.
        """
        grid, seen = self.grid, scene(self.grid, state)
        sample = torch.arange(len(state), device=state.device) if sample is None else sample
        number = unit + self.slots.start  # [B]

        def own(values: Tensor) -> Tensor:
            return values[sample, number].unsqueeze(1)

        bits = torch.arange(grid.id_bits, device=state.device)
        choices = torch.arange(len(self.kind.actions), device=state.device)
        parts = [(number.unsqueeze(1) >> bits) & 1, own(seen.action) == choices, own(seen.reward)]
        if grid.minimap:
            parts += [own(seen.x) / grid.map_size, own(seen.y) / grid.map_size]
        features = torch.cat([part.to(state.dtype) for part in parts], dim=1)
        return features * (own(seen.health) > 0)

    def observations(self, state: Tensor) -> Tensor:
        """What every unit of the group observes in each state [B, D], view and features in a row: [B, N, O]."""
        agents = self.slots.stop - self.slots.start
        units = torch.arange(agents, device=state.device)
        obs = state.new_empty(len(state), agents, self.obs_dim)
        step = max(1, _BLOCK // (agents * self.obs_dim))
        for first in range(0, len(state), step):
            block = state[first : first + step]
            repeated, unit = block.repeat_interleave(agents, 0), units.repeat(len(block))
            seen = torch.cat([self.views(repeated, unit).flatten(1), self.features(repeated, unit)], 1)
            obs[first : first + step] = seen.view(len(block), agents, -1)
        return obs

    def neighbours(
        self, state: Tensor, unit: Tensor | None = None, scope: Scope = "own", radius: float | None = None
    ) -> Tensor:
        """Who lives near `unit` [B, k] (by default all N) in each state [B, D]: [B, k, M] bool.

        Near is a distance of at most `radius` cells (by default the view's) between the middles of two bodies.
        `own`: team-mates alone; `both`: units of every group that moves. Nobody is their own neighbour.
        """
        grid, seen = self.grid, scene(self.grid, state)
        radius = self.kind.view_radius if radius is None else radius
        slots = self.slots
        if unit is None:
            number = torch.arange(slots.start, slots.stop, device=state.device).expand(len(state), -1)
        else:
            number = unit + slots.start  # [B, k]
        seen_by = slots if scope == "own" else slice(0, grid.movers)
        middle = self._middles.to(state)  # [M]
        x, y = seen.x + middle, seen.y + middle  # [B, M]
        across = x[:, None, seen_by] - x.gather(1, number).unsqueeze(2)  # [B, k, those in scope]
        down = y[:, None, seen_by] - y.gather(1, number).unsqueeze(2)
        alive = seen.alive[:, : grid.movers]
        near = across.square_().add_(down.square_()) <= radius**2
        near &= alive[:, None, seen_by]
        near &= alive.gather(1, number).unsqueeze(2)
        near.scatter_(2, number.unsqueeze(2) - seen_by.start, False)
        return torch.nn.functional.pad(near, (seen_by.start, grid.movers - seen_by.stop))

    def action_counts(
        self, state: Tensor, unit: Tensor | None = None, scope: Scope = "own", radius: float | None = None
    ) -> Tensor:
        """Of `unit` [B, k] (by default all N), how many neighbours did what last: [B, k, A].

        A is the largest number of choices of any group. Neighbours that have not acted yet count nowhere.
        Arguments as in `neighbours`.
        """
        near = self.neighbours(state, unit, scope, radius)  # [B, k, M]
        sample, asking, neighbour = near.nonzero(as_tuple=True)
        action = scene(self.grid, state).action[sample, neighbour].long()
        acted = action >= 0
        where = ((sample * near.shape[1] + asking) * self.choices + action)[acted]
        counts = torch.bincount(where, minlength=near.shape[0] * near.shape[1] * self.choices)
        return counts.view(*near.shape[:2], self.choices).to(state.dtype)

    @property
    def choices(self) -> int:
        """A, of the group that has most."""
        return max(len(group.kind.actions) for group in self.grid.groups if group.moves)

    @cached_property
    def _visible(self) -> Tensor:
        """[H * H] bool: cells of the square that are seen."""
        return torch.from_numpy(self.kind.view.copy()).flatten()

    @cached_property
    def _middles(self) -> Tensor:
        """[M] from a unit's place to the middle of its body."""
        widths = [group.kind.body for group in self.grid.groups if group.moves for _ in range(group.count)]
        return (torch.tensor(widths, dtype=torch.float32) - 1) / 2

    def _put(
        self,
        views: Tensor,
        x: Tensor,
        y: Tensor,
        left: Tensor,
        top: Tensor,
        channel: int,
        health: Tensor | None = None,
    ) -> None:
        """Mark what stands on cells x, y [B, n] where it is in view; with `health`, what is alive, and how much."""
        half = (self.side - 1) / 2
        across, down = x - (left + half), y - (top + half)  # [B, n] from the middle of the view
        near = (torch.maximum(across.abs(), down.abs()) <= half).flatten().nonzero().squeeze(1)  # [found]
        row, column = (offset.flatten().index_select(0, near) + half for offset in (down, across))
        cell = (row * self.side + column).long()
        shown = self._visible.to(views.device).index_select(0, cell)
        where = (
            near.div(x.shape[1], rounding_mode="floor") * self.side**2 + cell
        ) * self.grid.channels + channel
        flat = views.view(-1)
        if health is None:
            flat.index_fill_(0, where[shown], 1.0)
            return
        left_over = health.take(near)
        shown &= left_over > 0
        where = where[shown]
        flat.index_fill_(0, where, 1.0)
        flat.index_copy_(0, where + 1, left_over[shown])

    @cached_property
    def _ground(self) -> tuple[int, Tensor]:
        """What never moves: a square of P x P cells around the map, flat, and P.

        -1: nothing, -2: the wall around the map, otherwise the number of a unit that stands there. The map begins
        `side` cells from the corner, so that no view reaches beyond.
        """
        grid, margin = self.grid, self.side
        size = grid.map_size + 2 * margin
        ground = torch.full((size, size), -1)
        ground[margin:-margin, margin:-margin] = -2
        ground[margin + 1 : -margin - 1, margin + 1 : -margin - 1] = -1
        for k, group in enumerate(grid.groups):
            if not group.moves and group.places is not None:
                places = torch.from_numpy(group.places).long() + margin
                ground[places[:, 1], places[:, 0]] = torch.arange(grid.units)[grid.slots(k)]
        return size, ground.flatten()

    def _add_ground(self, views: Tensor, seen: Scene, left: Tensor, top: Tensor) -> None:
        """Add what never moves: the wall around the map, and food."""
        size, ground = self._ground
        cells = torch.arange(self.side, device=views.device)
        inside = (cells.unsqueeze(1) * size + cells).flatten()  # [H * H]
        corner = ((top + self.side) * size + left + self.side).long()  # [B, 1]
        standing = ground.to(views.device).index_select(0, (corner + inside).flatten()).view(len(views), -1)
        standing.masked_fill_(~self._visible.to(views.device), -1)  # [B, H * H]
        flat = views.view(len(views), -1, self.grid.channels)
        flat[..., 0] = standing == -2
        for k, group in enumerate(self.grid.groups):
            if not group.moves:
                health = seen.health.gather(1, standing.clamp(min=0)) * (standing >= 0)  # [B, H * H]
                channel = self.grid.channel(self.group, k)
                flat[..., channel], flat[..., channel + 1] = health > 0, health

    @cached_property
    def _parts(self) -> Tensor:
        """[map cells] int64: the part of the minimap that each cell of the map belongs to."""
        cells = torch.arange(self.grid.map_size).div(
            -(-self.grid.map_size // self.side), rounding_mode="floor"
        )
        return (cells.unsqueeze(1) * self.side + cells).flatten()

    def _add_minimap(
        self, views: Tensor, seen: Scene, own_x: Tensor, own_y: Tensor, sample: Tensor | None = None
    ) -> None:
        """Add the share of each group's living units on every part of the map, and 1 where the viewer is.

        `sample`: which of the states each viewer is in, where it is not the one in its row.
        """
        grid, parts = self.grid, self._parts.to(views.device)
        flat = views.view(len(views), -1, grid.channels)
        own = parts[(own_y * grid.map_size + own_x).long()]  # [B, 1]
        for k, group in enumerate(grid.groups):
            slots = grid.slots(k)
            alive = seen.alive[:, slots].to(views.dtype)
            if group.moves:
                cell = (seen.y[:, slots] * grid.map_size + seen.x[:, slots]).long()
                part = parts.index_select(0, cell.flatten()).view_as(cell)
            else:
                places = torch.as_tensor(group.places, device=views.device).long()
                part = parts[places[:, 1] * grid.map_size + places[:, 0]].expand_as(alive)
            density = views.new_zeros(len(alive), self.side**2).scatter_add_(1, part, alive)
            total = alive.sum(1, keepdim=True)
            density.div_(total.clamp(min=1))
            if sample is not None:
                density, total = density[sample], total[sample]
            # Of a group of which nobody is left magent2 shows 0/0 everywhere; the environment makes that zero.
            flat[..., grid.channel(self.group, k) + 2] = density.scatter_add_(
                1, own, (total > 0).to(views.dtype)
            )


@lru_cache(maxsize=64)
def _renderer(env_id: str, options: tuple[tuple[str, object], ...], group: str) -> Renderer:
    grid = grid_of(env_id, dict(options))
    return Renderer(grid, grid.number(group))


def renderers(spec: EnvSpec) -> dict[str, Renderer]:
    """The renderer of every group of agents of a task, by the group's name, in order.

    Raises `DataError` for data of another magent2, or whose state is not that of its map.
    """
    found = spec.versions.get("magent2")
    if found != VERSION:
        raise DataError(
            f"{spec.id}: this is data of magent2 {found}, whose views are not known; "
            f'collect it again with pip install "magent2=={VERSION}"'
        )
    made = {}
    for group in spec.groups:
        name = group[0].rpartition("_")[0]
        made[name] = _renderer(spec.id, tuple(sorted(spec.options.items())), name)
        if made[name].grid.state_names() != spec.state_names:
            raise DataError(
                f"{spec.id}: the states have {spec.state_dim} numbers, a map of {made[name].grid.map_size} with these "
                f"agents has {made[name].grid.state_dim}: this is data of another map"
            )
    return made


def no_beginning(spec: EnvSpec, state: Tensor) -> Tensor:
    """[B] bool: states [B, D] in which no episode of `spec` begins: armies stand elsewhere, or somebody is hurt."""
    grid = next(iter(renderers(spec).values())).grid
    seen = scene(grid, state)
    wrong = (seen.health < 1).any(1)
    for k, group in enumerate(grid.groups):
        if group.moves and group.places is not None:
            places = torch.from_numpy(group.places).to(state)
            slots = grid.slots(k)
            wrong |= ((seen.x[:, slots] != places[:, 0]) | (seen.y[:, slots] != places[:, 1])).any(1)
    return wrong


def impossible(spec: EnvSpec, state: Tensor) -> Tensor:
    """[B] bool: states [B, D] that no map of `spec` can be in. Raises `DataError` like `renderers`.

    Somebody lives outside the wall, in a wall or where somebody else lives, or has more than full health.
    """
    grid = next(iter(renderers(spec).values())).grid
    seen = scene(grid, state)
    alive = seen.alive[:, : grid.movers]
    size = grid.map_size
    wrong = ((seen.health < 0) | (seen.health > 1)).any(1)
    for place in (seen.x, seen.y):
        wrong |= (alive & ((place < 1) | (place > size - 2) | (place != place.round()))).any(1)
    occupied = state.new_zeros(len(state), size * size)
    standing = (seen.y * size + seen.x).long().clamp(0, size * size - 1)
    occupied.scatter_add_(1, standing, alive.to(state.dtype))
    walls = (seen.wall_y * size + seen.wall_x).long().clamp(0, size * size - 1)
    occupied.scatter_add_(1, walls, torch.ones_like(seen.wall_x))
    return wrong | (occupied > 1).any(1)


def render(spec: EnvSpec, state: Tensor) -> Tensor:
    """What all agents of `spec` observe in states [B, D]: [B, N, O], zero-padded to the widest. Raises `DataError`."""
    parts = [renderer.observations(state) for renderer in renderers(spec).values()]
    widest = spec.obs_dim
    return torch.cat([torch.nn.functional.pad(part, (0, widest - part.shape[-1])) for part in parts], dim=1)
