"""The rows of a rendered dataset, drawn agent by agent: states and who looks, so that a learner renders what it needs.

A table of all observations of hundreds of agents would not fit in memory; states do. What is rendered of them (views,
features, whose actions count as a neighbour's) is the learner's choice.
Shapes: R rows, S seeds, B batch, N agents, D state, P pairs of a row and an agent that lives in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from offmarl.data.store import Dataset
from offmarl.data.table import rows_with_successor
from offmarl.envs.base import EnvSpec
from offmarl.envs.magent_render import Renderer, no_beginning, renderers
from offmarl.errors import DataError, UsageError, unknown_name


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

    @classmethod
    def load(
        cls,
        dataset: Dataset,
        group: str | None = None,
        reward: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> "UnitRows":
        """Read the agents of `group` (`red`, `predator`, ...), by default the first group that learns.

        `reward` [R, N of all agents] replaces the agents' own: what a decomposition gave them. Without it and without
        agents' own rewards everyone gets the team's. Raises `DataError` for a dataset that is not rendered or is of
        another map or magent2, `UsageError` for a group that does not learn.
        """
        spec = dataset.spec
        if not spec.rendered:
            raise DataError(
                f"{dataset.id} of {spec.id} holds observations: load it as a table of transitions"
            )
        known = renderers(spec)
        name = next(iter(known)) if group is None else group
        if name not in known:
            raise unknown_name(f"group of {dataset.id}", name, known)
        agents = spec.groups[list(known).index(name)]
        columns = torch.tensor([spec.agents.index(agent) for agent in agents])
        if reward is None and "agent_reward" in dataset.card.arrays:
            reward = dataset.read("agent_reward")
        elif reward is None:
            reward = dataset.read("team_reward").unsqueeze(1).expand(-1, spec.n_agents)
        alive, start = dataset.read("alive")[:, columns], dataset.episode_start
        steps = rows_with_successor(start)
        row, unit = alive[steps].nonzero(as_tuple=True)
        if not len(row):
            raise DataError(f"{dataset.id}: nobody of {name} is alive in any step")
        state = dataset.read("state")
        if bool(no_beginning(spec, state[start[:-1]]).any()):
            raise DataError(f"{dataset.id}: its episodes begin on another map than that of its options")
        rows = cls(
            spec,
            known[name],
            state,
            dataset.read("action")[:, columns],
            reward[:, columns],
            alive,
            dataset.read("terminated"),
            start,
            steps[row],
            unit,
        )
        return rows.to(device)

    def to(self, device: torch.device | str) -> "UnitRows":
        """Copy to another device (itself if it is there)."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def __len__(self) -> int:
        """P."""
        return len(self.row)

    def sample(self, batch_size: int, generators: Sequence[torch.Generator]) -> UnitBatch:
        """Draw `batch_size` pairs for each of S = `len(generators)` seeds, uniform with replacement.

        Seed k draws from its own generator only. Raises `UsageError` for a batch larger than the data.
        """
        if batch_size > len(self):
            raise UsageError(f"a batch of {batch_size} is larger than the data: {len(self)} agents and steps")
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
