"""OMAR's folders of `.npy` files, which CFCQL and MACCA use too for their continuous tasks. Read only.

    <env>/<quality>/seed_<k>_data/  obs_0.npy [R, O]  acs_0.npy [R, A]  rews_0.npy [R]  next_obs_0.npy  dones_0.npy
                                    obs_1.npy ...     (MAMuJoCo also: states_0.npy [R, D], next_states_0.npy)

Rows are transitions one after another. In the particle tasks `dones` is zero everywhere, also where an episode
ends, so episodes are cut by their length; that `next_obs` of a row is `obs` of the following one is checked. All
agents of the simulator are there: those that an environment of offmarl plays itself (prey) are left out.
Each agent's reward is stored; the team's is their sum, as MACCA has it, so the mean over agents of a return, in
which results on these tasks are given, is the return that the card shows.
Source: ling-pan/OMAR, utils/buffer.py. Shapes: R rows, E episodes, N agents, O, A, D as everywhere.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from offmarl.data.formats.base import (
    Contents,
    ReadOptions,
    Source,
    check_numbers,
    choices_of,
    convention_note,
    ends_of,
    last_of_each,
    left_out,
    paid,
    reading,
    same_length,
    with_final_rows,
)
from offmarl.errors import DataError, UsageError

HORIZON = 25  # of the particle tasks, where nobody says otherwise
KINDS = ("obs", "acs", "rews", "next_obs", "dones")
SCAN_ROWS = 1 << 16  # compared at a time


def recognise(path: Path) -> bool:
    """Whether `path` is a folder with the files of at least one agent, or of several seeds."""
    return (path / "obs_0.npy").exists() or bool(_seeds(path))


class OmarSource(Source):
    """An open folder; the arrays are mapped, not read."""

    cut_by_horizon = True

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Open it. Raises `UsageError` for a folder of several datasets, `DataError` for a damaged one."""
        self.path = path
        seeds = _seeds(path)
        if seeds and not (path / "obs_0.npy").exists():
            raise UsageError(f"{path} holds {len(seeds)} datasets: name one, for example {seeds[0]}")
        found = _agents_of(path)
        n_agents = options.kept_agents(found)
        with reading(path):
            self._arrays = {
                (kind, agent): self._load(kind, agent) for kind in KINDS for agent in range(n_agents)
            }
            self._states = (path / "states_0.npy").exists()
            if self._states:
                for kind in ("states", "next_states"):
                    self._arrays[kind, 0] = self._load(kind, 0)
            self._rows = len(self._arrays["obs", 0])
            self._check_shapes()
        notes = []
        if found > n_agents:
            notes.append(left_out(n_agents, found))
        steps, terminated = self._episodes(options, n_agents, notes)
        self._terminated = terminated
        self._start = np.concatenate([[0], np.cumsum(steps)])
        shared = self._shared_reward(n_agents)
        self._convention: Literal["sum", "copy"] = options.team_reward or "sum"
        notes.append(convention_note(self._convention, shared, options.team_reward is None))
        stored = [kind for kind, _ in self._arrays if kind in ("obs", "acs", "rews", "states")]
        narrowed = [kind for kind in dict.fromkeys(stored) if self._arrays[kind, 0].dtype == np.float64]
        if narrowed:
            notes.append(f"float64 there, float32 here: {', '.join(narrowed)}")
        discrete = self._arrays["acs", 0].ndim == 1
        self.contents = Contents(
            steps=steps,
            obs_widths=tuple(self._arrays["obs", agent].shape[1] for agent in range(n_agents)),
            discrete=discrete,
            action_widths=tuple(
                choices_of(f"acs_{agent}.npy", self._arrays["acs", agent].max())
                if discrete
                else self._arrays["acs", agent].shape[1]
                for agent in range(n_agents)
            ),
            state_dim=self._arrays["states", 0].shape[1] if self._states else 0,
            shared_reward=shared,
            has_agent_reward=self._convention == "sum",
            horizon=options.horizon,
            notes=notes,
        )

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Rows of episodes first..last; the final observation is the `next_obs` of the last row."""
        begin, end = int(self._start[first]), int(self._start[last])
        steps = self.contents.steps[first:last]
        obs = with_final_rows(
            self._stacked("obs", begin, end),
            steps,
            last_of_each(self._stacked("next_obs", begin, end), steps),
        )
        arrays = {"obs": obs, "action": with_final_rows(self._stacked("acs", begin, end), steps)}
        if self._states:
            final = last_of_each(self._arrays["next_states", 0][begin:end], steps)
            arrays["state"] = with_final_rows(self._arrays["states", 0][begin:end], steps, final)
        rewards = paid(self._rewards(begin, end), self._convention, begin)
        arrays |= {name: with_final_rows(values, steps) for name, values in rewards.items()}
        terminated = self._terminated[first:last]
        return arrays | ends_of(steps, terminated, ~terminated)

    def shown(self, kind: Literal["obs", "action", "state"], agent: int) -> str:
        """The file and the shape in it."""
        name = {"obs": "obs", "action": "acs", "state": "states"}[kind]
        agent = 0 if kind == "state" else agent
        shape = list(self._arrays[name, agent].shape) if (name, agent) in self._arrays else "no file"
        return f"array '{name}_{agent}.npy' has shape {shape}"

    def files(self) -> list[Path]:
        """The arrays that were imported."""
        return [self.path / f"{kind}_{agent}.npy" for kind, agent in self._arrays]

    def _load(self, kind: str, agent: int) -> np.ndarray:
        path = self.path / f"{kind}_{agent}.npy"
        if not path.exists():
            raise DataError(f"array '{path.name}' is missing")
        with reading(path):
            array: np.ndarray = np.load(path, mmap_mode="r")
            if not isinstance(array, np.ndarray) or not array.ndim:
                raise DataError("expected one array with a row for each transition")
        if kind in ("rews", "dones") and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        return array

    def _check_shapes(self) -> None:
        """Every array has a row for each transition, and the dimensions that its kind has."""
        for (kind, agent), array in self._arrays.items():
            check_numbers(f"{kind}_{agent}.npy", array)
            dimensions = (1,) if kind in ("rews", "dones") else (1, 2) if kind == "acs" else (2,)
            width = self._arrays[kind.removeprefix("next_"), agent].shape[1:]
            good = array.ndim in dimensions and len(array) == self._rows and array.shape[1:] == width
            if not good:
                shape = [self._rows, *([] if dimensions == (1,) else width)]
                raise DataError(
                    f"array '{kind}_{agent}.npy' has shape {list(array.shape)}, expected {shape} "
                    f"('obs_0.npy' has {self._rows} rows)"
                )
        if self._rows == 0:
            raise DataError("array 'obs_0.npy' has no rows")
        if len({array.ndim for (kind, _), array in self._arrays.items() if kind == "acs"}) > 1:
            raise DataError("some agents have discrete actions and others continuous ones")

    def _episodes(
        self, options: ReadOptions, n_agents: int, notes: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps of each episode [E], and whether it was terminated [E]."""
        given = options.horizon or (options.known.horizon if options.known else None)
        done = self._arrays["dones", 0][:] != 0
        for agent in range(1, n_agents):
            other = self._arrays["dones", agent][:] != 0
            if not np.array_equal(done, other):
                row = int(np.flatnonzero(done != other)[0])
                raise DataError(
                    f"{self.path}: array 'dones_{agent}.npy', row {row}: agents end at different times, which "
                    "this importer does not know"
                )
        breaks = [self._breaks(agent) for agent in range(n_agents)]
        if done.any():
            ends = np.flatnonzero(done) + 1
            ends = ends if ends[-1] == self._rows else np.append(ends, self._rows)
            steps = np.diff(ends, prepend=0)
            limit = given or (int(steps[0]) if same_length(steps) else 0)
            terminated = done[ends - 1] & (steps != limit)
            if limit and not terminated.all():
                notes.append(f"an episode of {limit} steps ran out of time; a shorter one was terminated")
        else:
            horizon = given or HORIZON
            whole, rest = divmod(self._rows, horizon)
            steps = np.array([horizon] * whole + [rest] * (rest > 0), dtype=np.int64)
            terminated = np.zeros(len(steps), dtype=bool)
            notes.append(
                f"'dones' is zero everywhere: cut every {horizon} rows, episodes end by running out of time"
            )
            if rest:
                notes.append(
                    f"{self._rows} rows are no multiple of {horizon}: the last episode has {rest} steps"
                )
        self._check_breaks(breaks, np.cumsum(steps) - 1, notes)
        return steps.astype(np.int64), terminated

    def _breaks(self, agent: int) -> np.ndarray:
        """Rows whose `next_obs` is not the `obs` of the following row."""
        obs, successor = self._arrays["obs", agent], self._arrays["next_obs", agent]
        found = []
        for begin in range(0, self._rows - 1, SCAN_ROWS):
            end = min(begin + SCAN_ROWS, self._rows - 1)
            differs = (successor[begin:end] != obs[begin + 1 : end + 1]).any(axis=1)
            found.append(begin + np.flatnonzero(differs))
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def _check_breaks(self, breaks: list[np.ndarray], ends: np.ndarray, notes: list[str]) -> None:
        """Compare where each agent's observations stop following one another with where episodes were said to end."""
        for agent, of_agent in enumerate(breaks):
            inside = np.setdiff1d(of_agent, ends)
            if not len(inside):
                continue
            row, length = int(inside[0]), int(of_agent[0]) + 1
            for name, at in (("next_obs", row), ("obs", row + 1)):
                if not np.isfinite(self._arrays[name, agent][at]).all():
                    raise DataError(f"{self.path}: array '{name}_{agent}.npy', row {at}: not a finite number")
            hint = (
                f"episodes seem to have {length} steps: --horizon {length}"
                if (np.diff(of_agent, prepend=-1) == length).all()
                else "rows are not in the order of time"
            )
            raise DataError(
                f"{self.path}: array 'next_obs_{agent}.npy', row {row}: not the observation of row {row + 1}, inside "
                f"an episode; {hint}"
            )
        running = np.setdiff1d(ends[:-1], np.concatenate(breaks))
        if len(running):
            notes.append(
                f"at {len(running)} of {len(ends)} ends of episodes 'next_obs' is the first observation of the next "
                "episode: its final observation is not stored, or the episodes are longer (--horizon)"
            )

    def _shared_reward(self, n_agents: int) -> bool:
        first = self._arrays["rews", 0][:]
        return all(np.array_equal(first, self._arrays["rews", agent][:]) for agent in range(1, n_agents))

    def _rewards(self, begin: int, end: int) -> np.ndarray:
        """Rewards [R, N]."""
        n_agents = self.contents.n_agents
        return np.stack([self._arrays["rews", agent][begin:end] for agent in range(n_agents)], axis=1)

    def _stacked(self, kind: str, begin: int, end: int) -> np.ndarray:
        """Rows of all agents, [R, N, ...], narrower ones padded with zeros."""
        arrays = [self._arrays[kind, agent] for agent in range(self.contents.n_agents)]
        if arrays[0].ndim == 1:
            return np.stack([array[begin:end] for array in arrays], axis=1)
        width = max(array.shape[1] for array in arrays)
        stacked = np.zeros((end - begin, len(arrays), width), dtype=np.float32)
        for agent, array in enumerate(arrays):
            stacked[:, agent, : array.shape[1]] = array[begin:end]
        return stacked


def _agents_of(path: Path) -> int:
    """N, by the highest number in the names of files: one that is missing below it is missed."""
    numbers = [
        int(number)
        for kind in KINDS
        for file in path.glob(f"{kind}_*.npy")
        if (number := file.stem.removeprefix(f"{kind}_")).isdecimal()
    ]
    if not numbers:
        raise DataError(f"{path}: array 'obs_0.npy' is missing")
    return max(numbers) + 1


def _seeds(path: Path) -> list[str]:
    """Folders below `path` that hold a dataset of this format each."""
    if not path.is_dir():
        return []
    found = [*path.glob("*/obs_0.npy"), *path.glob("*/*/obs_0.npy")]
    return sorted(file.parent.relative_to(path).as_posix() for file in found)
