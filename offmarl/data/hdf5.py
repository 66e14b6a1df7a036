"""HDF5 files that survive what happens to files: a full disk, a kill, a stranger's or a damaged file.

A file is written once, in full, from a known number of rows. It is never reopened for writing.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offmarl.data.schema import FORMAT, SCHEMA_VERSION, StoredArray
from offmarl.errors import DataError

CHUNK_BYTES = 1 << 20
COMPRESSED_ROWS = 2_048  # per chunk of one column
EPISODE_GROUP = "episode"  # annotations, one entry an episode
EPISODE_START = "episode_start"
WAVES = "waves"  # root attribute of a part: whole waves of a collection in it
SIGNATURE = b"\x89HDF\r\n\x1a\n"
DAMAGE = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
)  # what h5py raises where a file's inner links are broken


def chunk_rows(arrays: Mapping[str, StoredArray]) -> int:
    """Choose rows per chunk, the same for all arrays: a power of two that makes the widest chunk ~1 MiB."""
    widest = max(
        int(np.prod(array.shape[1:], dtype=np.int64)) * np.dtype(array.dtype).itemsize
        for array in arrays.values()
    )
    return 1 << max(0, round(np.log2(CHUNK_BYTES / max(widest, 1))))


class _GuardedFile:
    """A file that remembers that the disk is full instead of telling HDF5.

    HDF5 cannot close a file that it failed to write, and crashes the process when it exits. So a write that
    fails is dropped here, the rest of the file is written nowhere, and the caller looks at `error`.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 (closed in `close`)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while self.error is None and written < len(view):
            try:
                written += self._file.write(view[written:])
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def read(self, size: int = -1) -> bytes | None:
        return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Do nothing: the file has no buffer of its own."""

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _one(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The part of a row that one column of an array has."""
    return (1, *shape[2:]) if len(shape) > 1 else ()


def unwritable(folder: Path, error: OSError) -> DataError:
    """Say that `folder` could not be written, and what to do."""
    reason = error.strerror or str(error)
    return DataError(f"cannot write {folder}: {reason}; what was finished before is kept and can be resumed")


@contextmanager
def created(path: Path) -> Iterator[h5py.File]:
    """Open a new file, to be filled in the block and synced at its end; on failure nothing stays at `path`.

    Files are readable by HDF5 1.10 and later; their bytes depend on the contents only (no time stamps). Raises
    `OSError` naming `path` for a full disk, at the end of the block.
    """
    guarded = _GuardedFile(path)
    complete = False
    try:
        with h5py.File(guarded, "w", libver=("v110", "v110")) as file:
            yield file
        if guarded.error is None:
            guarded.sync()
            complete = True
    except OSError as error:
        guarded.error = guarded.error or error
    finally:
        guarded.close()
        if not complete:
            path.unlink(missing_ok=True)
    if guarded.error is not None:
        guarded.error.filename = guarded.error.filename or str(path)
        raise guarded.error


Block = Callable[[str, int, int], np.ndarray]


def write_file(
    path: Path,
    arrays: Mapping[str, StoredArray],
    block: Block,
    episode_start: np.ndarray,
    annotations: Mapping[str, np.ndarray],
    waves: int = 0,
    compressed: bool = False,
) -> None:
    """Write a whole data file to `path` and sync it; on failure nothing stays there.

    `block(name, first, last)` gives rows first..last of an array; rows are asked for in order.
    `episode_start` is [E + 1] int64, `annotations` are [E, ...] each. A `compressed` file is gzipped column by column:
    what a unit does from step to step repeats itself, what many do at once does not. Raises `DataError` for a full
    disk.
    """
    rows = int(episode_start[-1])
    step = COMPRESSED_ROWS if compressed else chunk_rows(arrays)
    filters: dict[str, Any] = {"compression": "gzip", "shuffle": True} if compressed else {}
    try:
        with created(path) as file:
            file.attrs["format"] = FORMAT
            file.attrs["schema_version"] = SCHEMA_VERSION
            file.attrs[WAVES] = waves
            file[EPISODE_START] = episode_start
            group = file.create_group(EPISODE_GROUP)
            for name, values in annotations.items():
                group[name] = values
            datasets = {
                name: file.create_dataset(
                    name,
                    shape=array.shape,
                    dtype=array.dtype,
                    chunks=(max(1, min(step, rows)), *(_one(array.shape) if compressed else array.shape[1:])),
                    fletcher32=True,
                    **filters,
                )
                for name, array in arrays.items()
            }
            for first in range(0, rows, step):
                last = min(first + step, rows)
                for name, dataset in datasets.items():
                    dataset[first:last] = block(name, first, last)
    except OSError as error:
        raise unwritable(path.parent, error) from error


def open_file(path: Path) -> h5py.File:
    """Open a data file for reading.

    Raises `DataError` for a file that is missing, is not HDF5, is truncated or was not written by offmarl.
    """
    try:
        with open(path, "rb") as handle:
            signature = handle.read(len(SIGNATURE))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if signature != SIGNATURE:
        raise DataError(f"{path} is not an HDF5 file: it starts with {signature!r}")
    try:
        # No lock: a finished file is never written again, and some network disks refuse locks.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DataError(f"{path} is damaged: HDF5 cannot open it ({error})") from error
    try:
        kind, version = file.attrs.get("format"), file.attrs.get("schema_version")
    except DAMAGE as error:
        file.close()
        raise DataError(f"{path} is damaged: {error}") from error
    if kind != FORMAT:
        file.close()
        raise DataError(f"{path} is an HDF5 file, but not one of offmarl: attribute 'format' is {kind!r}")
    if not isinstance(version, (int, np.integer)) or version > SCHEMA_VERSION:
        file.close()
        raise DataError(f"{path} has schema version {version}; this offmarl reads up to {SCHEMA_VERSION}")
    return file
