"""Who plays a side of a rendered task: a learner, uniform choices, or the charge.

Which of them plays which side may differ from copy to copy, so that many kinds of game are played at once.
Shapes: E copies, G groups of agents, N agents of all groups, n of one, D state.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from offmarl.envs.magent_charge import charge
from offmarl.envs.magent_render import Renderer
from offmarl.learners.meanfield.base import MeanFieldLearner


class Player(Protocol):
    """Chooses for the units of one group."""

    def choose(self, state: Tensor, renderer: Renderer, generator: torch.Generator) -> Tensor:
        """[E, D] -> [E, n] int64."""


class ByChance:
    """Uniform choices."""

    def choose(self, state: Tensor, renderer: Renderer, generator: torch.Generator) -> Tensor:
        """[E, D] -> [E, n] int64."""
        group = renderer.grid.groups[renderer.group]
        shape = (len(state), group.count)
        return torch.randint(len(group.kind.actions), shape, generator=generator, device=state.device)


class Charging:
    """Everybody runs at the nearest enemy."""

    def choose(self, state: Tensor, renderer: Renderer, generator: torch.Generator) -> Tensor:
        """[E, D] -> [E, n] int64."""
        return charge(renderer, state, generator)


class Learned:
    """A learner of one seed, with a share `epsilon` of uniform choices."""

    def __init__(self, learner: MeanFieldLearner, epsilon: float) -> None:
        self.learner, self.epsilon = learner, epsilon

    def choose(self, state: Tensor, renderer: Renderer, generator: torch.Generator) -> Tensor:
        """[E, D] -> [E, n] int64."""
        return self.learner.choose(state.unsqueeze(0), renderer, self.epsilon, [generator]).squeeze(0)


def joint_choice(
    players: Sequence[Player],
    who: Tensor,
    state: Tensor,
    renderers: Sequence[Renderer],
    generator: torch.Generator,
) -> Tensor:
    """What all agents do, [E, N] group after group, where `players[who[e, g]]` plays group g of copy e.

    In copies where `who` is -1 nobody plays: their choices are 0.
    """
    sides = []
    for group, renderer in enumerate(renderers):
        agents = renderer.slots.stop - renderer.slots.start
        choice = torch.zeros(len(state), agents, dtype=torch.int64, device=state.device)
        for player in who[:, group].unique().tolist():
            if player >= 0:
                copies = (who[:, group] == player).nonzero().squeeze(1)
                choice[copies] = players[player].choose(state[copies], renderer, generator)
        sides.append(choice)
    return torch.cat(sides, 1)
