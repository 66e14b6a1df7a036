"""From the file to the table at the speed of the disk.

Chunks are read by their byte offset into a buffer that stays in the processor's cache, and copied from there
to their columns of the table, so that memory is written once. HDF5's own path would verify each chunk's
checksum, which costs more than the reading: `validate` does that, and compares the file's sha256.
Shapes: R rows, N agents, W columns of the table.
"""

import os
from pathlib import Path

import h5py
import numpy as np
import torch

from offmarl.data import hdf5
from offmarl.data.store import Dataset, Part
from offmarl.data.table import (
    OPTIONAL_COLUMNS,
    Transitions,
    column_shapes,
    column_slices,
    empty_table,
    rows_with_successor,
)
from offmarl.data.units import UnitRows, Units
from offmarl.envs.base import EnvSpec
from offmarl.envs.magent_render import no_beginning, render, renderers
from offmarl.errors import DataError, unknown_name

SOURCES = {"reward": "team_reward"}  # columns that are filled from an array of another name


def load_transitions(dataset: Dataset, device: torch.device | str = "cpu", obs: bool = True) -> Transitions:
    """Read a dataset to a table on `device`, with `reward` the team's reward for everyone.

    `obs` false leaves out observations that would have to be rendered, for who works with the state. The true rewards
    of the agents are never part of it. Raises `DataError` for a file that ends early, and where observations that have
    to be rendered would fill the memory.
    """
    card = dataset.card
    shapes = column_shapes(card.env, [name for name in OPTIONAL_COLUMNS if name in card.arrays])
    if card.env.rendered and obs:
        _require_memory(dataset)
    elif card.env.rendered:
        del shapes["obs"]
    columns = column_slices(shapes)
    row = empty_table(card.rows, columns, torch.device("cpu"))
    table = row.numpy()
    for part in dataset.parts:
        _load_part(part, table[part.first_row : part.first_row + part.rows], columns, card.env)
    start = dataset.episode_start
    transitions = Transitions(card.env, row, columns, rows_with_successor(start), start)
    return transitions.to(device)


def load_units(
    dataset: Dataset,
    group: str | None = None,
    reward: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Units:
    """Read the agents of every group that learns, or of `group` alone (`red`, `predator`, ...), for who renders.

    `reward` [R, N of all agents] replaces the agents' own: what a decomposition gave them. Without it and without
    agents' own rewards everyone gets the team's. Raises `DataError` for a dataset that is not rendered or is of
    another map or magent2, `UsageError` for a group that does not learn.
    """
    spec = dataset.spec
    if not spec.rendered:
        raise DataError(f"{dataset.id} of {spec.id} holds observations: load it as a table of transitions")
    known = renderers(spec)
    if group is not None and group not in known:
        raise unknown_name(f"group of {dataset.id}", group, known)
    if reward is None and "agent_reward" in dataset.card.arrays:
        reward = dataset.read("agent_reward")
    elif reward is None:
        reward = dataset.read("team_reward").unsqueeze(1).expand(-1, spec.n_agents)
    state, action, alive = (dataset.read(name) for name in ("state", "action", "alive"))
    terminated, start = dataset.read("terminated"), dataset.episode_start
    if bool(no_beginning(spec, state[start[:-1]]).any()):
        raise DataError(f"{dataset.id}: its episodes begin on another map than that of its options")
    state, terminated, start = state.to(device), terminated.to(device), start.to(device)
    steps = rows_with_successor(start)
    groups = []
    for agents, (name, renderer) in zip(spec.groups, known.items(), strict=True):
        if group in (None, name):
            columns = torch.tensor([spec.agents.index(agent) for agent in agents])
            living = alive[:, columns].to(device)
            row, unit = living[steps].nonzero(as_tuple=True)
            if not len(row):
                raise DataError(f"{dataset.id}: nobody of {name} is alive in any step")
            own = (action[:, columns].to(device), reward[:, columns].to(device), living)
            groups.append(UnitRows(spec, renderer, state, *own, terminated, start, steps[row], unit))
    return Units(groups)


def _load_part(part: Part, table: np.ndarray, columns: dict[str, slice], spec: EnvSpec) -> None:
    """Fill `table` [rows, W] from one file, a block of rows over all columns at a time."""
    targets: dict[str, list[slice]] = {}
    for name, where in columns.items():
        if name != "done" and not (name == "obs" and spec.rendered):
            targets.setdefault(SOURCES.get(name, name), []).append(where)
    with hdf5.open_file(part.path) as file, open(part.path, "rb", buffering=0) as raw:
        arrays = {name: _ChunkReader(part.path, raw.fileno(), file[name]) for name in targets}
        step = next(iter(arrays.values())).rows_per_chunk
        for first in range(0, part.rows, step):
            block = table[first : first + step]
            for name, array in arrays.items():
                values = array.read(first, len(block))
                for where in targets[name]:
                    block[:, where] = values
            if spec.rendered and "obs" in columns:
                state = torch.from_numpy(block[:, columns["state"]].copy())
                block[:, columns["obs"]] = render(spec, state).flatten(1).numpy()
            ends = block[:, columns["terminated"]], block[:, columns["truncated"]]
            np.maximum(*ends, out=block[:, columns["done"]])


def _require_memory(dataset: Dataset) -> None:
    """Raise `DataError` where a table of all observations would take more than half of this machine's memory."""
    spec = dataset.spec
    needed = 4 * dataset.card.rows * spec.n_agents * spec.obs_dim
    if needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2:
        raise DataError(
            f"{dataset.id}: the observations of {spec.n_agents} agents in {dataset.card.rows:,} rows take "
            f"{needed / 2**30:.0f} GB as a table; take fewer rows, or a learner that renders what it draws"
        )


class _ChunkReader:
    """Reads the rows of one array chunk by chunk, past HDF5 where the bytes lie as they are."""

    def __init__(self, path: Path, descriptor: int, dataset: h5py.Dataset) -> None:
        self.rows_per_chunk = dataset.chunks[0] if dataset.chunks else max(1, len(dataset))
        self._path = path
        self._descriptor = descriptor
        self._dataset = dataset
        self._width = int(np.prod(dataset.shape[1:], dtype=np.int64))
        self._offsets = _byte_offsets(dataset)
        self._buffer = np.empty((self.rows_per_chunk, self._width), dtype=dataset.dtype)

    def read(self, first: int, rows: int) -> np.ndarray:
        """Rows first..first + rows as [rows, columns], valid until the next call; `first` begins a chunk."""
        values = self._buffer[:rows]
        offset = self._offsets.get(first)
        if offset is None:
            values = self._dataset[first : first + rows].reshape(rows, self._width)
        elif os.preadv(self._descriptor, [values.data], offset) != values.nbytes:
            raise DataError(f"{self._path} ends early: array '{self._dataset.name[1:]}', row {first}")
        return values


def _byte_offsets(dataset: h5py.Dataset) -> dict[int, int]:
    """Byte offset in the file of each chunk that can be read as it lies, by its first row.

    A checksum follows the bytes and may be left unread; compression may not.
    """
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(index)[0] for index in range(creation.get_nfilters())]
    if not dataset.chunks or dataset.chunks[1:] != dataset.shape[1:]:
        return {}
    if any(code != h5py.h5z.FILTER_FLETCHER32 for code in filters):
        return {}
    offsets: dict[int, int] = {}

    def remember(chunk: h5py.h5d.StoreInfo) -> None:
        if chunk.byte_offset is not None:
            offsets[chunk.chunk_offset[0]] = chunk.byte_offset

    dataset.id.chunk_iter(remember)
    return offsets
