"""Where things lie on this machine: datasets by id, the latest one, reference returns."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import offmarl
from offmarl.atomic import write_json
from offmarl.data.schema import CARD_NAME, DatasetCard, check_id
from offmarl.data.store import PARTIAL, Dataset, partial_folder
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError, UsageError, unknown_name
from offmarl.home import offmarl_home

REFERENCES_NAME = "references.json"


def datasets_folder() -> Path:
    """Where datasets lie, one folder an id."""
    return offmarl_home() / "datasets"


def runs_folder() -> Path:
    """Where training runs lie."""
    return offmarl_home() / "runs"


def policies_folder() -> Path:
    """Where behaviour policies lie."""
    return offmarl_home() / "policies"


def catalogue_folder() -> Path:
    """Where the catalogue of offmarl lies: `datasets/` of a checkout, inside the package if installed."""
    package = Path(offmarl.__file__).parent
    installed = package / "datasets"
    return installed if installed.is_dir() else package.parent / "datasets"


class CatalogueEntry(NamedTuple):
    """A dataset on this machine; `card` is None where it cannot be read, and `problem` says why."""

    folder: Path
    card: DatasetCard | None
    problem: str = ""

    @property
    def id(self) -> str:
        """What finds it: its folder below `datasets_folder()`."""
        return self.folder.relative_to(datasets_folder()).as_posix()


def is_path(text: str | Path, holds: str = CARD_NAME) -> bool:
    """Tell a path from an id: a `Path`, a text that starts like one, or a folder that holds the file `holds`."""
    if isinstance(text, Path) or text.startswith((".", "/", "~")) or os.path.isabs(text):
        return True
    return (Path(text) / holds).exists()


def dataset_folder(id_or_path: str | Path) -> Path:
    """Name the folder of a dataset, existing or not: a path as it is, an id below `datasets_folder()`.

    Raises `UsageError` for what is neither.
    """
    if is_path(id_or_path):
        return Path(id_or_path).expanduser()
    return datasets_folder() / check_id(str(id_or_path))


def list_datasets() -> list[CatalogueEntry]:
    """List the complete datasets of this machine by id; unreadable ones are there, with their problem."""
    root = datasets_folder()
    entries = []
    for card_path in sorted(root.rglob(CARD_NAME)):
        folder = card_path.parent
        if any(part.endswith(PARTIAL) or part.startswith(".") for part in folder.relative_to(root).parts):
            continue
        try:
            with Dataset.open(folder) as dataset:
                entries.append(CatalogueEntry(folder, dataset.card))
        except DataError as error:
            entries.append(CatalogueEntry(folder, None, str(error)))
    return entries


def find_dataset(id_or_path: str | Path | None = None) -> Dataset:
    """Open a dataset by id or path; without either, the one created last.

    Raises `UsageError` for an unknown id (with near ones) or where there is none at all, `DataError` for a
    damaged one.
    """
    if id_or_path is None:
        readable = [entry for entry in list_datasets() if entry.card is not None]
        if not readable:
            raise UsageError(f"there is no dataset in {datasets_folder()} yet: collect one, or give a path")
        return Dataset.open(max(readable, key=_created).folder)
    folder = dataset_folder(id_or_path)
    if not folder.exists() and not partial_folder(folder).exists() and not is_path(id_or_path):
        raise unknown_name("dataset", str(id_or_path), [entry.id for entry in list_datasets()])
    return Dataset.open(folder)


def _created(entry: CatalogueEntry) -> datetime:
    assert entry.card is not None
    created = datetime.fromisoformat(entry.card.created)
    return created if created.tzinfo else created.replace(tzinfo=UTC)


def reference_returns(spec: EnvSpec, path: Path | None = None) -> dict[str, float] | None:
    """Look up what random and expert policies earn in a task: {"random", "expert"}, or None if not measured.

    A return is the mean over agents of the sum of an episode's rewards. Entries of `references.json` match by
    environment, backend and all resolved options. Raises `DataError` for a file that cannot be read.
    """
    for entry in _references(path or catalogue_folder() / REFERENCES_NAME):
        if _task(entry) == _task_of(spec):
            return {"random": float(entry["random"]), "expert": float(entry["expert"])}
    return None


def save_reference(
    spec: EnvSpec,
    random: float,
    expert: float,
    episodes: int,
    command: str,
    path: Path | None = None,
) -> None:
    """Record measured returns of a task in `references.json`, in place of an older entry of the same task.

    `episodes` is how many each number is a mean of, `command` what measures them again.
    """
    path = path or catalogue_folder() / REFERENCES_NAME
    entries = [entry for entry in _references(path) if _task(entry) != _task_of(spec)]
    measured = {"random": random, "expert": expert, "episodes": episodes, "command": command}
    entries.append({**_task_of(spec), **measured})
    write_json(path, sorted(entries, key=lambda entry: json.dumps(_task(entry), sort_keys=True)))


def _references(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            _task(entry), float(entry["random"]), float(entry["expert"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is no list of reference returns: {error!r}") from error
    return entries


def _task(entry: dict[str, Any]) -> dict[str, Any]:
    """Keep what says where an entry was measured."""
    return {"env": entry["env"], "backend": entry["backend"], "options": entry["options"]}


def _task_of(spec: EnvSpec) -> dict[str, Any]:
    # Through JSON, as the file has it: tuples become lists.
    options = json.loads(json.dumps(spec.options))
    return {"env": spec.id, "backend": spec.backend, "options": options}
