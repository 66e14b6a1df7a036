"""Fetching published datasets, from a server on this machine."""

import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path

import pytest
import yaml

from offmarl.data import download
from offmarl.data.catalog import find_dataset
from offmarl.data.download import download_dataset, find_published, published
from offmarl.data.formats.registry import FORMATS
from offmarl.data.formats.transfer import export_dataset
from offmarl.data.store import Dataset
from offmarl.errors import DataError, UsageError
from offmarl.reporter import Silent


class Listening(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Ranged(http.server.SimpleHTTPRequestHandler):
    """Serves ranges, names its files' versions, and can hang up in the middle of an answer."""

    cut_after: int | None = None
    requests: list[tuple[int, str | None]]

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, asked = path.read_bytes(), self.headers.get("Range")
        version = f'"{hashlib.sha256(data).hexdigest()[:8]}"'
        begin = 0
        if asked and self.headers.get("If-Range") == version:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            if begin >= len(data):
                self.requests.append((416, asked))
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.requests.append((206 if begin else 200, asked))
        self.send_response(206 if begin else 200)
        self.send_header("ETag", version)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        self.wfile.write(data[begin : begin + self.cut_after] if self.cut_after else data[begin:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def served(tmp_path, home):
    """A folder that is served, the handler, and its address."""
    root = tmp_path / "served"
    root.mkdir()
    handler = type("Handler", (Ranged,), {"requests": [], "cut_after": None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def ours(collected) -> Dataset:
    return Dataset.open(collected[True])


def archive(dataset: Dataset, scratch: Path, path: Path) -> None:
    """A zip with the dataset in PyMARL's format, as two parts, like the published ones."""
    export_dataset(dataset, "pymarl", scratch / "m.h5", True, Silent())
    with zipfile.ZipFile(path, "w") as opened:
        for part in ("good", "poor"):
            opened.write(scratch / "m.h5", f"data/3m_{part}.h5")


@pytest.fixture
def table(served, ours, tmp_path):
    """Write a table with one entry that is served, changed by keyword; its path."""
    root, _, address = served
    (tmp_path / "scratch").mkdir()
    archive(ours, tmp_path / "scratch", root / "3m.zip")

    def write(**changes) -> Path:
        entry = {
            "env": "new_3m",
            "collection": "lab",
            "parts": ["Good", "poor"],
            "format": "pymarl",
            "folder": "data/3m_{part}.h5",
            "url": f"{address}/3m.zip",
            "page": "https://example.org/3m",
            "licence": "mit",
        }
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump([entry | {"parts": ["good", "poor"]} | changes]))
        return path

    return write


def test_a_dataset_is_fetched_checked_unpacked_and_imported(table, served, ours, home):
    _, handler, address = served
    listening = Listening()
    dataset = download_dataset(
        find_published("new_3m/lab-good", table()), listening, command="offmarl data ..."
    )
    assert dataset.id == "new_3m/lab-good-v0"
    assert find_dataset("new_3m/lab-good-v0").card.transitions == len(ours)
    digest = hashlib.sha256((home / "downloads" / "3m.zip").read_bytes()).hexdigest()
    source = dataset.card.provenance["source"]
    assert (source["url"], source["archive_sha256"]) == (f"{address}/3m.zip", digest)
    assert source["path"] == "3m.zip: data/3m_good.h5"
    assert source["licence"] == "mit"
    assert any(digest in line and "recorded" in line for line in listening.said)
    recorded = json.loads((home / "downloads" / "checksums.json").read_text())
    assert recorded[f"{address}/3m.zip"]["sha256"] == digest
    assert sorted(os.listdir(home / "downloads")) == ["3m.zip", "checksums.json"]  # nothing unpacked is left
    # The second part comes from the same archive.
    again = Listening()
    download_dataset(find_published("new_3m/lab-poor-v0", table()), again)
    assert any("is here already" in line for line in again.said)
    assert len(handler.requests) == 1


def test_an_interrupted_download_goes_on_where_it_stopped(table, served, home):
    root, handler, _ = served
    wanted = find_published("new_3m/lab-good", table())
    size = (root / "3m.zip").stat().st_size
    handler.cut_after = size // 3
    for _ in range(2):
        with pytest.raises(DataError, match=rf"of {size:,} bytes: the same command goes on|cannot fetch"):
            download_dataset(wanted, Silent())
    assert not (home / "downloads" / "3m.zip").exists()
    assert (home / "downloads" / "3m.zip.part").stat().st_size == 2 * (size // 3)
    handler.cut_after = None
    download_dataset(wanted, Silent())
    assert handler.requests[1:] == [(206, f"bytes={size // 3}-"), (206, f"bytes={2 * (size // 3)}-")]
    assert not list((home / "downloads").glob("*.part*"))


def test_a_file_that_changed_meanwhile_is_fetched_anew(table, served, home):
    root, handler, _ = served
    wanted = find_published("new_3m/lab-good", table())
    handler.cut_after = 100
    with pytest.raises(DataError):
        download_dataset(wanted, Silent())
    handler.cut_after = None
    with zipfile.ZipFile(root / "3m.zip", "a") as opened:
        opened.writestr("README", "second edition")
    download_dataset(wanted, Silent())
    assert (home / "downloads" / "3m.zip").read_bytes() == (root / "3m.zip").read_bytes()
    assert [code for code, _ in handler.requests] == [200, 200]


def test_a_download_killed_after_its_last_byte_is_complete(table, served, home):
    root, handler, _ = served
    downloads = home / "downloads"
    downloads.mkdir(parents=True)
    data = (root / "3m.zip").read_bytes()
    (downloads / "3m.zip.part").write_bytes(data)
    (downloads / "3m.zip.part.version").write_text(f'"{hashlib.sha256(data).hexdigest()[:8]}"')
    download_dataset(find_published("new_3m/lab-good", table()), Silent())
    assert [code for code, _ in handler.requests] == [416]


def test_a_wrong_checksum_is_refused_and_removed(table, home):
    wanted = find_published("new_3m/lab-good", table(sha256="0" * 64))
    with pytest.raises(DataError, match=r"the table says 0000.* what was fetched is removed"):
        download_dataset(wanted, Silent())
    assert os.listdir(home / "downloads") == []
    assert not (home / "datasets").exists()


def test_a_later_download_is_compared_with_the_first(table, served, home):
    root, _, _ = served
    wanted = find_published("new_3m/lab-good", table())
    download_dataset(wanted, Silent())
    (home / "downloads" / "3m.zip").unlink()
    with zipfile.ZipFile(root / "3m.zip", "a") as opened:
        opened.writestr("README", "second edition")
    with pytest.raises(DataError, match="the first download had"):
        download_dataset(wanted, Silent(), overwrite=True)


def test_a_first_answer_that_was_no_archive_is_forgotten(table, served, home):
    root, _, _ = served
    wanted, good = find_published("new_3m/lab-good", table()), (root / "3m.zip").read_bytes()
    (root / "3m.zip").write_text("<html>quota exceeded</html>")
    with pytest.raises(DataError, match=r"is damaged .* remove it to fetch it again"):
        download_dataset(wanted, Silent())
    (root / "3m.zip").write_bytes(good)
    (home / "downloads" / "3m.zip").unlink()
    download_dataset(wanted, Silent())
    assert find_dataset("new_3m/lab-good-v0").card.episodes


def test_where_the_dataset_goes_is_checked_before_anything_is_fetched(table, served, home, tmp_path):
    _, handler, _ = served
    wanted = find_published("new_3m/lab-good", table())
    with pytest.raises(UsageError, match="'no good name' is no dataset id"):
        download_dataset(wanted, Silent(), name="no good name")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no dataset, and would be lost"):
        download_dataset(wanted, Silent(), out=tmp_path / "thesis", overwrite=True)
    download_dataset(wanted, Silent())
    with pytest.raises(UsageError, match="exists: choose another name, or overwrite it"):
        download_dataset(wanted, Silent())
    assert len(handler.requests) == 1


def test_without_a_network_one_line_says_what_to_do(table, home):
    wanted = find_published("new_3m/lab-good", table(url="http://127.0.0.1:9/3m.zip"))
    with pytest.raises(DataError) as caught:
        download_dataset(wanted, Silent())
    message = str(caught.value)
    assert "\n" not in message
    assert f"fetch it by hand to {home / 'downloads' / '3m.zip'}" in message
    command = "offmarl data import --format pymarl data/3m_good.h5 --env new_3m --name new_3m/lab-good-v0"
    assert message.endswith(command)


def test_what_no_program_can_fetch_says_so(table):
    wanted = find_published("new_3m/lab-good", table(url=None))
    with pytest.raises(
        DataError, match=r"only a person can pass: fetch https://example.org/3m, unpack it, then: "
    ):
        download_dataset(wanted, Silent())


def test_an_answer_that_is_an_error(table, served):
    with pytest.raises(DataError, match="404"):
        download_dataset(find_published("new_3m/lab-good", table(url=f"{served[2]}/gone.zip")), Silent())


def hostile(root: Path, name: str) -> None:
    if name == "evil.zip":
        with zipfile.ZipFile(root / name, "w") as opened:
            opened.writestr("../../evil", "out")
    elif name == "link.zip":
        with zipfile.ZipFile(root / name, "w") as opened:
            info = zipfile.ZipInfo("data/3m_good.h5")
            info.external_attr = 0o120777 << 16
            opened.writestr(info, "/etc/passwd")
    elif name == "link.tar.gz":
        with tarfile.open(root / name, "w:gz") as opened:
            info = tarfile.TarInfo("data/3m_good.h5")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            opened.addfile(info)
    else:
        with tarfile.open(root / name, "w") as opened:
            opened.addfile(tarfile.TarInfo("/evil"), io.BytesIO())


@pytest.mark.parametrize("name", ["evil.zip", "link.zip", "link.tar.gz", "absolute.tar"])
def test_archives_that_reach_out_of_their_folder_are_refused(name, table, served, home, tmp_path):
    root, _, address = served
    hostile(root, name)
    with pytest.raises(DataError, match="is refused: its member"):
        download_dataset(find_published("new_3m/lab-good", table(url=f"{address}/{name}")), Silent())
    assert not list(tmp_path.rglob("evil"))
    assert not (home / "datasets").exists()


def test_a_tar_archive(table, served, ours, tmp_path):
    root, _, address = served
    with tarfile.open(root / "3m.tar.gz", "w:gz") as opened:
        opened.add(tmp_path / "scratch" / "m.h5", "archive/data/3m_good.h5")
    dataset = download_dataset(find_published("new_3m/lab-good", table(url=f"{address}/3m.tar.gz")), Silent())
    assert len(dataset) == len(ours)


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_an_archive_with_spoilt_bytes_is_one_line(ending, table, served, tmp_path):
    root, _, address = served
    spoilt, inside = root / f"spoilt.{ending}", "archive/data/3m_good.h5"
    if ending == "zip":
        with zipfile.ZipFile(spoilt, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.write(tmp_path / "scratch" / "m.h5", inside)
    else:
        with tarfile.open(spoilt, f"w:{ending.removeprefix('tar').removeprefix('.')}") as opened:
            opened.add(tmp_path / "scratch" / "m.h5", inside)
    data = bytearray(spoilt.read_bytes())
    middle = 0 if ending == "tar" else len(data) // 2  # a tar has no checksum of what it holds
    data[middle : middle + 600] = bytes(byte ^ 0xFF for byte in data[middle : middle + 600])
    spoilt.write_bytes(data)
    with pytest.raises(DataError, match="is damaged") as refused:
        download_dataset(find_published("new_3m/lab-good", table(url=f"{address}/{spoilt.name}")), Silent())
    assert "\n" not in str(refused.value)


def test_a_damaged_archive_and_one_without_the_dataset(table, served):
    root, _, address = served
    (root / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match="is damaged"):
        download_dataset(find_published("new_3m/lab-good", table(url=f"{address}/broken.zip")), Silent())
    with pytest.raises(
        DataError, match=r"holds 'other/good' 0 times, expected once; there are: data/3m_good.h5"
    ):
        download_dataset(find_published("new_3m/lab-good", table(folder="other/{part}")), Silent())


def test_names(table):
    with pytest.raises(UsageError, match="did you mean new_3m/lab-good"):
        find_published("new_3m/lab-god", table())
    broken = table(formatt="x")
    with pytest.raises(DataError, match="is no table of published datasets"):
        published(broken)


def test_the_table_that_comes_along_is_sound():
    known = published()
    assert len({one.name for one in known}) == len(known) > 80
    for one in known:
        assert one.entry.format in FORMATS
        assert one.id.count("/") == 1
        assert one.entry.page.startswith("https://")
        assert one.entry.url is None or one.entry.url.startswith(
            "https://huggingface.co/datasets/InstaDeepAI/og-marl/"
        )
        assert one.entry.url is None or "{part}" in one.entry.folder
    archives = {one.entry.url for one in known if one.entry.url}
    assert len({download._file_name(url) for url in archives}) == len(archives)
