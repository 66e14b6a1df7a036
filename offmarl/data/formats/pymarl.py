"""PyMARL's HDF5 files of padded episodes, as CFCQL, MACCA and ICQ write them for discrete tasks.

    state [E, T + 1, D]  obs [E, T + 1, N, O]  actions [E, T + 1, N, 1]  avail_actions [E, T + 1, N, K]
    reward [E, T + 1, 1]  terminated [E, T + 1, 1]  filled [E, T + 1, 1]

CFCQL adds `probs` (the behaviour policy's), ICQ `actions_onehot`; both are recomputable or not needed and are not
read. `filled` is one on an episode's steps and on the row after them, which holds its final observation; an
episode whose last filled row is terminated has no such row, and its last observation is repeated. `terminated`
is one for true endings only: an episode without it ran out of time.

An export has `actions_onehot`, which CFCQL's loader accepts too, and no `probs`: the data does not know them. A
task without a state gets the agents' observations side by side for one, as PyMARL does. What has no place there
(individual rewards, who is alive, positions) goes to the file beside it.
Source: thu-rllab/CFCQL, discrete/src/run/run.py; YiqinYang/ICQ, ICQ-MA/src/run.py.
"""

from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from offmarl.atomic import replacing
from offmarl.data.formats.base import (
    Contents,
    Exported,
    ReadOptions,
    Source,
    array_of,
    choices_of,
    convention_note,
    dataset_blocks,
    hdf5_keys,
    paid,
    reading,
    with_final_rows,
)
from offmarl.data.formats.beside import Beside, beside_path, write_beside
from offmarl.data.hdf5 import created
from offmarl.data.store import Dataset
from offmarl.data.validate import BLOCK_BYTES
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError, UsageError
from offmarl.reporter import Progress

REQUIRED = ("obs", "actions", "reward", "terminated", "filled")
DIMENSIONS = {
    "obs": 4,
    "actions": 4,
    "avail_actions": 4,
    "state": 3,
    "reward": 3,
    "terminated": 3,
    "filled": 3,
}
LACKING = (
    "behaviour_probability",
    "agent_reward",
    "alive",
    "position",
    "terminated",
    "truncated",
)  # of our arrays


def recognise(path: Path) -> bool:
    """Whether `path` is an HDF5 file with padded episodes."""
    return hdf5_keys(path) >= {"actions", "filled", "reward"}


class PymarlSource(Source):
    """An open file."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Open it and read which rows are filled. Raises `DataError` for a damaged file."""
        self.path = path
        with reading(path):
            self._file = h5py.File(path, "r", locking=False)
            names = [*REQUIRED, *(name for name in ("avail_actions", "state") if name in self._file)]
            self._arrays = {name: array_of(self._file, name, DIMENSIONS[name]) for name in names}
            self._check_shapes()
            self.beside = Beside.of(path, folder=False)
            notes: list[str] = []
            self._episode, self._repeats, steps = self._episodes(notes)
            n_agents = self._arrays["obs"].shape[2]
            rewards = self._arrays["reward"].shape[2]
            self._convention: Literal["sum", "copy"] = "copy"
            if rewards == 1 and options.team_reward is not None:
                raise UsageError(
                    f"--team-reward {options.team_reward}: {path} has one reward a step, the team's: leave it out"
                )
            if rewards > 1:
                self._convention = options.team_reward or "sum"
                notes.append(convention_note(self._convention, False, options.team_reward is None))
            variant = "CFCQL" if "probs" in self._file else "ICQ" if "actions_onehot" in self._file else ""
            if variant:
                notes.append(f"the variant of {variant}")
            if "avail_actions" in names:
                choices = self._arrays["avail_actions"].shape[3]
            elif "actions_onehot" in self._file:
                choices = array_of(self._file, "actions_onehot", 4).shape[3]
            else:
                choices = choices_of("actions", np.max([taken.max() for taken in self._arrays["actions"]]))
        self.contents = Contents(
            steps=steps,
            obs_widths=(self._arrays["obs"].shape[3],) * n_agents,
            discrete=True,
            action_widths=(choices,) * n_agents,
            state_dim=self._arrays["state"].shape[2] if "state" in names else 0,
            has_legal="avail_actions" in names,
            padded=True,
            has_agent_reward=self._convention == "sum",
            # A file without final rows has as many columns as its longest episode has steps.
            horizon=options.horizon or max(self._arrays["obs"].shape[1] - 1, int(steps.max())),
            notes=notes,
        )

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Rows of episodes first..last, padding removed; a few padded episodes are in memory at a time."""
        padded_bytes = sum(array[0].nbytes for array in self._arrays.values()) or 1
        step = max(1, BLOCK_BYTES // padded_bytes)
        parts = [self._read(begin, min(begin + step, last)) for begin in range(first, last, step)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _read(self, first: int, last: int) -> dict[str, np.ndarray]:
        chosen, steps, repeats = (
            self._episode[first:last],
            self.contents.steps[first:last],
            self._repeats[first:last],
        )
        lowest, highest = int(chosen[0]), int(chosen[-1]) + 1
        padded = {name: array[lowest:highest][chosen - lowest] for name, array in self._arrays.items()}
        if repeats.any():  # the final row of an episode may lie behind the file's last column
            padded = {
                name: np.pad(values, ((0, 0), (0, 1), *((0, 0),) * (values.ndim - 2)))
                for name, values in padded.items()
            }
            for name in ("obs", "state", "avail_actions"):
                if name in padded:
                    padded[name][repeats, steps[repeats]] = padded[name][repeats, steps[repeats] - 1]
        time = np.arange(padded["obs"].shape[1])
        inside = time <= steps[:, None]  # [E, T + 1]
        acting = time < steps[:, None]
        terminated = acting & (padded["terminated"][..., 0] != 0)
        ours = {"obs": "obs", "state": "state", "legal": "avail_actions"}
        arrays = {name: padded[theirs][inside] for name, theirs in ours.items() if theirs in padded}
        arrays["action"] = np.where(acting[..., None], padded["actions"][..., 0], 0)[inside]
        arrays["terminated"] = terminated[inside]
        arrays["truncated"] = ((time == steps[:, None] - 1) & ~terminated)[inside]
        begin = int(self.contents.steps[:first].sum())
        rewards = paid(padded["reward"][acting], self._convention, begin)
        return arrays | {name: with_final_rows(values, steps) for name, values in rewards.items()}

    def shown(self, kind: Literal["obs", "action", "state"], agent: int) -> str:
        """The array and its shape."""
        name = {"obs": "obs", "action": "actions", "state": "state"}[kind]
        if kind == "action" and "avail_actions" in self._arrays:
            name = "avail_actions"
        return f"array '{name}' has shape {list(self._arrays[name].shape)}"

    def files(self) -> list[Path]:
        """The file, and what lies beside it."""
        return [self.path, *([self.beside.path] if self.beside else [])]

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self.beside:
            self.beside.close()

    def _check_shapes(self) -> None:
        """All arrays agree on episodes and time, and on the number of agents."""
        episodes, time, n_agents, _ = self._arrays["obs"].shape
        for name, array in self._arrays.items():
            shape = array.shape
            expected = [episodes, time, *([n_agents] if array.ndim == 4 else []), shape[-1]]
            expected[-1] = 1 if name in ("actions", "terminated", "filled") else shape[-1]
            if name == "reward" and shape[2] not in (1, n_agents):
                expected[-1] = 1
            if list(shape) != expected:
                raise DataError(
                    f"array '{name}' has shape {list(shape)}, expected {expected} "
                    f"('obs' has {list(self._arrays['obs'].shape)})"
                )

    def _episodes(self, notes: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which episodes hold a step, whether the final row of each is missing, and its steps."""
        filled = self._arrays["filled"][:, :, 0] != 0  # [E, T + 1]
        terminated = self._arrays["terminated"][:, :, 0] != 0
        length = filled.sum(axis=1)
        holes = np.flatnonzero((filled != (np.arange(filled.shape[1]) < length[:, None])).any(axis=1))
        if len(holes):
            raise DataError(f"array 'filled', episode {int(holes[0])}: filled rows are not the first ones")
        last = np.maximum(length - 1, 0)
        repeats = (length > 0) & terminated[np.arange(len(length)), last]
        steps = np.where(repeats, length, length - 1)
        empty = int((steps < 1).sum())
        if empty:
            notes.append(f"{empty} episodes without a step are left out")
        if repeats.any():
            notes.append(
                f"{int(repeats.sum())} episodes have no final observation: their last one is repeated"
            )
        kept = np.flatnonzero(steps >= 1)
        if not len(kept):
            raise DataError("array 'filled' is zero everywhere: there is no episode")
        return kept, repeats[kept], steps[kept].astype(np.int64)


def write(dataset: Dataset, path: Path, progress: Progress) -> Exported:
    """Write `dataset` to the file `path`. Raises `UsageError` for continuous actions."""
    spec = dataset.spec
    if not spec.discrete:
        raise UsageError(f"{dataset.id} has continuous actions: PyMARL's format is for discrete ones")
    start = dataset.episode_start.numpy()
    steps = np.diff(start) - 1
    episodes, time = len(steps), max(spec.horizon, int(steps.max())) + 1
    n_agents, choices = spec.n_agents, spec.action_dim
    state_dim = spec.state_dim if "state" in dataset.card.arrays else n_agents * spec.obs_dim
    layout: dict[str, tuple[tuple[int, ...], str]] = {
        "state": ((state_dim,), "float32"),
        "obs": ((n_agents, spec.obs_dim), "float32"),
        "actions": ((n_agents, 1), "int64"),
        "actions_onehot": ((n_agents, choices), "float32"),
        "avail_actions": ((n_agents, choices), "int32"),
        "reward": ((1,), "float32"),
        "terminated": ((1,), "uint8"),
        "filled": ((1,), "int64"),
    }
    padded_bytes = time * sum(
        int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in layout.values()
    )
    at_once = max(1, BLOCK_BYTES // padded_bytes)
    target = beside_path(path, folder=False)
    lacking = [name for name in LACKING if name in dataset.card.arrays]
    with replacing(target) as temporary_beside, replacing(path) as temporary:
        write_beside(temporary_beside, dataset, lacking, final=False)
        with created(temporary) as file:
            for name, (shape, dtype) in layout.items():
                whole, chunk = (episodes, time, *shape), (1, time, *shape)
                file.create_dataset(name, whole, dtype, maxshape=(None, time, *shape), chunks=chunk)
            for first, last, rows in dataset_blocks(dataset, progress):
                theirs = _their_arrays(rows, spec)
                for begin in range(first, last, at_once):
                    end = min(begin + at_once, last)
                    chosen = slice(int(start[begin] - start[first]), int(start[end] - start[first]))
                    episode, offset = _places(start[begin : end + 1])
                    for name, (shape, dtype) in layout.items():
                        padded = np.zeros((end - begin, time, *shape), dtype=dtype)
                        padded[episode, offset] = theirs[name][chosen]
                        file[name][begin:end] = padded
    lost = [name for name in lacking if name not in ("terminated", "truncated")]
    notes = ["the behaviour policy's 'probs' are not known, and not written"]
    if lost:
        notes.append(f"no place for {', '.join(lost)}: kept in {target.name}")
    if "state" not in dataset.card.arrays:
        notes.append("'state' holds the agents' observations side by side")
    return Exported(path, tuple(notes), f"h5py.File({str(path)!r})['obs']")


def _their_arrays(rows: dict[str, np.ndarray], spec: EnvSpec) -> dict[str, np.ndarray]:
    """Our rows [R, ...] under PyMARL's names; where nothing is forbidden, every choice of an agent is legal."""
    count = len(rows["obs"])
    available = np.zeros((spec.n_agents, spec.action_dim), dtype=np.int32)
    for agent, names in enumerate(spec.action_names):
        available[agent, : len(names)] = 1
    return {
        "state": rows["state"] if "state" in rows else rows["obs"].reshape(count, -1),
        "obs": rows["obs"],
        "actions": rows["action"][..., None],
        "actions_onehot": np.eye(spec.action_dim, dtype=np.float32)[rows["action"].astype(np.int64)],
        "avail_actions": rows.get("legal", np.broadcast_to(available, (count, *available.shape))),
        "reward": rows["team_reward"][:, None],
        "terminated": rows["terminated"][:, None],
        "filled": np.ones((count, 1), dtype=np.int64),
    }


def _places(start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Episode and time of every row of episodes that begin at `start` [E + 1], counted from 0."""
    length = np.diff(start)
    episode = np.repeat(np.arange(len(length)), length)
    return episode, np.arange(int(start[-1] - start[0])) - np.repeat(start[:-1] - start[0], length)
