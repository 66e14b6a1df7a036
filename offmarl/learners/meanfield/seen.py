"""What units see of their map and of their neighbours at one instant.

Shapes: S seeds, B units, O inputs, A actions of neighbours, M units that move, P places of neighbours, D state.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from offmarl.envs.magent_render import Renderer, Scope, scene

ATTRIBUTES = 4  # of a neighbour beside what it did: where it stands, its health, whether it is a team-mate


@dataclass(frozen=True)
class Neighbours:
    """Who they are: for weightings that tell neighbours apart which did the same.

    Few of all units are near, so each unit has P places, as many as the one with most neighbours fills; empty places
    are False and 0.
    """

    near: Tensor  # [S, B, P] bool: a neighbour that has acted
    number: Tensor  # [S, B, P] int64, which of the M
    action: Tensor  # [S, B, P] int64, what each did last
    attributes: Tensor  # [S, B, P, ATTRIBUTES]
    draw: Tensor | None = None  # [S, B, P] uniform, for random weights

    def over_all(self, values: Tensor, movers: int) -> Tensor:
        """`values` [S, B, P] of neighbours, at their numbers: [S, B, M], 0 elsewhere."""
        found = values.new_zeros(*values.shape[:2], movers)
        return found.scatter_add_(2, self.number, values * self.near)


@dataclass(frozen=True)
class Seen:
    """What a Q-value depends on."""

    inputs: Tensor  # [S, B, O] the view, then features without the bits of a unit's number
    counts: Tensor | None = None  # [S, B, A] how many neighbours did what last
    neighbours: Neighbours | None = None

    def split(self, size: int) -> tuple["Seen", "Seen"]:
        """The first `size` units, and the others."""
        return _narrowed(self, slice(size)), _narrowed(self, slice(size, None))


def _narrowed(part: Any, units: slice) -> Any:
    """Some units of all tensors of a dataclass, nested ones too."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return replace(
        part,
        **{
            name: value[:, units] if isinstance(value, Tensor) else value and _narrowed(value, units)
            for name, value in values.items()
        },
    )


def inputs_of(renderer: Renderer, state: Tensor, unit: Tensor, sample: Tensor | None = None) -> Tensor:
    """View and features of `unit` [B]: [B, O]; who a unit is does not matter.

    Each is in the state of its row of [B, D], or living units of few states in those that `sample` [B] says.
    """
    views = renderer.views(state, unit) if sample is None else renderer.views_of_many(state, sample, unit)
    features = renderer.features(state, unit, sample)[:, renderer.grid.id_bits :]
    return torch.cat([views.flatten(1), features], dim=1)


def sample_of(state: Tensor, copy: Tensor | None) -> Tensor | None:
    """The row in [S * E, D] of the states [S, E, D] that each unit's `copy` [S, B] is, [S * B]; None for None."""
    if copy is None:
        return None
    S, E, _ = state.shape
    return (copy + torch.arange(0, S * E, E, device=state.device).unsqueeze(1)).flatten()


def neighbours_of(
    renderer: Renderer,
    state: Tensor,
    unit: Tensor,
    scope: Scope,
    radius: float | None,
    copy: Tensor | None = None,
) -> Neighbours:
    """Those of `unit` [S, B] in each state [S, B, D], or of [S, E, D] in the one that its `copy` [S, B] is."""
    own, sample = unit.flatten(), sample_of(state, copy)
    state = state.flatten(0, 1)
    if sample is None:
        near = renderer.neighbours(state, own.unsqueeze(1), scope, radius).squeeze(1)  # [S * B, M]
        sample = torch.arange(len(own), device=own.device)
    else:
        near = renderer.neighbours(state, None, scope, radius)[sample, own]
    seen = scene(renderer.grid, state)
    near &= (seen.action >= 0)[sample]
    row, slot = near.nonzero(as_tuple=True)
    found = near.sum(1)
    place = torch.arange(len(row), device=row.device) - (found.cumsum(0) - found)[row]
    places = int(found.max())
    number = row.new_zeros(len(own), places)  # [S * B, P]
    number[row, place] = slot
    near = torch.arange(places, device=row.device) < found.unsqueeze(1)
    row, own = sample.unsqueeze(1), own.unsqueeze(1) + renderer.slots.start
    reach = renderer.side / 2
    team = (number >= renderer.slots.start) & (number < renderer.slots.stop)
    attributes = torch.stack(
        [
            (seen.x[row, number] - seen.x[row, own]) / reach,
            (seen.y[row, number] - seen.y[row, own]) / reach,
            seen.health[row, number],
            team.to(state.dtype),
        ],
        dim=2,
    )
    shape = (*unit.shape, places)
    return Neighbours(
        near.view(shape),
        number.view(shape),
        (seen.action[row, number].long() * near).view(shape),
        (attributes * near.unsqueeze(2)).view(*shape, ATTRIBUTES),
    )
