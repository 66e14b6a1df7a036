"""Minari's dataset folders, read and written through its own library, so that HDF5 and Arrow storage both work.

    <id>/data/  metadata.json  main_data.hdf5 (or one folder an episode)
    an episode: observations [T + 1, ...]  actions, rewards, terminations, truncations [T, ...]  infos [T + 1, ...]

Minari has no notion of agents. A dataset whose observation and action spaces are dictionaries with the same keys,
or tuples of the same length, is read as one of several agents; any other as one of a single agent, whose parts
(dictionaries, tuples, images) are laid side by side. gymnasium sorts the keys of a dictionary, agent_10 before
agent_2: the columns of `infos` are in the order of the entry `offmarl_agents` of the metadata, which an export writes;
without it, in that of the known task, or by name with agent_2 before agent_10. Actions of a bounded `Box` are scaled to
[-1, 1]. `rewards` is the team's. `infos` of the names and shapes below are read where they exist.

An export has dictionaries keyed by agent, each agent with its own width, and everything else in `infos`: `state`
[T + 1, D], `legal_actions` [T + 1, N, K], `alive` [T + 1, N], `position` [T + 1, N, 2] beside the observations, and
`agent_reward` [T + 1, N], which like every info of a step stands beside the observation that the step led to.
Nothing of the rows is lost; names and facts about episodes go to the file beside it.
Source: Farama-Foundation/Minari, minari/dataset/_storages/hdf5_storage.py.
"""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offmarl.data.formats.base import (
    Contents,
    Exported,
    ReadOptions,
    Source,
    dataset_blocks,
    ends_of,
    natural_order,
    reading,
    require,
    with_final_rows,
)
from offmarl.data.formats.beside import NAME, Beside, beside_path, write_beside
from offmarl.data.store import Dataset
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError, UsageError
from offmarl.reporter import Progress

METADATA = "metadata.json"
ORDER = "offmarl_agents"  # our entry in the metadata: their names, in the order of the columns in `infos`
INFOS = {  # ours: theirs
    "state": "state",
    "legal": "legal_actions",
    "alive": "alive",
    "position": "position",
    "agent_reward": "agent_reward",
}


def recognise(path: Path) -> bool:
    """Whether `path` is a Minari dataset, or the `data` folder of one."""
    for folder in (path, path / "data"):
        try:
            if "minari_version" in json.loads((folder / METADATA).read_text(encoding="utf-8")):
                return True
        except (OSError, ValueError, TypeError):
            continue
    return False


def foreign(path: Path) -> list[Path]:
    """What a folder, and `data` in it, holds beside one dataset."""
    data = path / "data"
    inside = [] if not data.is_dir() else [entry for entry in data.iterdir() if not entry.name.isdecimal()]
    parts = (data, path / NAME, data / METADATA, data / "main_data.hdf5")
    return [entry for entry in (*path.iterdir(), *inside) if entry not in parts]


class MinariSource(Source):
    """An open dataset; one episode is read at a time."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Open it. Raises `DataError` for a damaged one, or for spaces that no agent of offmarl has."""
        if options.team_reward is not None:
            raise UsageError(
                f"--team-reward {options.team_reward}: Minari's format has one reward a step, the team's: leave it out"
            )
        self.path = path
        folder = path / "data" if (path / "data").is_dir() else path
        minari_storage = _storage()
        with reading(path):
            try:
                self._storage = minari_storage.read(folder)
                count = int(self._storage.metadata["total_episodes"])
                described = self._storage.get_episode_metadata(range(count))
                steps = np.array([int(episode["total_steps"]) for episode in described], dtype=np.int64)
            except (AssertionError, TypeError, AttributeError) as error:
                raise DataError(f"'{METADATA}' lacks what Minari needs ({error or 'a space'})") from error
            self.beside = Beside.of(path, folder=True) or Beside.of(folder, folder=True)
            if not count or (steps < 1).any():
                raise DataError(f"'{METADATA}' has {count} episodes, {int((steps < 1).sum())} of them empty")
            notes: list[str] = []
            self._agents, observed, acted = _agents(
                self._storage.observation_space,
                self._storage.action_space,
                self._orders(options.known),
                notes,
            )
            self._single = not self._agents
            self._agents = self._agents or ("agent",)
            kept = options.kept_agents(len(self._agents))
            self._agents, observed, acted = self._agents[:kept], observed[:kept], acted[:kept]
            self._observed, self._acted = observed, acted
            self._widths = tuple(
                _width(space, f"observation of {agent}") for agent, space in self._named(observed)
            )
            discrete = {_is_discrete(space, agent) for agent, space in self._named(acted)}
            if len(discrete) > 1:
                raise DataError("some agents have discrete actions and others continuous ones")
            self._discrete = discrete.pop()
            self._choices = tuple(
                int(space.n) if self._discrete else _width(space, f"action of {agent}")
                for agent, space in self._named(acted)
            )
            first = next(iter(self._storage.get_episodes([0])))
        infos = first["infos"] or {}
        shapes = self._info_shapes(int(steps[0]) + 1)
        self._infos = {ours for ours, shape in shapes.items() if self._fits(infos.get(INFOS[ours]), shape)}
        for ours, shape in shapes.items():
            if INFOS[ours] in infos and ours not in self._infos:
                expected = [size or "any" for size in shape]
                notes.append(f"'infos/{INFOS[ours]}' of episode 0 is not of shape {expected}: left out")
        scaled = not self._discrete and any(_bounds(space) is not None for space in acted)
        if scaled:
            notes.append("actions are scaled from their space's bounds to [-1, 1]")
        dtypes = {str(space.dtype) for space in observed if space.dtype is not None}
        if "float64" in dtypes:
            notes.append("observations are float64 there, float32 here")
        self.contents = Contents(
            steps=steps,
            obs_widths=self._widths,
            discrete=self._discrete,
            action_widths=self._choices,
            state_dim=infos["state"].shape[1] if "state" in self._infos else 0,
            has_legal="legal" in self._infos,
            agents=self._agents,
            has_agent_reward="agent_reward" in self._infos,
            horizon=options.horizon,
            notes=notes,
        )

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Rows of episodes first..last."""
        with reading(self.path):
            found = self._storage.get_episodes(range(first, last))
            episodes = [self._episode(*numbered) for numbered in enumerate(found, first)]
        steps = self.contents.steps[first:last]
        arrays = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
        terminated, truncated = arrays.pop("terminated"), arrays.pop("truncated")
        endless = ~(terminated | truncated)
        note = "episodes without an end are taken as having run out of time"
        if endless.any() and note not in self.contents.notes:
            self.contents.notes.append(note)
        return arrays | ends_of(steps, terminated, truncated | endless)

    def shown(self, kind: Literal["obs", "action", "state"], agent: int) -> str:
        """The space of an agent."""
        if kind == "state":
            return "array 'infos/state'"
        space = (self._observed if kind == "obs" else self._acted)[agent]
        return f"the {'observation' if kind == 'obs' else 'action'} space {space} of {self._agents[agent]}"

    def files(self) -> list[Path]:
        """Every file of the dataset."""
        return sorted(path for path in self.path.rglob("*") if path.is_file())

    def close(self) -> None:
        """Close the file beside it; Minari holds none open."""
        if self.beside:
            self.beside.close()

    def _orders(self, known: EnvSpec | None) -> list[list[str]]:
        """Orders of agents that columns of `infos` may have, the surest first."""
        orders = [list(self.beside.spec.agents)] if self.beside else []
        orders.append(list(self._storage.metadata.get(ORDER, ())))
        if known:
            orders += [list(known.agents), [*known.agents, *known.background]]
        return orders

    def _named(self, spaces: list[Any]) -> list[tuple[str, Any]]:
        return list(zip(self._agents, spaces, strict=True))

    def _info_shapes(self, rows: int) -> dict[str, tuple[int | None, ...]]:
        """Shape that each of our infos must have in an episode; None fits any size."""
        n_agents = len(self._agents)
        return {
            "state": (rows, None),
            "legal": (rows, n_agents, max(self._choices)),
            "alive": (rows, n_agents),
            "position": (rows, n_agents, 2),
            "agent_reward": (rows, n_agents),
        }

    @staticmethod
    def _fits(values: Any, shape: tuple[int | None, ...]) -> bool:
        if not isinstance(values, np.ndarray) or values.ndim != len(shape) or values.dtype.kind not in "fiub":
            return False
        return all(size is None or size == found for size, found in zip(shape, values.shape, strict=True))

    def _episode(self, number: int, episode: dict[str, Any]) -> dict[str, np.ndarray]:
        """One episode: rows [T + 1, ...] of every array, and its two end flags [1]."""
        steps = int(self.contents.steps[number])
        reward = np.asarray(episode["rewards"], dtype=np.float32)
        if reward.shape != (steps,):
            raise DataError(
                f"array 'rewards' of episode {number} has shape {list(reward.shape)}, expected [{steps}]"
            )
        one = np.array([steps])
        rows = {
            "obs": self._laid_out(episode["observations"], self._observed, self._widths, steps + 1, number),
            "action": with_final_rows(self._action(episode["actions"], steps, number), one),
            "team_reward": with_final_rows(reward, one),
        }
        for name, shape in self._info_shapes(steps + 1).items():
            if name not in self._infos:
                continue
            values: Any = (episode["infos"] or {}).get(INFOS[name])
            if not self._fits(values, shape):
                found = list(values.shape) if isinstance(values, np.ndarray) else "no array"
                raise DataError(
                    f"'infos/{INFOS[name]}' of episode {number} is {found}, expected {list(shape)}"
                )
            # An info comes with the observation that a step led to; the first one with the reset.
            rows[name] = with_final_rows(values[1:], one) if name == "agent_reward" else np.asarray(values)
        for name, theirs in (("terminated", "terminations"), ("truncated", "truncations")):
            flags = np.asarray(episode[theirs], dtype=bool)
            if flags.shape != (steps,):
                raise DataError(
                    f"array '{theirs}' of episode {number} has shape {list(flags.shape)}, expected [{steps}]"
                )
            rows[name] = flags[-1:]
        return rows

    def _laid_out(
        self, values: Any, spaces: list[Any], widths: tuple[int, ...], rows: int, number: int
    ) -> np.ndarray:
        """Values of all agents, [rows, N, widest]."""
        laid = np.zeros((rows, len(spaces), max(widths)), dtype=np.float32)
        for agent, space in enumerate(spaces):
            flat = _flat(self._part(values, agent), space, rows)
            if flat.shape != (rows, widths[agent]):
                raise DataError(
                    f"values of {self._agents[agent]} in episode {number} have shape {list(flat.shape)}, expected "
                    f"{[rows, widths[agent]]}"
                )
            laid[:, agent, : widths[agent]] = flat
        return laid

    def _action(self, values: Any, steps: int, number: int) -> np.ndarray:
        """[T, N] choices, or [T, N, A] in [-1, 1]."""
        if self._discrete:
            taken = [
                np.asarray(self._part(values, agent)).reshape(steps) - int(space.start)
                for agent, space in enumerate(self._acted)
            ]
            return np.stack(taken, axis=1)
        laid = self._laid_out(values, self._acted, self._choices, steps, number)
        for agent, space in enumerate(self._acted):
            bounds = _bounds(space)
            if bounds is not None:
                low, high = bounds
                width = self._choices[agent]
                laid[:, agent, :width] = 2 * (laid[:, agent, :width] - low) / (high - low) - 1
        return laid

    def _part(self, values: Any, agent: int) -> Any:
        """What belongs to one agent."""
        if self._single:
            return values
        return values[self._agents[agent]] if isinstance(values, dict) else values[agent]


def write(dataset: Dataset, path: Path, progress: Progress) -> Exported:
    """Write `dataset` to the folder `path`, the one that Minari knows by the id.

    Raises `UsageError` for an agent whose name cannot be a key in Minari's files.
    """
    minari = _minari()
    spaces = require("gymnasium", "minari").spaces
    spec = dataset.spec
    for agent in spec.agents:
        if agent in ("", ".") or "/" in agent or "\0" in agent:
            raise UsageError(
                f"agent {agent!r}: a name in Minari's files cannot be empty, '.' or have '/' in it; export to vault or "
                "d3rlpy instead, or give the agents other names where the data is made"
            )
    widths = [len(names) for names in spec.obs_names]
    actions = [len(names) for names in spec.action_names]
    observed = {
        agent: spaces.Box(-np.inf, np.inf, (width,), np.float32)
        for agent, width in zip(spec.agents, widths, strict=True)
    }
    acted = {
        agent: spaces.Discrete(width) if spec.discrete else spaces.Box(-1.0, 1.0, (width,), np.float32)
        for agent, width in zip(spec.agents, actions, strict=True)
    }
    folder = path / "data"
    storage = _storage().new(folder, spaces.Dict(observed), spaces.Dict(acted), jpeg_encoding=False)
    namespace, name = dataset.id.replace(".", "_").rsplit("/", 1)
    minari_id = f"{namespace:_<2}/{name}"  # its grammar has no dots, and no namespace of one letter
    storage.update_metadata(
        {"dataset_id": minari_id, "minari_version": minari.__version__, ORDER: list(spec.agents)}
    )
    start = dataset.episode_start.numpy()
    buffer_class = require("minari.data_collector", "minari").EpisodeBuffer
    for first, last, rows in dataset_blocks(dataset, progress):
        offset = int(start[first])
        buffers = []
        for number in range(first, last):
            whole = slice(int(start[number]) - offset, int(start[number + 1]) - offset)
            acting = slice(whole.start, whole.stop - 1)
            buffers.append(
                buffer_class(
                    observations={
                        agent: rows["obs"][whole, i, : widths[i]] for i, agent in enumerate(spec.agents)
                    },
                    actions={
                        agent: rows["action"][acting, i].astype(np.int64)
                        if spec.discrete
                        else rows["action"][acting, i, : actions[i]]
                        for i, agent in enumerate(spec.agents)
                    },
                    rewards=rows["team_reward"][acting],
                    terminations=rows["terminated"][acting] != 0,
                    truncations=rows["truncated"][acting] != 0,
                    infos={
                        theirs: np.roll(rows[ours][whole], 1, axis=0)
                        if ours == "agent_reward"
                        else rows[ours][whole]
                        for ours, theirs in INFOS.items()
                        if ours in rows
                    },
                )
            )
        storage.update_episodes(buffers)
    write_beside(beside_path(path, folder=True), dataset, ["behaviour_probability"], final=False)
    notes = ("Minari knows no agents: spaces are dictionaries keyed by agent, the rest is in 'infos'",)
    usage = f"minari.MinariDataset({str(folder)!r})"
    return Exported(path, notes, usage)


def _minari() -> Any:
    logging.getLogger("minari").setLevel(logging.ERROR)
    return require("minari", "minari")


def _storage() -> Any:
    _minari()
    return require("minari.dataset.minari_storage", "minari").MinariStorage


def _agents(
    observation: Any, action: Any, orders: list[list[str]], notes: list[str]
) -> tuple[tuple[str, ...], list[Any], list[Any]]:
    """Names of the agents and their spaces; no name where the spaces know no agents, and there is a single one.

    The first of `orders` that has exactly the names counts; a note says where there is none.
    """
    spaces = require("gymnasium", "minari").spaces
    if isinstance(action, spaces.Dict):
        if not isinstance(observation, spaces.Dict) or set(observation.spaces) != set(action.spaces):
            raise DataError(
                f"the action space has the keys {', '.join(map(str, action.spaces))}, the observation space has not: "
                "agents cannot be told apart"
            )
        keys = sorted(action.spaces, key=natural_order)
        names = next((tuple(order) for order in orders if sorted(order) == sorted(keys)), tuple(keys))
        if list(names) not in orders and len(names) > 1:
            notes.append("the order of the agents is not known: by name, with agent_2 before agent_10")
        return names, [observation[name] for name in names], [action[name] for name in names]
    if isinstance(action, spaces.Tuple):
        if not isinstance(observation, spaces.Tuple) or len(observation) != len(action):
            raise DataError(
                f"the action space is a tuple of {len(action)}, the observation space is not: agents cannot be told "
                "apart"
            )
        names = tuple(f"agent_{i}" for i in range(len(action)))
        return names, list(observation.spaces), list(action.spaces)
    return (), [observation], [action]


def _is_discrete(space: Any, agent: str) -> bool:
    spaces = require("gymnasium", "minari").spaces
    if isinstance(space, spaces.Discrete):
        return True
    if isinstance(space, spaces.Box):
        return False
    raise DataError(f"the action space of {agent} is {space}: expected Box or Discrete")


def _width(space: Any, what: str) -> int:
    """Numbers in one value of a space."""
    spaces = require("gymnasium", "minari").spaces
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return int(np.prod(space.shape, dtype=np.int64))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return sum(_width(part, what) for part in parts)
    raise DataError(f"the {what} is {type(space).__name__}, which is no array of numbers")


def _flat(values: Any, space: Any, rows: int) -> np.ndarray:
    """Values of a space, [rows, width]: parts side by side, choices as one-hot."""
    spaces = require("gymnasium", "minari").spaces
    if isinstance(space, spaces.Dict):
        return np.concatenate([_flat(values[key], part, rows) for key, part in space.spaces.items()], axis=1)
    if isinstance(space, spaces.Tuple):
        return np.concatenate([_flat(values[i], part, rows) for i, part in enumerate(space.spaces)], axis=1)
    array = np.asarray(values)
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[array.reshape(len(array)) - int(space.start)]
    return array.reshape(len(array), -1).astype(np.float32)


def _bounds(space: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Bounds of a `Box` that are finite and not already -1 and 1."""
    low, high = np.ravel(space.low).astype(np.float32), np.ravel(space.high).astype(np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all()) or (low >= high).any():
        return None
    return None if (low == -1).all() and (high == 1).all() else (low, high)
