"""A foreign dataset becomes one of offmarl, and the other way round.

Shapes: R rows, E episodes.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offmarl.atomic import replace_folder
from offmarl.data.catalog import dataset_folder, reference_returns
from offmarl.data.formats.base import Exported, Format, ReadOptions, Source, TeamReward, naming, reading
from offmarl.data.formats.registry import check_recognised, find_exporter, find_format
from offmarl.data.formats.task import check_dimensions, known_task, resolve_task
from offmarl.data.schema import array_layout, check_id
from offmarl.data.store import Dataset
from offmarl.data.validate import BLOCK_BYTES, episode_blocks, sha256
from offmarl.data.writer import Writer
from offmarl.envs.base import EnvSpec
from offmarl.errors import UsageError
from offmarl.reporter import Progress, Reporter


@dataclass(frozen=True)
class ImportRequest:
    """What to import, and as what."""

    path: Path
    form: str
    name: str  # id of the new dataset
    env: str | None = None  # not needed for an export of offmarl
    out: Path | None = None
    overwrite: bool = False
    horizon: int | None = None
    team_reward: str | None = None  # sum or copy
    env_options: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)  # where the path was downloaded from


def import_dataset(request: ImportRequest, reporter: Reporter) -> Dataset:
    """Read a foreign dataset block by block into a new one; nothing is left of one that fails.

    The card's provenance has the command, the format, path and sha256 of every file, and what there was to say
    about this import. Raises `UsageError` for a wrong request, `DataError` for a wrong or damaged file, naming the
    array, its shape and what was expected.
    """
    form = find_format(request.form)
    check_id(request.name)
    team_reward = _team_reward(request.team_reward)
    folder = request.out or dataset_folder(request.name)
    if folder.exists() and not request.overwrite:
        raise UsageError(f"{folder} exists: choose another name, or overwrite it")
    path = request.path.expanduser()
    check_recognised(form, path)
    known = known_task(request.env, request.env_options) if request.env else None
    with ExitStack() as opened:
        with reporter.bar("look through the files"), reading(path):
            source = opened.enter_context(form.open(path, ReadOptions(known, request.horizon, team_reward)))
        spec = _task(request, known, source)
        reporter.say(
            f"{len(source.contents.steps):,} episodes, {int(source.contents.steps.sum()):,} transitions"
        )
        with reporter.bar("checksums") as progress:
            files = _checksums(source, progress)
        provenance = {
            "command": request.command,
            "source": {"format": form.name, "path": str(path), "sha256": files, **request.origin},
        }
        references = source.beside.references if source.beside else reference_returns(spec)
        writer = Writer(
            folder,
            spec,
            id=request.name,
            provenance=provenance,
            references=references,
            overwrite=request.overwrite,
        )
        try:
            with reporter.bar("import") as progress:
                _copy(source, spec, writer, progress)
                writer.bind(notes=list(source.contents.notes))
                return writer.close()
        except BaseException:
            writer.abandon()
            shutil.rmtree(writer.partial, ignore_errors=True)
            raise


def _team_reward(text: str | None) -> TeamReward | None:
    if text is None:
        return None
    if text == "sum":
        return "sum"
    if text == "copy":
        return "copy"
    raise UsageError(f"--team-reward {text}: expected sum or copy")


def _task(request: ImportRequest, known: EnvSpec | None, source: Source) -> EnvSpec:
    """The spec that the new dataset gets."""
    if source.beside is not None:
        source.beside.check_belongs(source.contents.steps)
        if request.env not in (None, source.beside.spec.id):
            raise UsageError(
                f"{source.path} was exported from {source.beside.spec.id}, not from {request.env}: leave --env out"
            )
        given = {
            "--horizon": request.horizon,
            "--team-reward": request.team_reward,
            f"--set env.{next(iter(request.env_options), '')}": request.env_options,
        }
        if idle := [flag for flag, value in given.items() if value]:
            raise UsageError(
                f"{source.path} is an export of offmarl, which knows its task and its rewards: leave out {idle[0]}"
            )
        check_dimensions(_as_exported(source), source)
        source.contents.notes[:] = [f"an export of offmarl, completed by {source.beside.path.name}"]
        return source.beside.spec
    if request.env is None:
        raise UsageError(f"{source.path} does not say what task it is from: --env NAME")
    if known is not None and request.horizon is not None and not source.cut_by_horizon:
        raise UsageError(
            f"--horizon {request.horizon}: {request.env} is known, and the files say where episodes end: leave it out, "
            f"or --set env.horizon={request.horizon} where the task was played to another horizon"
        )
    return resolve_task(request.env, known, request.env_options, source)


def _as_exported(source: Source) -> EnvSpec:
    """The spec beside an export, without a state that the format was given in its place."""
    assert source.beside is not None
    spec = source.beside.spec
    return (
        spec
        if "state" in source.beside.arrays
        else spec.model_copy(update={"state_names": (), "state_owner": ()})
    )


def _copy(source: Source, spec: EnvSpec, writer: Writer, progress: Progress) -> None:
    """Read and write whole episodes, about 16 MiB of them at a time."""
    steps, beside = source.contents.steps, source.beside
    start = np.concatenate([[0], np.cumsum(steps + 1)])
    row_bytes = sum(
        int(np.prod(layout.shape, dtype=np.int64)) * np.dtype(layout.dtype).itemsize
        for layout in array_layout(spec).values()
    )
    for first, last in episode_blocks(start, max(1, BLOCK_BYTES // row_bytes)):
        annotations: dict[str, np.ndarray] = {}
        with reading(source.path):
            arrays = source.read(first, last)
            if beside is not None:
                arrays = beside.complete(arrays, first, last)
                annotations = beside.annotations(first, last)
        with naming(source.path):
            writer.append(arrays, steps[first:last] + 1, annotations)
        progress(int(start[last]), int(start[-1]))


def _checksums(source: Source, progress: Progress) -> dict[str, str]:
    """sha256 of every file, by its name relative to the dataset's path."""
    files = source.files()
    total, done, found = sum(file.stat().st_size for file in files), 0, {}
    for file in files:
        name = (
            file.relative_to(source.path)
            if file.is_relative_to(source.path) and file != source.path
            else file.name
        )
        found[str(name)] = sha256(file)
        done += file.stat().st_size
        progress(done, total)
    return found


def export_dataset(
    dataset: Dataset, form_name: str, path: Path, overwrite: bool, reporter: Reporter
) -> Exported:
    """Write a dataset in a foreign format; `path` appears only when it is complete.

    Raises `UsageError` for a format that cannot hold it, or where something stands at `path` and `overwrite` is
    false or it is something else.
    """
    form = find_exporter(form_name)
    assert form.write is not None
    dataset.require_complete()
    path = Path(os.path.abspath(path.expanduser()))
    _check_target(form, path, overwrite)
    with reporter.bar(f"export to {form.name}") as progress:
        if not form.folder:
            return form.write(dataset, path, progress)
        return _write_folder(form.write, dataset, path, progress)


def _write_folder(
    write: Callable[[Dataset, Path, Progress], Exported], dataset: Dataset, path: Path, progress: Progress
) -> Exported:
    """Fill a folder under another name, and give it its own when it is complete."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        written = write(dataset, unfinished, progress)
        replace_folder(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return Exported(path, written.notes, written.usage.replace(str(unfinished), str(path)))


def _check_target(form: Format, path: Path, overwrite: bool) -> None:
    """Raise `UsageError` where something stands that must stay: only one dataset of the format may go."""
    if not path.exists() or (path.is_dir() and form.folder and not any(path.iterdir())):
        return
    if not overwrite:
        raise UsageError(f"{path} exists: choose another path, or overwrite it")
    if path.is_dir() != form.folder or not form.recognise(path):
        raise UsageError(f"{path} is not in the format {form.name}, and would be lost: choose another path")
    if form.foreign and (found := form.foreign(path)):
        raise UsageError(
            f"{min(found)} is no part of a dataset in the format {form.name}, and would be lost: choose another path"
        )
