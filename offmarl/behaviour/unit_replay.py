"""The ring buffer of self-play: compact states of which a learner renders what the units that it draws have seen.

Shapes: S seeds, B batch, E copies, N agents, n agents of a group, M units that move, D state, C capacity.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from offmarl.data.units import UnitBatch
from offmarl.envs.base import EnvSpec, Frame, Step
from offmarl.envs.magent_render import Renderer, renderers
from offmarl.envs.magent_rules import Grid


class StateReplay:
    """The last `capacity` steps of any copies of a rendered task: the state, what came of it, and what was done."""

    def __init__(self, spec: EnvSpec, capacity: int, device: torch.device | str = "cpu") -> None:
        known = renderers(spec)
        grid = next(iter(known.values())).grid
        self._pairs = {
            name: torch.empty(
                capacity, 2, columns.stop - columns.start, dtype=_dtype(name, grid), device=device
            )
            for name, columns in grid.columns.items()
        }  # [C, 2, width], by the parts of a state: before the step and after
        self._columns = grid.columns
        self.action = torch.empty(capacity, spec.n_agents, dtype=torch.uint8, device=device)  # [C, N]
        self.reward = torch.empty(capacity, spec.n_agents, device=device)  # [C, N]
        self.terminated = torch.empty(capacity, dtype=torch.bool, device=device)  # [C]
        self.written = 0
        first = 0
        self.groups: dict[str, UnitReplay] = {}
        for name, renderer in known.items():
            agents = renderer.slots.stop - renderer.slots.start
            self.groups[name] = UnitReplay(self, renderer, slice(first, first + agents))
            first += agents

    def __len__(self) -> int:
        """Steps held."""
        return min(self.written, len(self.action))

    def add(self, frame: Frame, action: Tensor, step: Step) -> None:
        """Append what E copies did: `action` [E, N]."""
        assert frame.state is not None
        assert step.successor.state is not None
        assert step.agent_reward is not None
        copies = len(action)
        where = (torch.arange(copies, device=self.action.device) + self.written) % len(self.action)
        pair = torch.stack([frame.state, step.successor.state], 1)  # [E, 2, D]
        for name, stored in self._pairs.items():
            stored[where] = pair[..., self._columns[name]].to(stored)
        self.action[where] = action.to(self.action)
        self.reward[where] = step.agent_reward.to(self.reward)
        self.terminated[where] = step.terminated.to(self.terminated)
        self.written += copies
        for group in self.groups.values():
            group.count(where)

    def states(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """What was seen at the steps `row` [S, B], and what came of it: [S, B, D] each."""
        flat = row.flatten()
        parts = [stored.index_select(0, flat).float() for stored in self._pairs.values()]
        pair = torch.cat(parts, -1).unflatten(0, row.shape)  # [S, B, 2, D]
        return pair[:, :, 0], pair[:, :, 1]

    def living(self, units: slice, row: Tensor, successor: bool = False) -> Tensor:
        """Who of `units` lived at the steps `row` [...], or after them: [..., units] bool."""
        return self._pairs["health"][row, int(successor), units] > 0


class UnitReplay:
    """The agents of one group in what is held: what a learner draws batches from."""

    def __init__(self, steps: StateReplay, renderer: Renderer, agents: slice) -> None:
        self.steps, self.renderer = steps, renderer
        self._agents = agents  # among the N that learn
        self._alive = torch.zeros(len(steps.action), dtype=torch.int64, device=steps.action.device)  # [C]

    def count(self, where: Tensor) -> None:
        """Count who lives in the steps that were just written."""
        self._alive[where] = self.steps.living(self.renderer.slots, where).sum(1)

    def __len__(self) -> int:
        """Pairs of a step and an agent that lived in it."""
        return int(self._alive.sum())

    def sample(self, batch_size: int, generators: Sequence[torch.Generator]) -> UnitBatch:
        """Draw `batch_size` pairs for each of S = `len(generators)` seeds, uniform with replacement.

        Seed k draws from its own generator only.
        """
        until = self._alive.cumsum(0)  # [C]
        drawn = torch.stack(
            [
                torch.randint(int(until[-1]), (batch_size,), generator=generator, device=generator.device)
                for generator in generators
            ]
        ).to(until.device)  # [S, B]
        row = torch.searchsorted(until, drawn, right=True)
        rank = drawn - (until[row] - self._alive[row])  # among the living of that step
        alive = self.steps.living(self.renderer.slots, row)  # [S, B, n]
        unit = (alive.cumsum(-1) > rank.unsqueeze(-1)).int().argmax(-1)  # the first to have `rank` before it
        agent = unit + self._agents.start
        state, next_state = self.steps.states(row)
        after = self.steps.living(self.renderer.slots, row, successor=True)
        return UnitBatch(
            state=state,
            unit=unit,
            action=self.steps.action[row, agent].long(),
            reward=self.steps.reward[row, agent],
            next_state=next_state,
            next_alive=after.gather(-1, unit.unsqueeze(-1)).squeeze(-1),
            terminated=self.steps.terminated[row],
        )


def _dtype(part: str, grid: Grid) -> torch.dtype:
    """The narrowest type that holds a part of the state exactly."""
    if part in ("health", "reward"):
        return torch.float32
    if part == "action":  # -1 where nobody has acted
        return torch.int8
    return torch.uint8 if grid.map_size <= 256 else torch.int16
