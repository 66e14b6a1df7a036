"""The table of transitions that learners and decomposers work on: one contiguous float32 row a time step.

Pure tensors, no files. Shapes: R rows, M transitions, S seeds, B batch, N agents, O observation, A action
dimensions, K discrete choices, D state, T steps, W columns of the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError, UsageError, unknown_name

# Columns that a batch also needs of the successor come first, so that one gather of W + V adjacent floats
# brings a row and the part of the next row that matters.
SUCCESSOR_COLUMNS = ("obs", "state", "action", "legal", "alive")
OTHER_COLUMNS = ("reward", "team_reward", "terminated", "truncated", "done")
OPTIONAL_COLUMNS = ("state", "legal", "alive")
STATISTICS_BLOCK = 8_192  # rows summed in float32 before their sum joins a float64 one


@dataclass(frozen=True)
class Statistics:
    """Mean and (population) standard deviation over the transitions of a table."""

    obs_mean: Tensor  # [N, O]
    obs_std: Tensor  # [N, O], zero in dimensions that never change and in padding
    reward_mean: Tensor  # [N]
    reward_std: Tensor  # [N]
    terminates: bool = False  # whether any transition ends its episode other than by the time limit
    state_mean: Tensor | None = None  # [D] where the data has a state
    state_std: Tensor | None = None  # [D]
    deaths: bool = False  # whether any agent dies while its episode goes on, or by the time limit

    @property
    def agents_end(self) -> bool:
        """Whether any agent's own future ends other than by the time limit, with its episode or before it."""
        return self.terminates or self.deaths


@dataclass
class Batch:
    """Transitions of S seeds. Float fields are views of one gathered block: clone before writing to them."""

    obs: Tensor  # [S, B, N, O]
    action: Tensor  # [S, B, N, A] float, or [S, B, N] int64
    reward: Tensor  # [S, B, N]
    next_obs: Tensor  # [S, B, N, O]
    next_action: Tensor  # like `action`; meaningless where `done`
    terminated: Tensor  # [S, B] float, 1 where the future is worth nothing
    done: Tensor  # [S, B] float, 1 where the episode ended for whichever reason
    state: Tensor | None = None  # [S, B, D]
    next_state: Tensor | None = None  # [S, B, D]
    legal: Tensor | None = None  # [S, B, N, K] bool
    next_legal: Tensor | None = None  # [S, B, N, K] bool
    alive: Tensor | None = None  # [S, B, N] bool
    next_alive: Tensor | None = None  # [S, B, N] bool

    @property
    def lives_on(self) -> Tensor:
        """[S, B, N] float: 1 where the task goes on after the step and the agent is alive in it."""
        going_on = (1 - self.terminated).unsqueeze(2).expand_as(self.reward)
        return going_on if self.next_alive is None else going_on * self.next_alive


def column_shapes(spec: EnvSpec, optional: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """List the columns of a table in their order, with the shape of each in one row.

    `optional` names which of `state`, `legal` and `alive` the data holds.
    """
    n_agents = spec.n_agents
    shapes = {
        "obs": (n_agents, spec.obs_dim),
        "state": (spec.state_dim,),
        "action": (n_agents,) if spec.discrete else (n_agents, spec.action_dim),
        "legal": (n_agents, spec.action_dim),
        "alive": (n_agents,),
        "reward": (n_agents,),
        "team_reward": (),
        "terminated": (),
        "truncated": (),
        "done": (),
    }
    present = [
        name for name in SUCCESSOR_COLUMNS + OTHER_COLUMNS if name not in OPTIONAL_COLUMNS or name in optional
    ]
    return {name: shapes[name] for name in present}


def column_slices(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, slice]:
    """Where each column of `shapes` lies in a row of the table."""
    slices, start = {}, 0
    for name, shape in shapes.items():
        stop = start + int(torch.Size(shape).numel())
        slices[name] = slice(start, stop)
        start = stop
    return slices


def empty_table(rows: int, columns: Mapping[str, slice], device: torch.device) -> Tensor:
    """Allocate [R, W] float32, contents undefined."""
    # numpy asks the kernel for huge pages and torch.empty does not: loading a million transitions took 0.6
    # of the processor time with them.
    width = max(where.stop for where in columns.values())
    if device.type == "cpu":
        return torch.from_numpy(np.empty((rows, width), dtype=np.float32))
    return torch.empty(rows, width, device=device)


def rows_with_successor(episode_start: Tensor) -> Tensor:
    """[M] int64: all rows but the last of each episode, of `episode_start` [episodes + 1]."""
    rows = int(episode_start[-1])
    inner = torch.ones(rows, dtype=torch.bool, device=episode_start.device)
    inner[episode_start[1:] - 1] = False
    return inner.nonzero().squeeze(1)


@dataclass(frozen=True)
class Transitions:
    """All time steps of a dataset in one float32 table: T + 1 rows an episode, the last without an action.

    The successor of row r is row r + 1. Discrete actions are stored as floats (exact up to 2^24) and come
    back as int64 in a `Batch`. `reward` is what each agent is taught with; `team_reward` is what the task
    paid.
    """

    spec: EnvSpec
    row: Tensor  # [R, W] float32, contiguous
    columns: dict[str, slice]
    transition_rows: Tensor  # [M] int64, rows that have a successor
    episode_start: Tensor  # [episodes + 1] int64

    @classmethod
    def from_arrays(
        cls, spec: EnvSpec, arrays: Mapping[str, Tensor], episode_start: Tensor | Sequence[int]
    ) -> "Transitions":
        """Build a table of `arrays` ([R, ...] each, named as in `column`), rows of whole episodes.

        `done` is made of the two end flags. `reward` may be left out: everyone then gets the team's. Raises
        `DataError` for a missing array or one of the wrong shape.
        """
        start = torch.as_tensor(episode_start, dtype=torch.int64)
        rows = int(start[-1])
        shapes = column_shapes(spec, [name for name in OPTIONAL_COLUMNS if name in arrays])
        columns = column_slices(shapes)
        device = arrays["obs"].device if "obs" in arrays else torch.device("cpu")
        row = empty_table(rows, columns, device)
        for name, shape in shapes.items():
            if name == "done":
                continue
            source = "team_reward" if name == "reward" and name not in arrays else name
            if source not in arrays:
                raise DataError(f"array '{source}' is missing; given: {', '.join(sorted(arrays))}")
            values = arrays[source]
            expected = (rows, *(() if source == "team_reward" else shape))
            if tuple(values.shape) != expected:
                raise DataError(f"array '{source}' has shape {list(values.shape)}, expected {list(expected)}")
            # The only broadcast is that of the team reward to its N reward columns.
            row[:, columns[name]] = values.reshape(rows, -1).to(device, torch.float32)
        ended = torch.maximum(row[:, columns["terminated"]], row[:, columns["truncated"]])
        row[:, columns["done"]] = ended
        start = start.to(device)
        return cls(spec, row, columns, rows_with_successor(start), start)

    def __len__(self) -> int:
        """M, the number of transitions."""
        return len(self.transition_rows)

    @property
    def device(self) -> torch.device:
        """Where the table lives."""
        return self.row.device

    @property
    def n_episodes(self) -> int:
        """Number of whole episodes."""
        return len(self.episode_start) - 1

    def column(self, name: str) -> Tensor:
        """Give a view of one column for all rows, always float32.

        `obs` [R, N, O], `action` [R, N, A] or [R, N], `reward` [R, N], `team_reward`, `terminated`,
        `truncated`, `done` [R], and where the data has them `state` [R, D], `legal` [R, N, K],
        `alive` [R, N]. Raises `UsageError` for a name that is not there.
        """
        if name not in self.columns:
            raise unknown_name("column of this dataset", name, self.columns)
        columns, shape = self.columns[name], self._shapes[name]
        width = self.row.shape[1]
        return self.row.as_strided(
            (len(self.row), *shape), (width, *_strides(shape)), self.row.storage_offset() + columns.start
        )

    def with_reward(self, reward: Tensor) -> "Transitions":
        """Copy the table with `reward` [R, N] as what each agent is taught with.

        Raises `DataError` for a wrong shape or a reward that is not finite.
        """
        expected = (len(self.row), self.spec.n_agents)
        if tuple(reward.shape) != expected:
            raise DataError(f"reward has shape {list(reward.shape)}, expected [R, N] = {list(expected)}")
        finite = reward.isfinite().all(dim=1)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            raise DataError(f"reward of row {first} is not finite: {reward[first].tolist()}")
        row = empty_table(len(self.row), self.columns, self.device).copy_(self.row)
        row[:, self.columns["reward"]] = reward.to(row)
        return replace(self, row=row)

    def to(self, device: torch.device | str) -> "Transitions":
        """Copy the table to another device (itself if it is there)."""
        return replace(
            self,
            row=self.row.to(device),
            transition_rows=self.transition_rows.to(device),
            episode_start=self.episode_start.to(device),
        )

    def episodes(self, which: range) -> "Transitions":
        """Keep the whole episodes of `which`, in its order; adjacent ones (step 1) are a view, others a copy.

        Raises `UsageError` for episodes that do not exist.
        """
        if len(which) and not (min(which) >= 0 and max(which) < self.n_episodes):
            raise UsageError(f"episodes {which} do not exist: there are {self.n_episodes}, counted from 0")
        start, stop = self.episode_start[:-1], self.episode_start[1:]
        if which.step == 1:
            first, last = which.start, max(which.stop, which.start)
            begin = int(self.episode_start[first])
            boundaries = self.episode_start[first : last + 1] - begin
            row = self.row[begin : begin + int(boundaries[-1])]
        else:
            chosen = torch.tensor(list(which), dtype=torch.int64, device=self.device)
            length = (stop - start)[chosen]  # [episodes]
            boundaries = torch.cat([length.new_zeros(1), length.cumsum(0)])
            shift = torch.repeat_interleave(start[chosen] - boundaries[:-1], length)
            row = self.row[torch.arange(len(shift), device=self.device) + shift]
        return replace(
            self, row=row, transition_rows=rows_with_successor(boundaries), episode_start=boundaries
        )

    def statistics(self) -> Statistics:
        """Measure mean and standard deviation of observations, rewards and states over the transitions.

        Raises `DataError` where there is no transition.
        """
        self._check_not_empty()
        measured = [self.columns[name] for name in ("obs", "reward", "state") if name in self.columns]
        widths = [columns.stop - columns.start for columns in measured]
        zero = torch.zeros(sum(widths), dtype=torch.float64, device=self.device)

        def values() -> Iterator[Tensor]:
            for rows in self.transition_rows.split(STATISTICS_BLOCK):
                block = self.row.index_select(0, rows)
                yield torch.cat([block[:, columns] for columns in measured], dim=1)

        total = zero
        for block in values():
            total = total + block.sum(0)
        mean = (total / len(self)).float()
        # A second pass around the mean: the one-pass formula loses small spreads around large means.
        squares = zero
        for block in values():
            squares = squares + block.sub_(mean).square_().sum(0)
        std = (squares / len(self)).sqrt().float()
        shape = (self.spec.n_agents, self.spec.obs_dim)
        terminates = bool(self.row[self.transition_rows, self.columns["terminated"].start].any())
        obs_mean, reward_mean, *state_mean = mean.split(widths)
        obs_std, reward_std, *state_std = std.split(widths)
        return Statistics(
            obs_mean.view(shape),
            obs_std.view(shape),
            reward_mean,
            reward_std,
            terminates,
            state_mean=state_mean[0] if state_mean else None,
            state_std=state_std[0] if state_std else None,
            deaths=self._deaths(),
        )

    def _deaths(self) -> bool:
        """Whether anybody who is alive in a step is not in the next."""
        if "alive" not in self.columns:
            return False
        alive = self.column("alive")
        return bool((alive[self.transition_rows] > alive[self.transition_rows + 1]).any())

    def sample(self, batch_size: int, generators: Sequence[torch.Generator]) -> Batch:
        """Draw `batch_size` transitions for each of S = `len(generators)` seeds, uniform with replacement.

        Seed k draws from its own generator only, so its batches do not depend on which seeds run beside it.
        Raises `UsageError` for a batch larger than the data.
        """
        index = self._draw(len(self), "transitions", batch_size, generators)
        return self._gather(self.transition_rows.index_select(0, index), len(generators))

    def sample_steps(self, batch_size: int, generators: Sequence[torch.Generator]) -> EpisodeBatch:
        """Draw what `sample` draws of discrete data, as windows of one step: T = 1."""
        index = self._draw(len(self), "transitions", batch_size, generators)
        rows = self.transition_rows.index_select(0, index)
        block, width = self._pairs(rows), self.row.shape[1]
        across = block.shape[1]
        valid = torch.ones(len(generators), batch_size, 1, device=self.device)
        return self._windows(block, (batch_size * across, across, width), valid)

    def sample_episodes(self, batch_size: int, generators: Sequence[torch.Generator]) -> EpisodeBatch:
        """Draw `batch_size` whole episodes of discrete data for each seed, as `sample` draws transitions.

        They are padded to the longest drawn, T its steps. Raises `UsageError` for a batch larger than the data.
        """
        index = self._draw(self.n_episodes, "episodes", batch_size, generators)
        first, last = self.episode_start[index], self.episode_start[index + 1] - 1
        length = (last - first).view(len(generators), batch_size)  # [S, B] steps
        steps = int(length.max())
        time = torch.arange(steps + 1, device=self.device)
        rows = torch.minimum(first.unsqueeze(1) + time, last.unsqueeze(1))  # [S * B, T + 1]
        # Steps before episodes, the order in which a recurrent network reads them.
        rows = rows.view(len(generators), batch_size, -1).transpose(1, 2)
        block, width = self.row.index_select(0, rows.reshape(-1)), self.row.shape[1]
        valid = (time[:-1] < length.unsqueeze(2)).float()
        return self._windows(block, (rows.shape[1] * batch_size * width, width, batch_size * width), valid)

    def _draw(self, count: int, of: str, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw [S * B] numbers below `count`, each seed's from its own generator."""
        if batch_size > count:
            raise UsageError(f"a batch of {batch_size} is larger than the data: {count} {of}")
        drawn = [
            torch.randint(count, (batch_size,), generator=generator, device=generator.device)
            for generator in generators
        ]
        return (torch.cat(drawn) if len(drawn) > 1 else drawn[0]).to(self.device)

    def batch(self, rows: Tensor) -> Batch:
        """Gather the transitions that start at `rows` [S, B] int64, each one of `transition_rows`."""
        self._check_not_empty()
        return self._gather(rows.reshape(-1).to(self.device), len(rows))

    def _gather(self, rows: Tensor, seeds: int) -> Batch:
        """Make views of rows and of what matters of their successors."""
        width, block = self.row.shape[1], self._pairs(rows)
        across = block.shape[1]
        batch = len(rows) // seeds
        leading = (batch * across, across)

        def view(name: str, shift: int = 0) -> Tensor:
            shape = self._shapes[name]
            offset = self.columns[name].start + shift
            return block.as_strided((seeds, batch, *shape), (*leading, *_strides(shape)), offset)

        action, next_action = view("action"), view("action", width)
        if self.spec.discrete:
            action, next_action = action.long(), next_action.long()
        has_state, has_legal, has_alive = (name in self.columns for name in OPTIONAL_COLUMNS)
        return Batch(
            obs=view("obs"),
            action=action,
            reward=view("reward"),
            next_obs=view("obs", width),
            next_action=next_action,
            terminated=view("terminated"),
            done=view("done"),
            state=view("state") if has_state else None,
            next_state=view("state", width) if has_state else None,
            legal=view("legal").bool() if has_legal else None,
            next_legal=view("legal", width).bool() if has_legal else None,
            alive=view("alive").bool() if has_alive else None,
            next_alive=view("alive", width).bool() if has_alive else None,
        )

    def _pairs(self, rows: Tensor) -> Tensor:
        """Gather overlapping rows once, [rows, W + V] with V the part of the successor that a batch needs."""
        count, width = self.row.shape
        successor = max(self.columns[name].stop for name in SUCCESSOR_COLUMNS if name in self.columns)
        pairs = self.row.as_strided((count - 1, width + successor), (width, 1), self.row.storage_offset())
        return pairs.index_select(0, rows)

    def _windows(self, block: Tensor, strides: tuple[int, int, int], valid: Tensor) -> EpisodeBatch:
        """Make views of `block`, in which seeds, windows and steps lie `strides` floats apart."""
        S, B, T = valid.shape

        def view(name: str, steps: int) -> Tensor:
            shape, offset = self._shapes[name], self.columns[name].start
            return block.as_strided((S, B, steps, *shape), (*strides, *_strides(shape)), offset)

        def optional(name: str) -> Tensor | None:
            return view(name, T + 1) if name in self.columns else None

        legal, alive = optional("legal"), optional("alive")
        return EpisodeBatch(
            obs=view("obs", T + 1),
            action=view("action", T).long(),
            reward=view("reward", T),
            terminated=view("terminated", T),
            valid=valid,
            state=optional("state"),
            legal=None if legal is None else legal.bool(),
            alive=None if alive is None else alive.bool(),
        )

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each column in one row."""
        return column_shapes(self.spec, [name for name in OPTIONAL_COLUMNS if name in self.columns])

    def _check_not_empty(self) -> None:
        if not len(self):
            raise DataError("the table holds no transition")


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous block of at most two dimensions."""
    return (shape[1], 1) if len(shape) == 2 else (1,) * len(shape)
