"""Reading a dataset folder: a finished one, or what a collection under way has finished so far.

Shapes: R rows, E episodes, N agents.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from offmarl.data import hdf5
from offmarl.data.schema import (
    CARD_NAME,
    DATA_NAME,
    DatasetCard,
    StoredArray,
    array_layout,
    read_card,
)
from offmarl.envs.base import EnvSpec
from offmarl.envs.magent_render import render
from offmarl.errors import DataError, unknown_name

PARTIAL = ".partial"  # suffix of a folder that is being written
PARTS = "parts"  # folder inside it: whole waves, one small finished file each
FLAGS = ("legal", "terminated", "truncated", "alive")  # read back as booleans
OPEN_FILES = 8  # parts kept open at a time


def partial_folder(folder: Path) -> Path:
    """Where the dataset of `folder` is written until it is complete."""
    return folder.with_name(folder.name + PARTIAL)


class Part(NamedTuple):
    """One data file and the rows it holds."""

    path: Path
    first_row: int
    episode_start: np.ndarray  # [episodes + 1] int64, counted from 0
    waves: int

    @property
    def rows(self) -> int:
        """Rows in this file."""
        return int(self.episode_start[-1])


class Dataset:
    """A dataset on disk. Arrays are read when asked for; `card` says what there is.

    `hidden` holds facts about the episodes (who was a free rider, ...) that no learner may see.
    """

    def __init__(self, folder: Path, card: DatasetCard, parts: list[Part]) -> None:
        self.folder = folder
        self.card = card
        self.parts = parts
        self._open: OrderedDict[Path, h5py.File] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> "Dataset":
        """Open a dataset folder, or the `.partial` folder of an unfinished collection.

        Checks are cheap: card, file size, presence, shape and type of every array; `validate` reads the
        numbers. Raises `DataError` saying what is wrong with which file or array.
        """
        folder = Path(path)
        partial = partial_folder(folder)
        if not folder.exists() and partial.exists():
            raise DataError(f"{folder} is not finished: resume it, or open {partial} to read what there is")
        card = read_card(folder)
        if card.complete:
            dataset = cls(folder, card, _finished(folder, card))
        else:
            parts = read_parts(folder)
            if not parts:
                raise DataError(f"{folder} holds no finished episode yet")
            dataset = cls(folder, describe_parts(card, parts), parts)
        _check_contents(dataset)
        return dataset

    @property
    def id(self) -> str:
        """`namespace/name-vN`."""
        return self.card.id

    @property
    def spec(self) -> EnvSpec:
        """The task the data comes from."""
        return self.card.env

    def require_complete(self) -> None:
        """Raise `DataError` for a collection that is under way or was interrupted."""
        if not self.card.complete:
            raise DataError(f"{self.folder} is not finished: give the command that began it again")

    def __len__(self) -> int:
        """Count the transitions."""
        return self.card.transitions

    @cached_property
    def episode_start(self) -> Tensor:
        """[E + 1] int64: first row of each episode, and the number of rows."""
        starts = [part.episode_start[:-1] + part.first_row for part in self.parts]
        return torch.from_numpy(np.append(np.concatenate(starts), self.card.rows).astype(np.int64))

    @cached_property
    def hidden(self) -> dict[str, Tensor]:
        """Facts about the episodes, [E, ...] each, that learners must not see."""
        return {
            name: torch.from_numpy(
                np.concatenate([self._file(part)[hdf5.EPISODE_GROUP][name][:] for part in self.parts])
            )
            for name in self.card.annotations
        }

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all arrays."""
        return sum(row_nbytes(array) for array in self.card.arrays.values())

    def read(self, name: str, rows: slice | range | None = None) -> Tensor:
        """Read rows of an array ([R, ...], all by default): flags as bool, the rest as stored.

        Raises `UsageError` for an array that the dataset has not, `DataError` for damaged rows.
        """
        chosen = range(self.card.rows)[rows] if isinstance(rows, slice) else rows
        chosen = range(self.card.rows) if chosen is None else chosen
        if len(chosen) == 0:
            values = self.read_numpy(name, 0, 0)
        else:
            first, last = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1
            values = self.read_numpy(name, first, last)
            if chosen.step != 1:
                values = values[np.asarray(chosen) - first]
        tensor = torch.from_numpy(values)
        return tensor != 0 if name in FLAGS else tensor

    def read_numpy(self, name: str, first: int, last: int) -> np.ndarray:
        """Read rows first..last of an array as stored, checksums verified. Raises like `read`.

        Observations that are not stored are rendered: exactly, but slowly for many agents.
        """
        if name == "obs" and self.spec.rendered:
            return render(self.spec, torch.from_numpy(self.read_numpy("state", first, last))).numpy()
        if name not in self.card.arrays:
            raise unknown_name(f"array of dataset {self.id}", name, self.card.arrays)
        stored = self.card.arrays[name]
        if not 0 <= first <= last <= stored.shape[0]:
            raise DataError(f"rows {first} to {last} do not exist: dataset {self.id} has {stored.shape[0]}")
        values = np.empty((last - first, *stored.shape[1:]), dtype=stored.dtype)
        for part, begin, end in self.parts_of(first, last):
            target = values[part.first_row + begin - first : part.first_row + end - first]
            try:
                self._file(part)[name].read_direct(target, np.s_[begin:end])
            except hdf5.DAMAGE as error:
                raise DataError(
                    f"{part.path}: array '{name}' is damaged in rows {part.first_row + begin} to "
                    f"{part.first_row + end} ({error})"
                ) from error
        return values

    def parts_of(self, first: int, last: int) -> Iterator[tuple[Part, int, int]]:
        """Yield the files that hold rows first..last, each with its own range of rows."""
        at = max(bisect_right(self.parts, first, key=attrgetter("first_row")) - 1, 0)
        while first < last:
            part = self.parts[at]
            end = min(last, part.first_row + part.rows)
            if first < end:
                yield part, first - part.first_row, end - part.first_row
            first, at = end, at + 1

    def _file(self, part: Part) -> h5py.File:
        """Open the file of `part` or find it open; the ones used least recently are closed."""
        file = self._open.pop(part.path, None)
        if file is None:
            file = hdf5.open_file(part.path)
        self._open[part.path] = file
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Dataset({self.id}, {self.card.transitions} transitions, {str(self.folder)!r})"


def row_nbytes(array: StoredArray) -> int:
    """Bytes of one row of an array."""
    return int(np.prod(array.shape[1:], dtype=np.int64)) * np.dtype(array.dtype).itemsize


def read_part(path: Path, first_row: int) -> Part:
    """Open a data file just to learn how much it holds. Raises `DataError` for a bad one."""
    with hdf5.open_file(path) as file:
        try:
            start, waves = file.get(hdf5.EPISODE_START), int(file.attrs.get(hdf5.WAVES, 0))
            rows = start[:] if isinstance(start, h5py.Dataset) else None
        except hdf5.DAMAGE as error:
            raise DataError(f"{path} is damaged at array 'episode_start': {error}") from error
    if rows is None or rows.ndim != 1 or len(rows) < 1 or rows.dtype.kind != "i":
        raise DataError(f"{path}: array 'episode_start' is missing, or is no list of row numbers")
    return Part(path, first_row, rows.astype(np.int64), waves)


def read_parts(folder: Path) -> list[Part]:
    """List the finished parts of a `.partial` folder, in order, up to the first that is missing."""
    parts: list[Part] = []
    while (path := part_path(folder, len(parts))).exists():
        parts.append(read_part(path, parts[-1].first_row + parts[-1].rows if parts else 0))
    return parts


def part_path(folder: Path, number: int) -> Path:
    """Where part `number` of a `.partial` folder lies."""
    return folder / PARTS / f"part-{number:06d}.h5"


def describe_parts(card: DatasetCard, parts: list[Part]) -> DatasetCard:
    """Fill a card with what `parts` hold; shapes are those of the first."""
    rows, episodes = sum(part.rows for part in parts), sum(len(part.episode_start) - 1 for part in parts)
    with hdf5.open_file(parts[0].path) as file:
        arrays = {
            name: StoredArray(shape=(rows, *file[name].shape[1:]), dtype=str(file[name].dtype))
            for name in array_layout(card.env)
            if name in file
        }
        annotations = {
            name: StoredArray(shape=(episodes, *values.shape[1:]), dtype=str(values.dtype))
            for name, values in file[hdf5.EPISODE_GROUP].items()
        }
    counts = {"rows": rows, "episodes": episodes, "transitions": rows - episodes}
    return card.model_copy(update={**counts, "arrays": arrays, "annotations": annotations})


def _finished(folder: Path, card: DatasetCard) -> list[Part]:
    """List the one part of a complete dataset, its size checked."""
    path = folder / DATA_NAME
    if not path.exists():
        raise DataError(f"{folder} has a {CARD_NAME} but no {DATA_NAME}")
    size = path.stat().st_size
    if size != card.bytes:
        what = "truncated" if size < card.bytes else "changed"
        raise DataError(f"{path} was {what}: it has {size} bytes, {CARD_NAME} says {card.bytes}")
    return [read_part(path, 0)]


def _check_contents(dataset: Dataset) -> None:
    """Compare every array with the card, and the card with what the task needs. Raises `DataError`."""
    card, folder = dataset.card, dataset.folder
    layout = array_layout(card.env)
    for name, expected in layout.items():
        if name not in card.arrays:
            if expected.required:
                raise DataError(f"{folder}: array '{name}' is missing")
            continue
        stored = card.arrays[name]
        if (stored.shape, stored.dtype) != ((card.rows, *expected.shape), expected.dtype):
            raise DataError(
                f"{folder}: array '{name}' is {stored.dtype} {list(stored.shape)}, the task needs "
                f"{expected.dtype} {[card.rows, *expected.shape]}"
            )
    for name in card.arrays.keys() - layout.keys():
        raise DataError(f"{folder}: the card names an array '{name}' that such a dataset cannot have")
    counted = (dataset.parts[-1].first_row + dataset.parts[-1].rows, len(dataset.episode_start) - 1)
    if counted != (card.rows, card.episodes):
        raise DataError(
            f"{folder}: array 'episode_start' ends at row {counted[0]} after {counted[1]} episodes, the card "
            f"says {card.rows} rows and {card.episodes} episodes"
        )
    if card.transitions != card.rows - card.episodes:
        raise DataError(
            f"{folder}: the card says {card.transitions} transitions, its {card.rows} rows in {card.episodes} "
            f"episodes hold {card.rows - card.episodes}"
        )
    for part in dataset.parts:
        with hdf5.open_file(part.path) as file:
            for name, stored in card.arrays.items():
                _check_array(part.path, file, name, (part.rows, *stored.shape[1:]), stored.dtype)
            for name, stored in card.annotations.items():
                shape = (len(part.episode_start) - 1, *stored.shape[1:])
                _check_array(part.path, file, f"{hdf5.EPISODE_GROUP}/{name}", shape, stored.dtype)


def _check_array(path: Path, file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Raise `DataError` unless `file` holds the array with this shape and type."""
    try:
        array = file.get(name)
    except hdf5.DAMAGE as error:
        raise DataError(f"{path} is damaged at array '{name}': {error}") from error
    if not isinstance(array, h5py.Dataset):
        raise DataError(f"{path}: array '{name}' is missing")
    if array.shape != shape or str(array.dtype) != dtype:
        raise DataError(
            f"{path}: array '{name}' is {array.dtype} {list(array.shape)}, expected {dtype} {list(shape)}"
        )
