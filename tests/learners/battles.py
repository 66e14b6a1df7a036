"""Made-up states of a battle in which what pays depends on what neighbours did: for learners that render."""

from collections.abc import Sequence

import torch
from torch import Tensor

from offmarl.data.units import UnitBatch
from offmarl.envs.base import EnvSpec
from offmarl.envs.magent import describe
from offmarl.envs.magent_render import Renderer, renderers, scene
from offmarl.learners.meanfield.base import MeanFieldLearner
from offmarl.learners.registry import make_learner
from offmarl.streams import stream

AGENTS = 9
SMALL = {"hidden": [24], "learning_rate": 5e-3}


def spec_of(env_id: str = "magent_battle", **options: object) -> EnvSpec:
    return describe(env_id, {"agents": AGENTS, "background": "none", **options})


def states(spec: EnvSpec, count: int, generator: torch.Generator, dead: float = 0.2) -> Tensor:
    """[B, D] units thrown on the map, some of them dead."""
    grid = next(iter(renderers(spec).values())).grid
    state = torch.zeros(count, grid.state_dim)
    side = (grid.map_size - 2) // 2  # every second cell, so that bodies of two cells fit
    cells = torch.rand(count, side * side, generator=generator).argsort(1)[:, : grid.movers]
    columns = grid.columns
    state[:, columns["x"]] = (2 * (cells % side) + 1).float()
    state[:, columns["y"]] = (2 * (cells // side) + 1).float()
    alive = torch.rand(count, grid.units, generator=generator) >= dead
    state[:, columns["health"]] = alive * (0.2 + 0.8 * torch.rand(count, grid.units, generator=generator))
    fewest = min(len(group.kind.actions) for group in grid.groups)
    last = torch.randint(-1, fewest, (count, grid.movers), generator=generator).float()
    state[:, columns["action"]] = torch.where(alive[:, : grid.movers], last, -1.0)
    return state


class Made:
    """A source of batches: who does what most neighbours did is paid, and half do so."""

    def __init__(self, renderer: Renderer, state: Tensor) -> None:
        self.renderer, self.state = renderer, state
        alive = scene(renderer.grid, state).alive[:, renderer.slots]
        self.row, self.unit = alive.nonzero(as_tuple=True)

    def sample(self, batch_size: int, generators: Sequence[torch.Generator]) -> UnitBatch:
        drawn = torch.stack([torch.randint(len(self.row), (batch_size,), generator=g) for g in generators])
        choices = len(self.renderer.kind.actions)
        action = torch.stack([torch.randint(choices, (batch_size,), generator=g) for g in generators])
        state, unit = self.state[self.row[drawn]], self.unit[drawn]
        counts = self.renderer.action_counts(state.flatten(0, 1), unit.flatten().unsqueeze(1)).squeeze(1)
        favourite = counts.argmax(1).view_as(action)
        follow = torch.stack([torch.rand(batch_size, generator=g) < 0.5 for g in generators])
        action = torch.where(follow, favourite.clamp(max=choices - 1), action)
        reward = (action == favourite).float() * (counts.sum(1).view_as(action) > 0)
        ends = torch.ones_like(action, dtype=torch.bool)
        return UnitBatch(state, unit, action, reward, state, ~ends, ends)


def learner_of(name: str, spec: EnvSpec, seeds: Sequence[int] = (0,), **values: object) -> MeanFieldLearner:
    learner = make_learner(name, spec, {**SMALL, **values}, seeds)
    assert isinstance(learner, MeanFieldLearner)
    return learner


def sources(spec: EnvSpec, count: int = 60) -> list[Made]:
    state = states(spec, count, stream(0, "states"))
    return [Made(renderer, state) for renderer in renderers(spec).values()]


def trained(
    learner: MeanFieldLearner,
    steps: int,
    batch_size: int = 32,
    generators: Sequence[torch.Generator] | None = None,
) -> MeanFieldLearner:
    data = sources(learner.spec)
    generators = generators or [stream(seed, "batches") for seed in learner.seeds]
    for _ in range(steps):
        learner.update(learner.sample(data, batch_size, generators))
    return learner
