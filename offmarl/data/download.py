"""Published datasets: where they live, how they get here, and what to do by hand where they cannot.

`datasets/published.yaml` is the table. An archive is downloaded once, into `$OFFMARL_HOME/downloads`; a download
that stops goes on where it stopped. Only the part that was asked for is unpacked, imported and removed again.
"""

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from offmarl.atomic import fsync_folder, write_json, write_text
from offmarl.data.catalog import catalogue_folder, dataset_folder
from offmarl.data.formats.transfer import ImportRequest, import_dataset
from offmarl.data.schema import check_id
from offmarl.data.store import Dataset
from offmarl.data.validate import sha256
from offmarl.data.writer import check_free
from offmarl.errors import DataError, unknown_name
from offmarl.home import offmarl_home
from offmarl.reporter import Progress, Reporter
from offmarl.settings import parse_yaml
from offmarl.stored_json import read_object

TABLE_NAME = "published.yaml"
CHECKSUMS_NAME = "checksums.json"
BLOCK_BYTES = 1 << 20
TIMEOUT = 60.0  # seconds without an answer
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
ARCHIVE_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    RuntimeError,  # of zipfile: a member that calls itself encrypted, or packed in a way that nobody knows
)


class _Entry(BaseModel):
    """One entry of the table: an archive, or a page, with one or several datasets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env: str
    collection: str
    parts: list[str]
    format: str
    folder: str
    page: str
    url: str | None = None
    licence: str | None = None
    size: str | None = None
    sha256: str | None = None
    team_reward: Literal["sum", "copy"] | None = None


@dataclass(frozen=True)
class Published:
    """A dataset that somebody published."""

    name: str  # <env>/<collection>-<part>
    part: str  # its name in the archive
    entry: _Entry

    @property
    def id(self) -> str:
        """The id that an import gives it by default."""
        return f"{self.name}-v0"

    def import_command(self, path: str) -> str:
        """What to type once it is unpacked."""
        rewards = f" --team-reward {self.entry.team_reward}" if self.entry.team_reward else ""
        return (
            f"offmarl data import --format {self.entry.format} {path} --env {self.entry.env} "
            f"--name {self.id}{rewards}"
        )

    @property
    def folder(self) -> str:
        """Where it lies in its archive, as a path to type."""
        return self.entry.folder.replace("{part}", self.part)


def published(table: Path | None = None) -> list[Published]:
    """All datasets of the table, in its order. Raises `DataError` for a table that cannot be read."""
    path = table or catalogue_folder() / TABLE_NAME
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(parse_yaml(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # pydantic's is a ValueError too
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path} is no table of published datasets: {reason}") from error
    return [
        Published(f"{entry.env}/{entry.collection}-{part.lower()}", part, entry)
        for entry in entries
        for part in entry.parts
    ]


def find_published(name: str, table: Path | None = None) -> Published:
    """The published dataset `name` (an id of it will do). Raises `UsageError` with near names."""
    known = {entry.name: entry for entry in published(table)}
    wanted = name.lower().removesuffix("-v0")
    if wanted not in known:
        raise unknown_name("published dataset", name, known)
    return known[wanted]


def downloads_folder() -> Path:
    """Where archives are kept."""
    return offmarl_home() / "downloads"


def download_dataset(
    wanted: Published,
    reporter: Reporter,
    *,
    name: str | None = None,
    env: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Dataset:
    """Fetch, check, unpack and import a published dataset.

    Raises `DataError` where it cannot be fetched, which says what to do by hand, and for a wrong checksum or a
    damaged archive; what was downloaded before is kept. Raises `UsageError`, before anything is fetched, for a bad
    id, and where something stands that may not be overwritten.
    """
    entry = wanted.entry
    dataset_id = check_id(name or wanted.id)
    check_free(Path(os.path.abspath(out or dataset_folder(dataset_id))), overwrite)
    if entry.url is None:
        raise DataError(
            f"{wanted.name} lies behind a page that only a person can pass: fetch {entry.page}, unpack it, then: "
            f"{wanted.import_command(wanted.folder)}"
        )
    archive = downloads_folder() / _file_name(entry.url)
    digest = _fetched(wanted, archive, reporter)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=archive.parent) as temporary:
        with reporter.bar("unpack") as progress:
            path = _unpack_part(archive, Path(temporary), wanted, progress)
        request = ImportRequest(
            path,
            entry.format,
            dataset_id,
            env=env or entry.env,
            out=out,
            overwrite=overwrite,
            team_reward=entry.team_reward,
            command=command,
            origin={
                "path": f"{archive.name}: {path.relative_to(temporary)}",
                "url": entry.url,
                "archive_sha256": digest,
                "page": entry.page,
                "licence": entry.licence,
            },
        )
        dataset = import_dataset(request, reporter)
    if entry.sha256 is None and _recorded(entry.url) is None:
        reporter.say(f"its publisher gives no checksum; recorded for later downloads: sha256 {digest}")
        _record(entry.url, digest, archive.stat().st_size)
    return dataset


def _fetched(wanted: Published, archive: Path, reporter: Reporter) -> str:
    """Make sure that the archive is here and is what it should be; its sha256."""
    entry = wanted.entry
    assert entry.url is not None
    expected = entry.sha256 or _recorded(entry.url)
    if archive.exists():
        reporter.say(f"{archive} is here already")
        digest = sha256(archive)
    else:
        reporter.say(f"from {entry.url}" + (f", {entry.size}" if entry.size else ""))
        partial = archive.with_name(f"{archive.name}.part")
        try:
            with reporter.bar("download") as progress:
                fetch(entry.url, partial, progress)
        except (urllib.error.URLError, HTTPException, OSError) as error:
            refused = isinstance(error, urllib.error.HTTPError)
            reason = error if refused else getattr(error, "reason", None) or error
            raise DataError(
                f"cannot fetch {entry.url} ({' '.join(str(reason).split())}): fetch it by hand to {archive} and give "
                f"this command again, or unpack it and: {wanted.import_command(wanted.folder)}"
            ) from error
        digest = sha256(partial)
        if expected in (None, digest):
            os.replace(partial, archive)
            fsync_folder(archive.parent)
        else:
            partial.unlink()
        _validator_path(partial).unlink(missing_ok=True)
    if expected not in (None, digest):
        whose = "the table says" if entry.sha256 else "the first download had"
        kept = f"remove {archive} to fetch it again" if archive.exists() else "what was fetched is removed"
        raise DataError(
            f"{entry.url}: sha256 is {digest}, {whose} {expected}: it is damaged, or its publisher changed it; {kept}"
        )
    return digest


def fetch(url: str, partial: Path, progress: Progress) -> None:
    """Download `url` to `partial`, going on with what is there of the same version of the file.

    Raises what the network raises, and `DataError` for an answer that ends early: then `partial` is kept.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    validator = _validator_path(partial)
    have = partial.stat().st_size if partial.exists() and validator.exists() else 0
    headers = {"User-Agent": "offmarl"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator.read_text(encoding="utf-8")}
    try:
        answer: HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: nothing is left of this range
            raise
        error.close()
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return
        partial.unlink()
        fetch(url, partial, progress)
        return
    with answer:
        if answer.status != 206:
            have = 0
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if version and not version.startswith("W/"):
            write_text(validator, version)
        else:
            validator.unlink(missing_ok=True)  # the next try starts anew
        left = answer.headers.get("Content-Length")
        total = have + int(left) if left else 0
        with open(partial, "ab" if have else "wb") as file:
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                have += len(block)
                progress(have, max(total, have))
            file.flush()
            os.fsync(file.fileno())
    if have < total:
        raise DataError(f"{url} ended after {have:,} of {total:,} bytes: the same command goes on from there")


def _validator_path(partial: Path) -> Path:
    """Where the version of a partial download is noted."""
    return partial.with_name(f"{partial.name}.version")


def _file_name(url: str) -> str:
    """A name for an archive: the end of its path, which tells 5m_vs_6m of one collection from another's."""
    path = urllib.parse.unquote(urllib.parse.urlparse(url).path)
    return "_".join(part for part in PurePosixPath(path).parts[-4:] if part not in ("/", "main", ".."))


def _recorded(url: str) -> str | None:
    """The checksum that the first download of `url` had."""
    path = downloads_folder() / CHECKSUMS_NAME
    if not path.exists():
        return None
    known = read_object(path, "folder of downloads", "list of checksums").get(url)
    return str(known["sha256"]) if isinstance(known, dict) and "sha256" in known else None


def _record(url: str, digest: str, size: int) -> None:
    path = downloads_folder() / CHECKSUMS_NAME
    known: dict[str, Any] = {}
    if path.exists():
        known = read_object(path, "folder of downloads", "list of checksums")
    known[url] = {"sha256": digest, "bytes": size, "fetched": datetime.now(UTC).isoformat()}
    write_json(path, known)


def _unpack_part(archive: Path, folder: Path, wanted: Published, progress: Progress) -> Path:
    """Unpack what belongs to one dataset; the path of it. Raises `DataError` where it is not in there."""
    try:
        with _Archive(archive) as opened:
            root = _root_of(opened.names, wanted)
            chosen = [
                name
                for name in opened.names
                if name == root or PurePosixPath(root) in PurePosixPath(name).parents
            ]
            for done, name in enumerate(chosen, 1):
                opened.unpack(name, folder)
                progress(done, len(chosen))
    except ARCHIVE_DAMAGE as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{archive} is damaged ({reason}): remove it to fetch it again") from error
    return folder / root


def _root_of(names: list[str], wanted: Published) -> str:
    """Where a dataset lies in an archive: where the table says, or below any other folder."""
    ending = PurePosixPath(wanted.folder).parts
    paths = {path for name in names for path in (PurePosixPath(name), *PurePosixPath(name).parents)}
    found = [path for path in paths if path.parts[-len(ending) :] == ending]
    if len(found) != 1:
        folders = sorted({str(PurePosixPath(*PurePosixPath(name).parts[:2])) for name in names})
        raise DataError(
            f"the archive of {wanted.name} holds '{wanted.folder}' {len(found)} times, expected once; there are: "
            f"{', '.join(folders[:12])}"
        )
    return str(found[0])


class _Archive:
    """A zip or tar archive whose members are files with honest names; anything else is refused."""

    def __init__(self, path: Path) -> None:
        if not path.name.endswith(ARCHIVES):
            raise DataError(f"{path} is no archive that can be unpacked: expected {', '.join(ARCHIVES)}")
        self._zip = zipfile.ZipFile(path) if path.name.endswith(".zip") else None
        self._tar = None if self._zip else tarfile.open(path)  # noqa: SIM115 (closed by `__exit__`)
        self.names = list(self._files(path))

    def __enter__(self) -> "_Archive":
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (self._zip, self._tar):
            if opened is not None:
                opened.close()

    def _files(self, path: Path) -> Iterator[str]:
        """Names of the files. Raises `DataError` for a link, and for a name that leads out of the folder."""
        if self._zip is not None:
            members = [
                (info.filename, info.is_dir(), not stat.S_ISLNK(info.external_attr >> 16))
                for info in self._zip.infolist()
            ]
        else:
            assert self._tar is not None
            members = [(info.name, info.isdir(), info.isfile()) for info in self._tar.getmembers()]
        for name, is_folder, is_file in members:
            parts = PurePosixPath(name.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[:1]:
                raise DataError(f"{path} is refused: its member '{name}' leads out of the folder")
            if is_folder:
                continue
            if not is_file:
                raise DataError(f"{path} is refused: its member '{name}' is a link or a device")
            yield name

    def unpack(self, name: str, folder: Path) -> None:
        """Write one file below `folder`."""
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._zip is not None:
            with self._zip.open(name) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file, BLOCK_BYTES)
            return
        assert self._tar is not None
        member = self._tar.extractfile(name)
        assert member is not None
        with member, open(target, "wb") as file:
            shutil.copyfileobj(member, file, BLOCK_BYTES)
