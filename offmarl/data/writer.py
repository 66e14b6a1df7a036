"""Writing a dataset so that a kill at any time loses at most the rows in hand.

Finished episodes go to small, complete HDF5 files in `<folder>.partial/parts/`; each is written under another
name, synced and renamed, so there is never half of one. `close` joins them to one `data.h5`, whose bytes
depend on the rows only, and renames the folder to its final name.
"""

import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

import offmarl
from offmarl.atomic import fsync_folder, only_one, replace_folder, write_json
from offmarl.data import hdf5
from offmarl.data.returns import episode_statistics
from offmarl.data.schema import (
    CARD_NAME,
    DATA_NAME,
    NUMBERS,
    DatasetCard,
    StoredArray,
    check_id,
    read_card,
    stored_arrays,
)
from offmarl.data.store import (
    PARTS,
    Dataset,
    Part,
    describe_parts,
    part_path,
    partial_folder,
    read_part,
)
from offmarl.data.validate import episode_problems, row_problems, sha256
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError, UsageError

PART_BYTES = 1 << 20  # rows in hand are written once they reach this size ...
PART_SECONDS = 10.0  # ... or this age, so that a slow simulator loses little
NOT_DECISIVE = ("command", "versions", "resumed")  # provenance that does not decide the rows


class Writer:
    """Appends finished episodes to a dataset that appears under its final name only when complete.

    A context manager: leaving it without an error closes the dataset, leaving it with one keeps what was
    finished for `Writer.resume`.
    """

    def __init__(
        self,
        folder: str | Path,
        spec: EnvSpec,
        *,
        id: str,
        provenance: Mapping[str, Any] | None = None,
        references: Mapping[str, float] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Begin a new dataset.

        `provenance` says how the data comes about (command, seed, behaviour ...) and `references` what random
        and expert policies earn; both go to the card. Raises `UsageError` for a bad id, or where a dataset
        or an unfinished one stands and `overwrite` is false, or where something stands that is no dataset.
        """
        self._set_up(Path(folder), spec, overwrite)
        check_id(id)
        check_free(self.folder, overwrite)
        with self._writing():
            (self.partial / PARTS).mkdir(parents=True, exist_ok=True)
            self._hold()
            for leftover in [*(self.partial / PARTS).iterdir(), self.partial / DATA_NAME]:
                leftover.unlink(missing_ok=True)
            self._card = DatasetCard(
                id=id,
                created=datetime.now(UTC).isoformat(),
                complete=False,
                env=spec,
                provenance={**(provenance or {}), "versions": _versions(spec)},
                references=dict(references) if references else None,
            )
            self._write_card()

    @classmethod
    def resume(
        cls, folder: str | Path, spec: EnvSpec, *, provenance: Mapping[str, Any] | None = None
    ) -> "Writer":
        """Go on with the unfinished dataset of `folder`; `waves` says how many are in it.

        Raises `UsageError` where there is none, where the task differs, or where `provenance` says something
        else than what the finished rows were made with (command and versions aside).
        """
        writer = cls.__new__(cls)
        writer._set_up(Path(folder), spec, overwrite=False)
        if not writer.partial.is_dir():
            raise UsageError(f"nothing to resume: {writer.partial} does not exist")
        card = read_card(writer.partial)
        if card.env != spec:
            differing = [
                name for name in EnvSpec.model_fields if getattr(card.env, name) != getattr(spec, name)
            ]
            raise UsageError(
                f"{writer.partial} was made in another task: {', '.join(differing)} differ; "
                "resume with the same options, or overwrite it"
            )
        writer._card = card
        writer._check_provenance({**(provenance or {})})
        with writer._writing():
            writer._hold()
            if card.complete:  # killed between completing and renaming
                writer.rows, writer.episodes = card.rows, card.episodes
            else:
                writer._take_over_parts()
                history = [*card.provenance.get("resumed", []), {"created": datetime.now(UTC).isoformat()}]
                writer._update_provenance({"resumed": history})
        return writer

    def _set_up(self, folder: Path, spec: EnvSpec, overwrite: bool) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.partial = partial_folder(self.folder)
        self._held = ExitStack()  # the folder, against a second writer
        self.spec = spec
        self._overwrite = overwrite
        self.rows = self.episodes = self.waves = 0  # so far, written or in hand
        self._parts: list[Part] = []
        self._arrays: list[dict[str, np.ndarray]] = []  # rows in hand, one entry an `append`
        self._annotations: list[dict[str, np.ndarray]] = []
        self._lengths: list[np.ndarray] = []
        self._waves_in_hand = 0
        self._flushed_at = time.monotonic()
        self._template: dict[str, tuple[tuple[int, ...], str]] | None = None  # of the first `append`

    @property
    def transitions(self) -> int:
        """Transitions so far, written or in hand."""
        return self.rows - self.episodes

    @property
    def provenance(self) -> dict[str, Any]:
        """What the card says of how the data comes about."""
        return dict(self._card.provenance)

    def bind(self, **settings: Any) -> None:
        """Record settings that decide the rows (JSON-able); a resumed writer refuses any others."""
        self._check_provenance(settings)
        if any(name not in self._card.provenance for name in settings):
            with self._writing():
                self._update_provenance(settings)

    def append(
        self,
        arrays: Mapping[str, Tensor | np.ndarray],
        lengths: Sequence[int] | Tensor | np.ndarray,
        annotations: Mapping[str, Tensor | np.ndarray] | None = None,
        waves: int = 0,
    ) -> None:
        """Add finished episodes; they are kept whole, and together with the `waves` they complete.

        `arrays` [n, ...] holds the rows of all of them one after another, `lengths` the rows of each (T + 1:
        the last row has the final observation, zero action and reward), `annotations` [episodes, ...]
        facts hidden from learners, as numbers. Raises `DataError` naming the array and the row for anything that
        `validate` would refuse, and for a disk that is full.
        """
        if self._card.complete:
            raise UsageError(f"{self.partial} is complete: close it")
        length = np.asarray(lengths, dtype=np.int64)
        if length.ndim != 1:
            raise DataError(f"lengths have shape {list(length.shape)}, expected the rows of each episode")
        start = np.concatenate([[0], np.cumsum(length)])
        converted = stored_arrays(self.spec, arrays, int(start[-1]))
        noted = {name: np.ascontiguousarray(values) for name, values in (annotations or {}).items()}
        problems = [
            *episode_problems(self.spec, start),
            *row_problems(self.spec, converted, start, self.rows),
        ]
        if problems:
            raise DataError(f"rows refused: {problems[0]}")
        self._check_template(converted, noted, len(length))
        self._arrays.append(converted)
        self._annotations.append(noted)
        self._lengths.append(length)
        self._waves_in_hand += waves
        self.rows += int(start[-1])
        self.episodes += len(length)
        self.waves += waves
        in_hand = sum(values.nbytes for block in self._arrays for values in block.values())
        if in_hand >= PART_BYTES or time.monotonic() - self._flushed_at >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows in hand to a part. Raises `DataError` for a full disk; the rows stay in hand."""
        self._flushed_at = time.monotonic()
        if not any(map(len, self._lengths)):
            return
        arrays = {name: np.concatenate([block[name] for block in self._arrays]) for name in self._arrays[0]}
        noted = {
            name: np.concatenate([block[name] for block in self._annotations])
            for name in self._annotations[0]
        }
        start = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))])
        path = part_path(self.partial, len(self._parts))
        temporary = path.with_suffix(".tmp")
        with self._writing():
            hdf5.write_file(
                temporary,
                _described(arrays),
                lambda name, first, last: arrays[name][first:last],
                start,
                noted,
                self._waves_in_hand,
            )
            os.replace(temporary, path)
            fsync_folder(path.parent)
        self._parts.append(Part(path, self.rows - int(start[-1]), start, self._waves_in_hand))
        self._arrays, self._annotations, self._lengths, self._waves_in_hand = [], [], [], 0

    def close(self) -> Dataset:
        """Complete the dataset: join the parts, write the card, move the folder to its final name.

        Raises `DataError` where no episode was finished or the disk is full (the parts are kept), and
        `UsageError` where something has come to stand under the final name.
        """
        if self.folder.exists() and not self._overwrite:
            raise UsageError(f"{self.folder} exists: choose another name, or overwrite it")
        if not self._card.complete:
            self.flush()
            if not self._parts:
                self._held.close()
                raise DataError(f"{self.partial} holds no finished episode: nothing to complete")
            self._join()
        with self._writing():
            shutil.rmtree(self.partial / PARTS, ignore_errors=True)
            self._held.close()
            replace_folder(self.partial, self.folder)
        return Dataset.open(self.folder)

    def abandon(self) -> None:
        """Stop, keeping the finished episodes for `resume`."""
        if not self._card.complete:
            with suppress(DataError):  # the error that led here says more
                self.flush()
        self._held.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _join(self) -> None:
        """Write `data.h5` and the complete card beside the parts."""
        card = describe_parts(self._card, self._parts)
        path = self.partial / DATA_NAME
        with Dataset(self.partial, card, self._parts) as source:
            hdf5.write_file(
                path,
                card.arrays,
                source.read_numpy,
                source.episode_start.numpy(),
                {name: values.numpy() for name, values in source.hidden.items()},
                self.waves,
                compressed=self.spec.rendered,
            )
            statistics = episode_statistics(source)
        with self._writing():
            self._card = card.model_copy(
                update={
                    "complete": True,
                    "created": datetime.now(UTC).isoformat(),
                    "statistics": statistics,
                    "bytes": path.stat().st_size,
                    "sha256": sha256(path),
                }
            )
            self._write_card()

    def _take_over_parts(self) -> None:
        """Keep the parts that are whole and in sequence; remove the rest."""
        folder = self.partial / PARTS
        folder.mkdir(exist_ok=True)
        while (path := part_path(self.partial, len(self._parts))).exists():
            try:
                part = read_part(path, self.rows)
            except DataError:
                break  # a power cut may leave a name without contents; a kill never does
            self._parts.append(part)
            self.rows += part.rows
            self.episodes += len(part.episode_start) - 1
            self.waves += part.waves
        kept = {part.path for part in self._parts}
        for path in folder.iterdir():
            if path not in kept:
                path.unlink()
        (self.partial / DATA_NAME).unlink(missing_ok=True)

    def _check_provenance(self, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            known = self._card.provenance.get(name, value)
            if name not in NOT_DECISIVE and known != value:
                raise UsageError(
                    f"{self.partial} was begun with {name}={known!r}, not {value!r}: resume with the same, "
                    "or overwrite it"
                )

    def _check_template(
        self, arrays: Mapping[str, np.ndarray], annotations: Mapping[str, np.ndarray], episodes: int
    ) -> None:
        """Hold every `append` to the arrays and annotations of the first, and annotations to what can be stored."""
        for name, values in annotations.items():
            if "/" in name or name in ("", "."):
                raise DataError(
                    f"annotation '{name}' cannot be stored under this name: use letters, digits, _"
                )
            if values.dtype.kind not in NUMBERS:
                raise DataError(f"annotation '{name}' holds {values.dtype}, expected numbers")
            if len(values) != episodes:
                raise DataError(f"annotation '{name}' has {len(values)} entries for {episodes} episodes")
        if self._template is None and self._parts:
            card = describe_parts(self._card, self._parts[:1])
            self._template = _template(card.arrays, card.annotations)
        given = _template(_described(arrays), _described(annotations))
        self._template = self._template or given
        for name in sorted(given.keys() | self._template.keys()):
            if given.get(name) != self._template.get(name):
                before, now = (_spelled(template.get(name)) for template in (self._template, given))
                raise DataError(f"'{name}' is {now} in these episodes, but {before} in those before")

    def _update_provenance(self, more: Mapping[str, Any]) -> None:
        self._card = self._card.model_copy(update={"provenance": {**self._card.provenance, **more}})
        self._write_card()

    def _write_card(self) -> None:
        write_json(self.partial / CARD_NAME, self._card.model_dump(mode="json"))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the operating system refuses into a `DataError`."""
        try:
            yield
        except OSError as error:
            raise hdf5.unwritable(self.partial, error) from error

    def _hold(self) -> None:
        self._held.enter_context(only_one(self.partial, f"another process is writing {self.partial}"))


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise `UsageError` where a dataset or an unfinished one stands and may not be overwritten, or something else."""
    partial = partial_folder(folder)
    for standing in (folder, partial):
        check_replaceable(standing)
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder} exists: choose another name, or overwrite it")
    if partial.exists() and not overwrite:
        raise UsageError(f"{partial} holds an unfinished collection: resume it, or overwrite it")


def check_replaceable(folder: Path) -> None:
    """Raise `UsageError` where `folder` is something else than a dataset, which no flag may overwrite."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / CARD_NAME).exists():
        raise UsageError(f"{folder} is no dataset, and would be lost: choose another folder")


def _versions(spec: EnvSpec) -> dict[str, str]:
    """List what the data is made with."""
    return {
        "offmarl": offmarl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        **spec.versions,
    }


def _described(arrays: Mapping[str, np.ndarray]) -> dict[str, StoredArray]:
    return {name: StoredArray(shape=values.shape, dtype=str(values.dtype)) for name, values in arrays.items()}


def _template(
    arrays: Mapping[str, StoredArray], annotations: Mapping[str, StoredArray]
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape of one entry and type of everything that is stored."""
    named = [*arrays.items(), *((f"episode/{name}", array) for name, array in annotations.items())]
    return {name: (array.shape[1:], array.dtype) for name, array in named}


def _spelled(entry: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if entry is None else f"{entry[1]} {list(entry[0])}"
