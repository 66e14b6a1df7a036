"""Writing so that a reader sees the old file or the new one, never half of one, and no two write at once."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offmarl.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are then not kept apart
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_one(folder: Path, at_work: str) -> Iterator[None]:
    """Hold `folder`, made where it is missing, against a second process; the lock ends with this one, however it ends.

    Raises `UsageError` with the text `at_work` where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(at_work) from error
        except OSError:  # a network disk without locks
            pass
        yield
    finally:
        os.close(handle)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        if error.filename is None:  # a full disk, for instance, does not say where
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically (NaN is refused: it is not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def replace_folder(temporary: Path, final: Path) -> None:
    """Move a finished folder to its final name, replacing what stood there (of a link, the link alone)."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        retired = final.with_name(f".{final.name}.retired")
        _remove(retired)
        os.replace(final, retired)
        os.replace(temporary, final)
        _remove(retired)
    else:
        os.replace(temporary, final)
    fsync_folder(final.parent)


def _remove(folder: Path) -> None:
    """Remove a folder, or the link to one, if it is there."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
