"""A collection that is killed, or runs out of disk, really: what is left, and what resuming makes of it."""

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
import torch
import toy
from toy import collect_toy, toy_spec

from offmarl.data import hdf5, writer
from offmarl.data.store import Dataset, partial_folder
from offmarl.data.validate import validate
from offmarl.data.writer import Writer
from offmarl.errors import DataError, UsageError

TRANSITIONS = 2500


def in_child(function, *args) -> multiprocessing.Process:
    """Run in a forked process (it need not import torch again)."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args, daemon=True)
    process.start()
    return process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("undisturbed") / "x"
    collect_toy(folder, TRANSITIONS)
    return Dataset.open(folder)


def check_leftovers(folder: Path, undisturbed: Dataset) -> int:
    """Every file left opens and everything in it is right; returns the transitions that survived."""
    partial = partial_folder(folder)
    assert not folder.exists()
    for path in (partial / "parts").glob("*.h5"):
        with h5py.File(path) as file:  # opened like any HDF5 file, no flags to clear
            assert len(file["obs"])
    if not any((partial / "parts").glob("*.h5")):
        return 0
    with Dataset.open(partial) as left:
        assert validate(left) == []
        for name in left.card.arrays:
            assert torch.equal(left.read(name), undisturbed.read(name, slice(0, left.card.rows)))
        lazy = left.hidden["lazy"]
        assert torch.equal(lazy, undisturbed.hidden["lazy"][: len(lazy)])
        return len(left)


def test_killed_at_random_moments(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(writer, "PART_BYTES", 1)  # a part a wave
    folder = tmp_path / "x"
    moments = random.Random(int(time.time()))
    survived, kills = 0, 0
    while not folder.exists():
        resume = (partial_folder(folder) / "dataset.json").exists()
        child = in_child(lambda resume: collect_toy(folder, TRANSITIONS, pause=0.0003, resume=resume), resume)
        child.join(moments.uniform(0.02, 0.25) if kills < 8 else None)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kills += 1
            if not (partial_folder(folder) / "dataset.json").exists():
                continue  # killed before the first file
            now = check_leftovers(folder, undisturbed)
            assert now >= survived
            survived = now
        else:
            assert child.exitcode == 0
    assert kills >= 3
    assert survived > 0
    finished = Dataset.open(folder)
    assert finished.card.sha256 == undisturbed.card.sha256
    assert finished.card.statistics == undisturbed.card.statistics
    assert not partial_folder(folder).exists()
    assert sorted(path.name for path in folder.iterdir()) == ["data.h5", "dataset.json"]


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_part() -> None:
    original, calls = hdf5._GuardedFile.write, iter(range(10**9))
    hdf5._GuardedFile.write = lambda self, data: die() if next(calls) > 200 else original(self, data)


def die_in_the_joined_file() -> None:
    original = hdf5._GuardedFile.write
    hdf5._GuardedFile.write = lambda self, data: (
        die() if self._file.name.endswith("data.h5") and self._file.tell() > 3000 else original(self, data)
    )


def die_before_the_card() -> None:
    writer.sha256 = die


def die_before_the_parts_are_removed() -> None:
    writer.shutil.rmtree = die


def die_before_the_rename() -> None:
    writer.replace_folder = die


@pytest.mark.parametrize(
    "trap",
    [
        die_in_a_part,
        die_in_the_joined_file,
        die_before_the_card,
        die_before_the_parts_are_removed,
        die_before_the_rename,
    ],
)
def test_killed_at_the_worst_moments(tmp_path, undisturbed, trap):
    folder = tmp_path / "x"

    def collect_trapped() -> None:
        writer.PART_BYTES = 20_000
        trap()
        collect_toy(folder, TRANSITIONS)

    child = in_child(collect_trapped)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not folder.exists()
    if trap in (die_in_a_part, die_in_the_joined_file, die_before_the_card):
        assert check_leftovers(folder, undisturbed) > 0
    collect_toy(folder, TRANSITIONS, resume=True)
    assert Dataset.open(folder).card.sha256 == undisturbed.card.sha256
    assert validate(Dataset.open(folder)) == []


def test_resume_wants_the_same_task_and_settings(tmp_path):
    folder = tmp_path / "x"
    with pytest.raises(UsageError, match="nothing to resume"):
        Writer.resume(folder, toy_spec())
    Writer(folder, toy_spec(), id="toy/x-v0", provenance={"behaviour": "random", "command": "a"}).abandon()
    with pytest.raises(UsageError, match="options, horizon differ"):
        Writer.resume(folder, toy_spec(horizon=9))
    with pytest.raises(UsageError, match="begun with behaviour='random', not 'expert'"):
        Writer.resume(folder, toy_spec(), provenance={"behaviour": "expert"})
    out = Writer.resume(folder, toy_spec(), provenance={"behaviour": "random", "command": "b"})
    out.bind(seed=1)
    out.abandon()
    with pytest.raises(UsageError, match="seed=1, not 2"):
        collect_toy(folder, 100, seed=2, resume=True)


def test_a_part_emptied_by_a_power_cut_is_made_again(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(writer, "PART_BYTES", 20_000)
    folder = tmp_path / "x"
    env = toy.Toy()
    out = Writer(folder, env.spec, id="toy/random-v0")
    monkeypatch.setattr(out, "close", lambda: None)
    with out:
        toy.collect(env, toy.ToyPolicy(), out, TRANSITIONS, seed=0)
    out.abandon()
    parts = sorted((partial_folder(folder) / "parts").iterdir())
    assert len(parts) > 5
    parts[3].write_bytes(b"")
    collect_toy(folder, TRANSITIONS, resume=True)
    assert Dataset.open(folder).card.sha256 == undisturbed.card.sha256


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of a given size, or skip where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small file system is not allowed here")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)


@pytest.mark.parametrize("size", ["2m", "4m"], ids=["full while collecting", "full while joining"])
def test_full_disk(small_disk, tmp_path, size):
    folder = small_disk(f"size={size}") / "x"
    script = [sys.executable, str(Path(toy.__file__)), str(folder), "20000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    full = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert full.returncode == 1, full  # not a crash of HDF5 at exit
    assert "cannot write" in full.stdout
    assert "No space left on device" in full.stdout
    assert not folder.exists()
    with Dataset.open(partial_folder(folder)) as left:
        assert validate(left) == []
        assert len(left) > (2000 if size == "2m" else 19_000)
    small_disk("remount", "size=32m")
    collect_toy(folder, 20_000, num_envs=64, resume=True)
    collect_toy(tmp_path / "whole", 20_000, num_envs=64)
    assert Dataset.open(folder).card.sha256 == Dataset.open(tmp_path / "whole").card.sha256


@pytest.mark.parametrize("allowed", [5_000, 40_000, 300_000])
def test_write_that_fails_leaves_no_half_file(tmp_path, monkeypatch, allowed):
    class FullFile(hdf5._GuardedFile):
        def __init__(self, path):
            super().__init__(path)
            self._file = Full(self._file)

    class Full:
        left = allowed

        def __init__(self, file):
            self._inner = file

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def write(self, data):
            if len(data) > Full.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            Full.left -= len(data)
            return self._inner.write(data)

    monkeypatch.setattr(hdf5, "_GuardedFile", FullFile)
    monkeypatch.setattr(writer, "PART_BYTES", 20_000)
    with pytest.raises(DataError, match="No space left on device; what was finished before is kept"):
        collect_toy(tmp_path / "x", TRANSITIONS)
    assert not (tmp_path / "x").exists()
    partial = partial_folder(tmp_path / "x")
    assert not list(partial.rglob("*.tmp"))
    assert not (partial / "data.h5").exists()
    if any((partial / "parts").iterdir()):
        assert validate(Dataset.open(partial)) == []
    else:
        assert allowed == 5_000
