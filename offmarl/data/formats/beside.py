"""A small file beside an export, for what the foreign format has no place for.

It holds the task, arrays that the format lacks, the last row of each episode where the format stops at the last
action, and the facts about episodes: so an export can be imported again without loss. The foreign library never
looks at it, and the export is complete without it.
Shapes: R rows, E episodes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import ValidationError

from offmarl.data.hdf5 import DAMAGE, created
from offmarl.data.store import Dataset
from offmarl.data.validate import BLOCK_BYTES, episode_blocks
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError

KIND = "offmarl export"  # root attribute `format`
NAME = "offmarl.h5"  # inside an exported folder; behind the name of an exported file


def beside_path(path: Path, folder: bool) -> Path:
    """Where the file beside an export lies."""
    return path / NAME if folder else path.with_name(f"{path.name}.{NAME}")


def write_beside(path: Path, dataset: Dataset, rows: Sequence[str], final: bool) -> None:
    """Write what a format cannot hold of `dataset`: the arrays `rows` in full, and of all others the last rows.

    `final` is false where the format has the last row of an episode itself.
    """
    card = dataset.card
    start = dataset.episode_start.numpy()
    lacking = [name for name in rows if name in card.arrays]
    ends = [name for name in card.arrays if name not in lacking] if final else []
    with created(path) as file:
        file.attrs["format"] = KIND
        file["id"] = card.id
        file["env"] = card.env.model_dump_json()
        file["references"] = json.dumps(card.references)
        file["arrays"] = json.dumps(list(card.arrays))
        file["stored"] = json.dumps(
            [*(f"rows/{name}" for name in lacking), *(f"final/{name}" for name in ends)]
        )
        file["steps"] = np.diff(start) - 1
        for name, facts in dataset.hidden.items():
            file[f"episode/{name}"] = facts.numpy()
        for name in lacking:
            stored = card.arrays[name]
            file.create_dataset(
                f"rows/{name}", stored.shape, stored.dtype, compression="gzip", compression_opts=1
            )
        for name in ends:
            stored = card.arrays[name]
            file.create_dataset(f"final/{name}", (card.episodes, *stored.shape[1:]), stored.dtype)
        for first, last in episode_blocks(start, max(1, BLOCK_BYTES // dataset.row_bytes)):
            begin, end = int(start[first]), int(start[last])
            for name in lacking:
                file[f"rows/{name}"][begin:end] = dataset.read_numpy(name, begin, end)
            for name in ends:
                values = dataset.read_numpy(name, begin, end)
                file[f"final/{name}"][first:last] = values[start[first + 1 : last + 1] - 1 - begin]


class Beside:
    """An open file beside an export."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises `DataError` for a file that is something else, or damaged."""
        self.path = path
        try:
            self._file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise DataError(f"{path} is damaged: HDF5 cannot open it ({error})") from error
        try:
            if self._file.attrs.get("format") != KIND:
                raise DataError(f"{path} was not written by an export of offmarl: move it away")
            self.spec = EnvSpec.model_validate_json(self._text("env"))
            self.references: dict[str, float] | None = json.loads(self._text("references"))
            self.arrays: list[str] = json.loads(self._text("arrays"))
            self.steps: np.ndarray = self._file["steps"][:]
            # Older exports do not say what they stored.
            stored = json.loads(self._text("stored")) if "stored" in self._file else []
            if gone := [name for name in stored if name not in self._file]:
                raise ValueError(f"array '{gone[0]}' is missing")
            if self.steps.dtype.kind not in "iu" or self.steps.ndim != 1 or (self.steps < 1).any():
                raise ValueError("array 'steps' does not hold the steps of episodes")
        except (*DAMAGE, ValidationError) as error:
            self.close()
            raise DataError(f"{path} is damaged: {error}") from error
        self._start = np.concatenate([[0], np.cumsum(self.steps + 1)])

    @classmethod
    def of(cls, path: Path, folder: bool) -> "Beside | None":
        """The file beside the export `path`, if there is one."""
        candidate = beside_path(path, folder)
        return cls(candidate) if candidate.exists() else None

    def check_belongs(self, steps: np.ndarray) -> None:
        """Raise `DataError` where the episodes of the export have other lengths than when it was written."""
        if not np.array_equal(steps, self.steps):
            raise DataError(
                f"{self.path} does not belong to what lies beside it: it is for {len(self.steps)} episodes with "
                f"{int(self.steps.sum())} steps, found {len(steps)} with {int(steps.sum())}; move it away to "
                "import without it"
            )

    def complete(self, arrays: dict[str, np.ndarray], first: int, last: int) -> dict[str, np.ndarray]:
        """Rows of episodes first..last as they were exported: what is stored here replaces what was read."""
        begin, end = int(self._start[first]), int(self._start[last])
        ends = self._start[first + 1 : last + 1] - 1 - begin
        try:
            completed = {}
            for name in self.arrays:
                if f"rows/{name}" in self._file:
                    completed[name] = self._file[f"rows/{name}"][begin:end]
                    continue
                if name not in arrays:
                    raise DataError(f"array '{name}' is missing from the export")
                completed[name] = arrays[name]
                if f"final/{name}" in self._file:
                    completed[name][ends] = self._file[f"final/{name}"][first:last]
        except DAMAGE as error:
            raise DataError(f"{self.path} is damaged: {error}") from error
        return completed

    def annotations(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Facts about episodes first..last."""
        group: Any = self._file.get("episode", {})
        return {name: values[first:last] for name, values in group.items()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _text(self, name: str) -> str:
        return str(self._file[name].asstr()[()])
