"""d3rlpy's HDF5 replay buffers: version 2.1, and the flat files of version 1. One agent a file.

    2.1  columns, num_episodes, version; observations_<i> [T, ...]  actions_<i> [T, A]  rewards_<i> [T, 1]
         terminated_<i>; several observations of one agent: observations_<i>_<j>
    1    observations [R, ...]  actions [R, A]  rewards [R]  terminals [R]  (episode_terminals [R])

A folder of such files, one an agent, is a dataset of several agents. There is no observation after an episode's
last step: the last one is repeated. An episode that is not terminated ran out of time. Rewards that are equal in
all files at every step are copies of the team's reward; others are the agents' own.

An export writes one file an agent, with its own observations and actions and the team's reward, the way in which
independent learners see the task; it has no place for legal actions, states, individual rewards, who is alive and
the last observation, which go to the file beside it. The files need no d3rlpy to be written.
Source: takuseno/d3rlpy, d3rlpy/dataset/io.py.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from offmarl.data.formats.base import (
    Contents,
    Exported,
    ReadOptions,
    Source,
    TeamReward,
    array_of,
    choices_of,
    convention_note,
    dataset_blocks,
    ends_of,
    hdf5_keys,
    last_of_each,
    left_out,
    natural_order,
    paid,
    reading,
    with_final_rows,
)
from offmarl.data.formats.beside import NAME, Beside, beside_path, write_beside
from offmarl.data.hdf5 import created
from offmarl.data.store import Dataset
from offmarl.errors import DataError
from offmarl.reporter import Progress

VERSION = "2.1"
COLUMNS = ("observations", "actions", "rewards", "terminated")
FLAT = {"observations", "actions", "rewards", "terminals"}  # arrays of version 1
LACKING = (
    "state",
    "legal",
    "behaviour_probability",
    "agent_reward",
    "alive",
    "position",
    "truncated",
)  # of our arrays


def recognise(path: Path) -> bool:
    """Whether `path` is such a file, or a folder with one for each agent."""
    files = _agent_files(path)
    return bool(files) and all(_is_buffer(hdf5_keys(file)) for file in files[:2])


def foreign(path: Path) -> list[Path]:
    """What a folder holds beside the agents' files."""
    return [entry for entry in path.iterdir() if entry.name != NAME and not _is_buffer(hdf5_keys(entry))]


class D3rlpySource(Source):
    """Open files, one an agent."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Open them. Raises `DataError` for a damaged file, or agents whose episodes differ."""
        self.path = path
        files = _agent_files(path)
        if not files:
            raise DataError(f"{path} holds no .h5 file: expected one for each agent")
        notes: list[str] = []
        self.beside = Beside.of(path, folder=path.is_dir())
        if self.beside and path.is_dir():
            by_name = {file.name: file for file in files}
            named = [by_name[name] for name in _file_names(self.beside.spec.agents) if name in by_name]
            files = named if len(named) == len(files) else files
        kept = options.kept_agents(len(files))
        if kept < len(files):
            notes.append(left_out(kept, len(files)))
        self._agents: list[_AgentFile] = []
        for file in files[:kept]:
            with reading(file):
                self._agents.append(_AgentFile(file))
        steps, terminated = self._agents[0].steps, self._agents[0].terminated
        for agent in self._agents[1:]:
            if not np.array_equal(agent.steps, steps) or not np.array_equal(agent.terminated, terminated):
                raise DataError(
                    f"{agent.path}: {len(agent.steps)} episodes with {int(agent.steps.sum())} steps, where "
                    f"{self._agents[0].path.name} has {len(steps)} with {int(steps.sum())}, or other ends"
                )
        if len({agent.discrete for agent in self._agents}) > 1:
            raise DataError(f"{path}: some agents have discrete actions and others continuous ones")
        self._terminated = terminated
        shared = self._shared_reward()
        self._convention: TeamReward = options.team_reward or ("copy" if shared else "sum")
        if len(self._agents) > 1:
            notes.append(convention_note(self._convention, shared, options.team_reward is None))
        if self.beside is None:
            notes.append(
                "the format has no observation after an episode's last step: the last one is repeated"
            )
        first = self._agents[0]
        self.contents = Contents(
            steps=steps,
            obs_widths=tuple(agent.obs_width for agent in self._agents),
            discrete=first.discrete,
            action_widths=tuple(agent.action_width for agent in self._agents),
            agents=tuple(agent.path.stem for agent in self._agents) if path.is_dir() else (),
            shared_reward=shared,
            has_agent_reward=self._convention == "sum" and len(self._agents) > 1,
            horizon=options.horizon,
            notes=notes,
        )

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Rows of episodes first..last; the last observation is repeated."""
        steps = self.contents.steps[first:last]
        rewards = np.stack([agent.read("rewards", first, last)[:, 0] for agent in self._agents], axis=1)
        obs = self._laid_out("observations", first, last, self.contents.obs_widths)
        if self.contents.discrete:
            taken = [agent.read("actions", first, last)[:, 0] for agent in self._agents]
            action = np.stack(taken, axis=1)
        else:
            action = self._laid_out("actions", first, last, self.contents.action_widths)
        arrays = {
            "obs": with_final_rows(obs, steps, last_of_each(obs, steps)),
            "action": with_final_rows(action, steps),
        }
        arrays |= {
            name: with_final_rows(values, steps)
            for name, values in paid(rewards, self._convention, int(self._agents[0].start[first])).items()
        }
        if len(self._agents) == 1:
            arrays.pop("agent_reward", None)
        return arrays | ends_of(steps, self._terminated[first:last], ~self._terminated[first:last])

    def shown(self, kind: Literal["obs", "action", "state"], agent: int) -> str:
        """The array in the agent's file, and the size of one entry."""
        if kind == "state":
            return "there is no state, which"
        source = self._agents[agent]
        name, width = (
            ("observations", source.obs_width) if kind == "obs" else ("actions", source.action_width)
        )
        what = "choices" if kind == "action" and source.discrete else "numbers"
        return f"array '{name}' of {source.path.name} has {width} {what} an agent"

    def files(self) -> list[Path]:
        """The agents' files, and what lies beside them."""
        beside = [self.beside.path] if self.beside else []
        return [agent.path for agent in self._agents] + beside

    def close(self) -> None:
        """Close the files."""
        for agent in self._agents:
            agent.file.close()
        if self.beside:
            self.beside.close()

    def _shared_reward(self) -> bool:
        first, *others = (agent.read("rewards", 0, len(agent.steps)) for agent in self._agents)
        return all(np.array_equal(first, other) for other in others)

    def _laid_out(self, name: str, first: int, last: int, widths: tuple[int, ...]) -> np.ndarray:
        """Values of all agents, [T, N, widest], narrower ones padded with zeros."""
        parts = [agent.read(name, first, last) for agent in self._agents]
        laid = np.zeros((len(parts[0]), len(parts), max(widths)), dtype=np.float32)
        for agent, part in enumerate(parts):
            laid[:, agent, : part.shape[1]] = part
        return laid


class _AgentFile:
    """One open file of either version: steps and ends of its episodes, and their rows.

    Rewards and choices are held, a number a step each: opening an array of version 2.1 costs more than reading it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: dict[str, np.ndarray] = {}  # [all steps, 1]
        self._widths: dict[str, int] = {}  # of the first episode
        self.file = h5py.File(path, "r", locking=False)
        keys = set(self.file)
        if not _is_buffer(keys):
            raise DataError(
                f"arrays {', '.join(sorted(keys)[:8]) or 'none'} are there, expected columns, num_episodes and "
                f"version, or {', '.join(sorted(FLAT))}"
            )
        self._flat = keys >= FLAT
        if self._flat:
            self._open_flat()
        else:
            self._open_episodes()
        if not len(self.steps) or (self.steps < 1).any():
            raise DataError("array 'rewards' holds no step, or an episode without one")
        self.start = np.concatenate([[0], np.cumsum(self.steps)])
        self.obs_width = self.read("observations", 0, 1).shape[1]
        actions = array_of(self.file, "actions" if self._flat else "actions_0")
        self.discrete = actions.dtype.kind in "iu"
        width = int(np.prod(actions.shape[1:], dtype=np.int64))
        if self.discrete and width != 1:
            raise DataError(f"array '{actions.name[1:]}' has shape {list(actions.shape)}, expected [T, 1]")
        self.action_width = width
        if self.discrete:
            self._held["actions"] = self.read("actions", 0, len(self.steps))
            self.action_width = choices_of("actions", self._held["actions"].max())

    def read(self, name: str, first: int, last: int) -> np.ndarray:
        """Steps of episodes first..last, [T, width]."""
        begin, end = int(self.start[first]), int(self.start[last])
        if name in self._held:
            return self._held[name][begin:end]
        if self._flat:
            values: np.ndarray = self.file[name][begin:end]
            return values.reshape(end - begin, -1)
        return np.concatenate([self._episode(name, number) for number in range(first, last)])

    def _episode(self, name: str, number: int) -> np.ndarray:
        """One array of one episode, its parts side by side."""
        steps, key = int(self.steps[number]), f"{name}_{number}"
        if key in self.file:
            keys = [key]
        else:
            keys = [f"{key}_0"]
            while f"{key}_{len(keys)}" in self.file:
                keys.append(f"{key}_{len(keys)}")
            if keys[0] not in self.file:
                raise DataError(f"{self.path}: array '{key}' is missing")
        parts = []
        for part in keys:
            array = array_of(self.file, part)
            if not array.shape or array.shape[0] != steps:
                raise DataError(
                    f"{self.path}: array '{part}' has shape {list(array.shape)}, expected {steps} rows "
                    f"('rewards_{number}')"
                )
            parts.append(array[()].reshape(steps, -1))
        values = np.concatenate(parts, axis=1)
        width = self._widths.setdefault(name, values.shape[1])
        if values.shape[1] != width:
            raise DataError(
                f"{self.path}: array '{key}' has {values.shape[1]} numbers a step, expected {width}"
            )
        return values

    def _open_flat(self) -> None:
        found = FLAT | ({"episode_terminals"} & set(self.file))
        arrays = {name: array_of(self.file, name) for name in sorted(found)}
        rows = arrays["observations"].shape[0] if arrays["observations"].shape else 0
        for name, array in arrays.items():
            single = name not in ("observations", "actions")
            if array.shape[:1] != (rows,) or (single and array.size != rows):
                expected = f"{rows} numbers" if single else f"{rows} rows"
                raise DataError(f"array '{name}' has shape {list(array.shape)}, expected {expected}")
        terminal = over = arrays["terminals"][:].reshape(-1) != 0
        if "episode_terminals" in arrays:
            over = terminal | (arrays["episode_terminals"][:].reshape(-1) != 0)
        ends = np.flatnonzero(over) + 1
        if rows and (not len(ends) or ends[-1] != rows):
            ends = np.append(ends, rows)
        self.steps = np.diff(ends, prepend=0).astype(np.int64)
        self.terminated = terminal[ends - 1]
        self._held["rewards"] = arrays["rewards"][:].reshape(rows, 1)

    def _open_episodes(self) -> None:
        version = self.file["version"][()]
        version = version.decode() if isinstance(version, bytes) else str(version)
        if version != VERSION:
            raise DataError(f"'version' is {version}: {VERSION} and the flat files of version 1 can be read")
        count = int(self.file["num_episodes"][()])
        rewards = [array_of(self.file, f"rewards_{number}", 2)[()] for number in range(count)]
        for number, values in enumerate(rewards):
            if values.shape[1] != 1:
                raise DataError(f"array 'rewards_{number}' has shape {list(values.shape)}, expected [T, 1]")
        self.steps = np.array([len(values) for values in rewards], dtype=np.int64)
        self._held["rewards"] = np.concatenate(rewards or [np.zeros((0, 1))])
        self.terminated = np.array(
            [bool(array_of(self.file, f"terminated_{number}")[()]) for number in range(count)], dtype=bool
        )


def write(dataset: Dataset, path: Path, progress: Progress) -> Exported:
    """Write `dataset` to the folder `path`, one file an agent."""
    spec = dataset.spec
    names = [path / name for name in _file_names(spec.agents)]
    start = dataset.episode_start.numpy()
    with ExitStack() as stack:
        files = [stack.enter_context(created(name)) for name in names]
        for file in files:
            file.create_dataset("columns", data=list(COLUMNS))
            file.create_dataset("num_episodes", data=len(start) - 1)
            file.create_dataset("version", data=VERSION)
        for first, last, rows in dataset_blocks(dataset, progress):
            offset = int(start[first])
            for number in range(first, last):
                acting = slice(int(start[number]) - offset, int(start[number + 1]) - offset - 1)
                for agent, file in enumerate(files):
                    action = rows["action"][acting, agent]
                    action = (
                        action.astype(np.int32)[:, None]
                        if spec.discrete
                        else action[:, : len(spec.action_names[agent])]
                    )
                    obs = rows["obs"][acting, agent, : len(spec.obs_names[agent])]
                    file.create_dataset(f"observations_{number}", data=obs)
                    file.create_dataset(f"actions_{number}", data=action)
                    file.create_dataset(f"rewards_{number}", data=rows["team_reward"][acting, None])
                    ended = bool(rows["terminated"][acting.stop - 1])
                    file.create_dataset(f"terminated_{number}", data=ended)
    lacking = [name for name in LACKING if name in dataset.card.arrays]
    write_beside(beside_path(path, folder=True), dataset, lacking, final=True)
    lost = [name for name in lacking if name != "truncated"]
    notes = ["one file an agent, each with the team's reward"]
    notes.append(f"no place for {', '.join([*lost, 'the last observation'])}: kept in {NAME}")
    usage = (
        f"d3rlpy.dataset.ReplayBuffer.load(open({str(names[0])!r}, 'rb'), d3rlpy.dataset.InfiniteBuffer())"
    )
    return Exported(path, tuple(notes), usage)


def _is_buffer(keys: set[str]) -> bool:
    return keys >= {"columns", "num_episodes", "version"} or (keys >= FLAT and "filled" not in keys)


def _file_names(agents: Sequence[str]) -> list[str]:
    """A name for the file of each agent: its own, and all with their numbers before them where two would be one."""
    names = [re.sub(r"[^A-Za-z0-9_.-]", "_", agent) + ".h5" for agent in agents]
    distinct = {name.lower() for name in names} - {".h5", NAME}
    return names if len(distinct) == len(names) else [f"{i}_{name}" for i, name in enumerate(names)]


def _agent_files(path: Path) -> list[Path]:
    """The files of a dataset in the order of the numbers in their names."""
    if path.is_file():
        return [path]
    files = [file for file in path.glob("*.h5") if file.name != NAME] if path.is_dir() else []
    return sorted(files, key=lambda file: natural_order(file.name))
