"""What units see of their map and of their neighbours at one instant.

Shapes: S seeds, B units, O inputs, A actions of neighbours, M units that move.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from offmarl.envs.magent_render import Renderer, Scope, scene

ATTRIBUTES = 4  # of a neighbour beside what it did: where it stands, its health, whether it is a team-mate


@dataclass(frozen=True)
class Neighbours:
    """Who they are: for weightings that tell neighbours apart which did the same."""

    near: Tensor  # [S, B, M] bool: a neighbour that has acted
    action: Tensor  # [S, B, M] int64, what each did last; 0 where nobody is near
    attributes: Tensor  # [S, B, M, ATTRIBUTES], zero where nobody is near
    draw: Tensor | None = None  # [S, B, M] uniform, for random weights


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


def neighbours_of(
    renderer: Renderer, state: Tensor, unit: Tensor, scope: Scope, radius: float | None
) -> Neighbours:
    """Those of `unit` [S, B] in each state [S, B, D]."""
    S, B = unit.shape
    flat, number = state.flatten(0, 1), unit.flatten().unsqueeze(1)
    seen = scene(renderer.grid, flat)
    near = renderer.neighbours(flat, number, scope, radius).squeeze(1) & (seen.action >= 0)  # [S * B, M]
    number = number + renderer.slots.start
    reach = renderer.side / 2
    slots = torch.arange(near.shape[1], device=state.device)
    team = ((slots >= renderer.slots.start) & (slots < renderer.slots.stop)).expand_as(near)
    attributes = torch.stack(
        [
            (seen.x - seen.x.gather(1, number)) / reach,
            (seen.y - seen.y.gather(1, number)) / reach,
            seen.health[:, : renderer.grid.movers],
            team.to(state.dtype),
        ],
        dim=2,
    )
    return Neighbours(
        near.view(S, B, -1),
        (seen.action.long() * near).view(S, B, -1),
        (attributes * near.unsqueeze(2)).view(S, B, -1, ATTRIBUTES),
    )
