"""Vaults of flashbax, in which OG-MARL publishes its datasets; read and written by tensorstore, without JAX.

    <source>/<env>/<scenario>.vlt/<uid>/  metadata.json  manifest.ocdbt  d/...
    observations [1, T, N, O]  actions [1, T, N] or [1, T, N, A]  rewards [1, T, N]  terminals [1, T, N]
    truncations [1, T, N], absent in some  infos.state [1, T, D]  infos.legals [1, T, N, K]

Episodes follow one another without padding; one ends where every agent is terminal or truncated. Observations of
narrower agents are padded with -inf, which becomes zero here. There is no successor of an episode's last step: its
last observation is repeated. OG-MARL stores the end by time limit as a terminal, so where every episode is
equally long and none is truncated, they are taken to have run out of time.
`rewards` that are equal for all agents at every step are copies of the team's reward; others are the agents' own.

An export keeps OG-MARL's names, rewards being the team's for every agent, and adds `infos.agent_rewards`,
`infos.alive` and `infos.positions` where there are any; last rows go to the file beside it.
Source: instadeepai/flashbax, flashbax/vault/vault.py; instadeepai/og-marl, og_marl/replay_buffers.py.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offmarl.data.formats.base import (
    Contents,
    Exported,
    ReadOptions,
    Source,
    TeamReward,
    action_rows,
    choices_of,
    convention_note,
    ends_of,
    last_of_each,
    left_out,
    paid,
    reading,
    require,
    same_length,
    with_final_rows,
)
from offmarl.data.formats.beside import NAME, Beside, beside_path, write_beside
from offmarl.data.store import Dataset
from offmarl.errors import DataError, UsageError
from offmarl.reporter import Progress

METADATA, MANIFEST = "metadata.json", "manifest.ocdbt"
PARTS = (METADATA, MANIFEST, "d", NAME)
VERSION = 1.2  # of the layout that is written; any 1.x is read
INDEX = "vault_index"  # the number of steps
LONGEST = 10_000_000_000_000  # declared length of the time axis
CHUNK_BYTES = 1 << 20
CACHE_BYTES = 64 << 20  # decoded chunks kept, since chunks and blocks do not line up
SCAN_ROWS = 1 << 17
REQUIRED = {"observations": 4, "actions": (3, 4), "rewards": 3, "terminals": 3}
OPTIONAL = {
    "truncations": 3,
    "infos.state": 3,
    "infos.legals": 4,
    "infos.agent_rewards": 3,
    "infos.alive": 3,
    "infos.positions": 4,
}
OURS = {  # written as they are, for every step
    "obs": "observations",
    "action": "actions",
    "state": "infos.state",
    "legal": "infos.legals",
    "agent_reward": "infos.agent_rewards",
    "alive": "infos.alive",
    "position": "infos.positions",
}


def recognise(path: Path) -> bool:
    """Whether `path` is a vault, or a folder of vaults."""
    return _is_vault(path) or bool(_uids(path))


def foreign(path: Path) -> list[Path]:
    """What a folder holds beside one vault; all of it where it is no vault itself, but a folder of vaults."""
    parts = PARTS if _is_vault(path) else ()
    return [entry for entry in path.iterdir() if entry.name not in parts]


class VaultSource(Source):
    """An open vault."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Open it. Raises `UsageError` for a folder of several vaults, `DataError` for a damaged one."""
        uids = _uids(path)
        if not (path / METADATA).exists() and len(uids) == 1:
            path = path / uids[0]
        elif not (path / METADATA).exists() and uids:
            raise UsageError(f"{path} holds {len(uids)} vaults: name one, for example {path / uids[0]}")
        self.path = path
        self._context = require("tensorstore", "vault").Context(
            {"cache_pool": {"total_bytes_limit": CACHE_BYTES}}
        )
        with reading(path):
            shapes = self._structure()
            self._length = int(self._open(INDEX).read().result()[0])
            self._arrays = {name: self._open(f"{name}.") for name in shapes if name in REQUIRED | OPTIONAL}
            notes = self._without_odd_state()
            self._check_shapes()
            self.beside = Beside.of(path, folder=True)
        found = self._arrays["observations"].shape[2]
        n_agents = options.kept_agents(found)
        if found > n_agents:
            notes.append(left_out(n_agents, found))
        self._agents = slice(0, n_agents)
        with reading(path):
            steps = self._episodes(notes)
            self._shared = self._shared_reward()
            widths = self._widths(steps)
            actions = self._arrays["actions"]
            discrete = len(actions.shape) == 3
            action_widths = (self._choices(),) * n_agents if discrete else (actions.shape[3],) * n_agents
        self._convention: TeamReward = options.team_reward or ("copy" if self._shared else "sum")
        notes.append(convention_note(self._convention, self._shared, options.team_reward is None))
        if self.beside is None:
            notes.append(
                "the format has no observation after an episode's last step: the last one is repeated"
            )
        self._start = np.concatenate([[0], np.cumsum(steps)])
        self.contents = Contents(
            steps=steps,
            obs_widths=widths,
            discrete=discrete,
            action_widths=action_widths,
            state_dim=self._arrays["infos.state"].shape[2] if "infos.state" in self._arrays else 0,
            has_legal="infos.legals" in self._arrays,
            padded=True,
            shared_reward=self._shared,
            has_agent_reward=self._convention == "sum" or "infos.agent_rewards" in self._arrays,
            horizon=options.horizon,
            notes=notes,
        )

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Rows of episodes first..last; the last observation, state and legal actions are repeated."""
        begin, end = int(self._start[first]), int(self._start[last])
        steps = self.contents.steps[first:last]
        arrays = {}
        for name, theirs in OURS.items():
            if theirs not in self._arrays:
                continue
            values = self._values(theirs, begin, end)
            if name == "obs":
                values = self._without_padding(values)
            seen = name not in ("action", "agent_reward")
            arrays[name] = with_final_rows(values, steps, last_of_each(values, steps) if seen else None)
        rewards = paid(self._values("rewards", begin, end), self._convention, begin)
        arrays |= {
            name: with_final_rows(values, steps) for name, values in rewards.items() if name not in arrays
        }
        return arrays | ends_of(steps, self._terminated[first:last], self._truncated[first:last])

    def _without_padding(self, obs: np.ndarray) -> np.ndarray:
        """Observations [T, N, O] with zeros in the columns that an agent does not have."""
        own = np.arange(obs.shape[2]) < np.array(self.contents.obs_widths)[:, None]  # [N, O]
        return np.where(own, obs, obs.dtype.type(0))

    def shown(self, kind: Literal["obs", "action", "state"], agent: int) -> str:
        """The leaf, with its shape up to the last step."""
        name = {"obs": "observations", "action": "actions", "state": "infos.state"}[kind]
        if kind == "action" and "infos.legals" in self._arrays:
            name = "infos.legals"
        if name not in self._arrays:
            return f"array '{name}' does not exist"
        _, _, *rest = self._arrays[name].shape
        return f"array '{name}' has shape {[1, self._length, *rest]}"

    def files(self) -> list[Path]:
        """Every file of the vault."""
        return sorted(path for path in self.path.rglob("*") if path.is_file())

    def close(self) -> None:
        """Forget the arrays."""
        self._arrays = {}
        if self.beside:
            self.beside.close()

    def _structure(self) -> dict[str, tuple[int, ...]]:
        """Leaves by their names, with the shapes that `metadata.json` gives."""
        path = self.path / METADATA
        if not path.exists():
            raise DataError(f"'{METADATA}' is missing")
        metadata = json.loads(path.read_text(encoding="utf-8"))
        version = metadata.get("version") if isinstance(metadata, dict) else None
        if not isinstance(version, (int, float)) or not 1 <= version < 2:
            raise DataError(f"'{METADATA}' has version {version}: versions 1.x can be read")
        leaves = dict(_leaves(metadata.get("structure_shape", {})))
        for name in REQUIRED:
            if name not in leaves:
                raise DataError(
                    f"array '{name}' is missing; there are: {', '.join(sorted(leaves)) or 'none'}"
                )
        return leaves

    def _open(self, name: str) -> Any:
        tensorstore = require("tensorstore", "vault")
        spec = _store(self.path, name)
        try:
            return tensorstore.open(spec, context=self._context, read=True).result()
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"array '{name.rstrip('.')}' cannot be opened: {reason}") from error

    def _values(self, name: str, begin: int, end: int) -> np.ndarray:
        """Steps begin..end of a leaf, [T, ...], of the agents that are imported."""
        try:
            values: np.ndarray = self._arrays[name][0, begin:end].read().result()
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self.path}: array '{name}', steps {begin} to {end}: {reason}") from error
        return values if name == "infos.state" else values[:, self._agents]

    def _without_odd_state(self) -> list[str]:
        """Leave out a state that is not one vector a step, such as an image or one state an agent; say so."""
        state = self._arrays.get("infos.state")
        if state is None or len(state.shape) == OPTIONAL["infos.state"]:
            return []
        del self._arrays["infos.state"]
        return [
            f"array 'infos.state' has shape {list(state.shape)}, which is not one vector a step: left out"
        ]

    def _check_shapes(self) -> None:
        """All leaves hold one time axis, long enough, and the same agents."""
        n_agents = self._arrays["observations"].shape[2] if len(self._arrays["observations"].shape) > 2 else 0
        for name, array in self._arrays.items():
            dimensions = (REQUIRED | OPTIONAL)[name]
            allowed = dimensions if isinstance(dimensions, tuple) else (dimensions,)
            shape = list(array.shape)
            wrong = len(shape) not in allowed or shape[0] != 1 or shape[1] < self._length
            if wrong or (name != "infos.state" and shape[2] != n_agents):
                names = "1, time, dimensions" if name == "infos.state" else f"1, time, {n_agents} agents, ..."
                raise DataError(f"array '{name}' has shape {shape}, expected [{names}]")
        if self._length < 1:
            raise DataError(f"array '{INDEX}' is {self._length}: the vault holds no step")

    def _episodes(self, notes: list[str]) -> np.ndarray:
        """Find where episodes end, and why: steps [E]; sets which were terminated and which truncated [E]."""
        found = []
        for begin in range(0, self._length, SCAN_ROWS):
            end = min(begin + SCAN_ROWS, self._length)
            terminal = self._values("terminals", begin, end) != 0  # [T, N]
            out = np.zeros_like(terminal)
            if "truncations" in self._arrays:
                out = self._values("truncations", begin, end) != 0
            over = np.flatnonzero((terminal | out).all(axis=1))
            terminated = terminal[over].all(axis=1)
            found.append((begin + over + 1, terminated, out[over].all(axis=1) | ~terminated))
        ends, self._terminated, self._truncated = map(np.concatenate, zip(*found, strict=True))
        if not len(ends) or ends[-1] != self._length:
            rest = self._length - (int(ends[-1]) if len(ends) else 0)
            notes.append(f"the last {rest} steps have no end: taken as an episode that ran out of time")
            ends = np.append(ends, self._length)
            self._terminated, self._truncated = (
                np.append(self._terminated, False),
                np.append(self._truncated, True),
            )
        steps = np.diff(ends, prepend=0).astype(np.int64)
        if self.beside is None and (self._terminated & ~self._truncated).all() and same_length(steps):
            notes.append(
                f"every episode is terminal after exactly {steps[0]} steps: taken as running out of time"
            )
            self._terminated, self._truncated = self._truncated, self._terminated
        return steps

    def _shared_reward(self) -> bool:
        for begin in range(0, self._length, SCAN_ROWS):
            rewards = self._values("rewards", begin, min(begin + SCAN_ROWS, self._length))
            if (rewards != rewards[:, :1]).any():
                return False
        return True

    def _widths(self, steps: np.ndarray) -> tuple[int, ...]:
        """True width of each agent's observation: columns of -inf at its end are padding."""
        first = self._values("observations", 0, int(min(steps[0], SCAN_ROWS)))
        seen = [np.flatnonzero(~np.isneginf(first[:, agent]).all(axis=0)) for agent in range(first.shape[1])]
        return tuple(int(columns[-1]) + 1 if len(columns) else 0 for columns in seen)

    def _choices(self) -> int:
        """K: as many as `legals` has, or as were ever taken."""
        if "infos.legals" in self._arrays:
            return int(self._arrays["infos.legals"].shape[3])
        blocks = range(0, self._length, SCAN_ROWS)
        ends = [min(begin + SCAN_ROWS, self._length) for begin in blocks]
        largest = [self._values("actions", *pair).max() for pair in zip(blocks, ends, strict=True)]
        return choices_of("actions", np.max(largest))


def write(dataset: Dataset, path: Path, progress: Progress) -> Exported:
    """Write `dataset` to the folder `path`, which becomes one vault (its last part is the uid)."""
    spec = dataset.spec
    steps = np.diff(dataset.episode_start.numpy()) - 1
    rows, total = action_rows(steps), int(steps.sum())
    n_agents = spec.n_agents
    leaves: dict[str, tuple[str, str, tuple[int, ...]]] = {}  # theirs: (ours, dtype, shape of a step)
    shape_of = {name: stored.shape[1:] for name, stored in dataset.card.arrays.items()}
    if spec.rendered:  # observations that are not stored but can be read
        shape_of["obs"] = (n_agents, spec.obs_dim)
    for name, theirs in OURS.items():
        if name in shape_of:
            dtype = "int32" if name == "action" and spec.discrete else "float32"
            leaves[theirs] = (name, dtype, shape_of[name])
    leaves["rewards"] = ("team_reward", "float32", (n_agents,))
    leaves["terminals"] = ("terminated", "float32", (n_agents,))
    leaves["truncations"] = ("truncated", "float32", (n_agents,))
    shapes = {theirs: str((1, 1, *shape)) for theirs, (_, _, shape) in leaves.items()}
    dtypes = {theirs: dtype for theirs, (_, dtype, _) in leaves.items()}
    metadata = {"version": VERSION, "structure_shape": _tree(shapes), "structure_dtype": _tree(dtypes)}
    (path / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
    for done, (theirs, (name, dtype, shape)) in enumerate(leaves.items()):
        width = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        chunk = max(1, CHUNK_BYTES // max(width, 1))
        store = _create(path, f"{theirs}.", (1, LONGEST, *shape), dtype, (1, chunk, *shape))
        for begin in range(0, total, chunk):  # whole chunks: none is written twice
            of_block = rows[begin : begin + chunk]
            values = dataset.read_numpy(name, int(of_block[0]), int(of_block[-1]) + 1)[of_block - of_block[0]]
            if values.ndim == 1:
                values = np.repeat(values[:, None], n_agents, axis=1)
            store[0, begin : begin + len(values)].write(values.astype(dtype)).result()
            progress(done * total + begin + len(values), total * len(leaves))
    index = _create(path, INDEX, (1,), "int32", (1,))
    index.write(np.array([total], dtype=np.int32)).result()
    write_beside(beside_path(path, folder=True), dataset, ["behaviour_probability"], final=True)
    notes = ("no place for the observation after an episode's last step: kept in offmarl.h5",)
    return Exported(path, notes, "flashbax.vault.Vault(NAME, rel_dir=DIR, vault_uid=UID).read()")


def _create(path: Path, name: str, shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...]) -> Any:
    tensorstore = require("tensorstore", "vault")
    metadata = {"compressor": {"id": "gzip", "level": 5}, "chunks": list(chunks)}
    spec = _store(path, name) | {"metadata": metadata}
    return tensorstore.open(spec, dtype=dtype, shape=shape, create=True).result()


def _store(path: Path, name: str) -> dict[str, Any]:
    """Where a leaf lies: a Zarr 2 array in one OCDBT store."""
    base = {"driver": "file", "path": f"{path.absolute()}/"}  # a file:// address would have to be quoted
    return {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": name}}


def _leaves(tree: Any, above: str = "") -> list[tuple[str, tuple[int, ...]]]:
    """Leaves of nested dictionaries, names joined by dots, shapes read from texts like "(1, 64, 3)"."""
    found = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{above}{name}.")
        else:
            sizes = [part for part in str(value).strip("()").replace(" ", "").split(",") if part]
            found.append((f"{above}{name}", tuple(int(size) for size in sizes)))
    return found


def _tree(leaves: dict[str, str]) -> dict[str, Any]:
    """Nested dictionaries from names joined by dots."""
    tree: dict[str, Any] = {}
    for name, value in leaves.items():
        *above, last = name.split(".")
        level = tree
        for part in above:
            level = level.setdefault(part, {})
        level[last] = value
    return tree


def _uids(path: Path) -> list[str]:
    """Vaults right below `path`."""
    if not path.is_dir():
        return []
    return sorted(found.name for found in path.glob("*") if _is_vault(found))


def _is_vault(path: Path) -> bool:
    return (path / METADATA).exists() and (path / MANIFEST).exists()
