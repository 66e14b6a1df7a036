"""The rows of a rendered dataset, drawn agent by agent: states and who looks, so that a learner renders what it needs.

A table of all observations of hundreds of agents would not fit in memory; states do. What is rendered of them (views,
features, whose actions count as a neighbour's) is the learner's choice.
Shapes: R rows, S seeds, B batch, N agents, D state, P pairs of a row and an agent that lives in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec
from offmarl.envs.magent_render import Renderer
from offmarl.errors import UsageError


@dataclass
class UnitBatch:
    """What single agents of one group went through in one step."""

    state: Tensor  # [S, B, D]
    unit: Tensor  # [S, B] int64, numbered within the group
    action: Tensor  # [S, B] int64
    reward: Tensor  # [S, B] what the agent is taught with
    next_state: Tensor  # [S, B, D]
    next_alive: Tensor  # [S, B] bool: a dead agent has no future
    terminated: Tensor  # [S, B] bool: nobody has


@dataclass(frozen=True)
class UnitStatistics:
    """What the rewards of one group's living agents are like."""

    kind: str  # of the group's units
    agents: int  # agents and steps
    reward_mean: float
    reward_std: float  # population standard deviation
    terminates: bool  # whether anybody's future ends other than by the time limit


@dataclass(frozen=True)
class UnitRows:
    """All living agents of one group in all steps of a dataset."""

    spec: EnvSpec
    renderer: Renderer
    state: Tensor  # [R, D]
    action: Tensor  # [R, N] of the group's agents
    reward: Tensor  # [R, N]
    alive: Tensor  # [R, N] bool
    terminated: Tensor  # [R] bool
    episode_start: Tensor  # [episodes + 1]
    row: Tensor  # [P] int64
    unit: Tensor  # [P] int64

    def __len__(self) -> int:
        """P."""
        return len(self.row)

    def statistics(self) -> UnitStatistics:
        """Moments of the rewards, and whether anybody dies or a game is decided."""
        reward = self.reward[self.row, self.unit].double()
        ends = self.terminated[self.row] | ~self.alive[self.row + 1, self.unit]
        return UnitStatistics(
            self.renderer.kind.name,
            len(self),
            float(reward.mean()),
            float(reward.std(correction=0)),
            bool(ends.any()),
        )

    def require_batch(self, batch_size: int) -> None:
        """Raise `UsageError` for a batch larger than the data."""
        if batch_size > len(self):
            raise UsageError(
                f"train.batch_size={batch_size} is larger than the data: {len(self)} agents and steps of "
                f"{self.renderer.name}; lower it with --set"
            )

    def sample(self, batch_size: int, generators: Sequence[torch.Generator]) -> UnitBatch:
        """Draw `batch_size` pairs for each of S = `len(generators)` seeds, uniform with replacement.

        Seed k draws from its own generator only. Raises `UsageError` for a batch larger than the data.
        """
        self.require_batch(batch_size)
        drawn = [
            torch.randint(len(self), (batch_size,), generator=generator, device=generator.device)
            for generator in generators
        ]
        return self.batch(torch.stack(drawn).to(self.row.device))

    def batch(self, index: Tensor) -> UnitBatch:
        """The pairs `index` [S, B]."""
        row, unit = self.row[index], self.unit[index]
        return UnitBatch(
            state=self.state[row],
            unit=unit,
            action=self.action[row, unit].long(),
            reward=self.reward[row, unit],
            next_state=self.state[row + 1],
            next_alive=self.alive[row + 1, unit],
            terminated=self.terminated[row],
        )


class Units(Sequence[UnitRows]):
    """The rows of every group of a dataset that learns, in order."""

    def __init__(self, groups: Sequence[UnitRows]) -> None:
        self._groups = tuple(groups)

    @overload
    def __getitem__(self, index: int) -> UnitRows: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[UnitRows]: ...
    def __getitem__(self, index: int | slice) -> UnitRows | Sequence[UnitRows]:
        """One group's rows, or several's."""
        return self._groups[index]

    def __len__(self) -> int:
        """How many groups."""
        return len(self._groups)

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        return self._groups[0].state.device

    def statistics(self) -> list[UnitStatistics]:
        """Those of each group."""
        return [group.statistics() for group in self._groups]

    def require_batch(self, batch_size: int) -> None:
        """Raise `UsageError` for a batch that the group with the fewest agents and steps cannot give."""
        for group in self._groups:
            group.require_batch(batch_size)
