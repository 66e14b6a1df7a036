"""A policy for battles and pursuits that needs no training: run at the nearest enemy, and hit it.

Shapes: E copies, N agents of a group, Q enemies, K choices.
"""

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec, Frame
from offmarl.envs.magent_render import Renderer, renderers, scene
from offmarl.errors import UsageError

RANDOMNESS = 0.1  # share of choices at random, so that agents who block each other come free


class Charge:
    """Every agent steps towards the enemy that is nearest now, and attacks it once it is in reach."""

    def __init__(self, spec: EnvSpec):
        """Read off the task's map who fights whom. Raises `UsageError` where nobody is to be fought."""
        if spec.id == "magent_gather":
            raise UsageError(f"no scripted policy is known for {spec.id}: choose another")
        self._groups = list(renderers(spec).values())

    def begin(self, starting: Tensor, generator: torch.Generator) -> None:
        """Nothing is remembered between steps."""

    def act(self, frame: Frame, generator: torch.Generator) -> Tensor:
        """[E, N] int64, group after group."""
        assert frame.state is not None
        return torch.cat([charge(group, frame.state, generator) for group in self._groups], dim=1)

    def annotations(self) -> dict[str, Tensor]:
        """No hidden facts."""
        return {}


def charge(group: Renderer, state: Tensor, generator: torch.Generator) -> Tensor:
    """What the agents of one group do, [E, N]."""
    grid, seen = group.grid, scene(group.grid, state)
    kind = grid.groups[group.group].kind
    mine, theirs = group.slots, grid.slots(1 - group.group)
    place = torch.stack([seen.x, seen.y], -1)  # [E, M, 2]
    offset = place[:, None, theirs] - place[:, mine, None] - kind.body // 2  # [E, N, Q, 2]
    distance = offset.square().sum(-1).masked_fill(~seen.alive[:, None, theirs], torch.inf)  # [E, N, Q]
    nearest = distance.argmin(-1)[..., None, None].expand(-1, -1, 1, 2)
    aim = offset.gather(2, nearest)  # [E, N, 1, 2]
    steps = [tuple(map(float, action.split("_")[1:])) for action in kind.actions]
    left = (aim - torch.tensor(steps).to(state)).square().sum(-1)  # [E, N, K] squared distance that remains
    attack = torch.tensor([action.startswith("attack") for action in kind.actions], device=state.device)
    # A hit beats any step; an attack that misses is worse than all.
    cost = torch.where(attack, torch.where(left == 0, -1.0, torch.inf), left)
    choice = cost.argmin(-1)
    by_chance = torch.rand(choice.shape, generator=generator, device=state.device) < RANDOMNESS
    anything = torch.randint(len(steps), choice.shape, generator=generator, device=state.device)
    return torch.where(by_chance, anything, choice)
