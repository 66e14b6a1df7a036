"""Ctrl-C: one line that says how to go on, exit code 130, and nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DATASET = "mpe_spread/random-v0"
COLLECT = f"collect --env mpe_spread --quality random --steps 500 --num-envs 5 --name {DATASET}"
TRAIN = (
    "train --learner td3bc --rewards mean --steps 20 --set train.batch_size=32 --set train.tensorboard=false "
    "--set train.log_every=5 --set train.checkpoint_every=5"
)


@pytest.fixture(autouse=True)
def heard():
    """A shell that starts something in the background lets it ignore Ctrl-C, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def press(monkeypatch):
    """Send SIGINT from within the n-th call of a function, after it has done its work."""

    def prepare(target: str, call: int = 1) -> None:
        module, name = target.rsplit(".", 1)
        owner, _, attribute = module.partition(":")
        place = __import__(owner, fromlist=["_"])
        place = getattr(place, attribute) if attribute else place
        real, calls = getattr(place, name), []

        def pressed(*args, **kwargs):
            done = real(*args, **kwargs)
            calls.append(None)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGINT)
            return done

        monkeypatch.setattr(place, name, pressed)

    return prepare


def stopped(done, advice: str) -> None:
    assert done.returncode == 130, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("offmarl: stopped: ")
    assert advice in said
    assert "Traceback" not in done.stderr


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def collected(succeed):
    return succeed(COLLECT)


def test_collect_keeps_finished_episodes(home, offmarl, succeed, press, monkeypatch):
    with monkeypatch.context():
        press("offmarl.data.writer:Writer.append", call=2)
        stopped(offmarl(f"{COLLECT} --out {home}/stopped"), "the same command goes on from there")
    assert not (home / "stopped").exists()
    monkeypatch.undo()
    resumed = offmarl(f"{COLLECT} --out {home}/stopped")
    assert "resume the interrupted collection" in resumed.stderr
    again = succeed(f"{COLLECT} --out {home}/at-once")
    assert again["transitions"] == 500
    assert (home / "stopped" / "data.h5").read_bytes() == (home / "at-once" / "data.h5").read_bytes()


def test_decompose_leaves_nothing(collected, home, offmarl, press):
    before = files(home)
    press("offmarl.credit.base:Decomposer.report", call=3)
    stopped(offmarl("decompose --method additive --set credit.steps=20"), "starts anew")
    assert files(home) == before


def test_train_goes_on_with_resume(collected, offmarl, succeed, press, monkeypatch):
    whole = succeed(f"{TRAIN} --seed 1")
    press("offmarl.training.checkpoint:Checkpoint.save", call=2)
    stopped(offmarl(f"{TRAIN} --seed 1 --overwrite"), "--resume goes on from the last checkpoint")
    monkeypatch.undo()
    assert succeed(f"{TRAIN} --seed 1 --resume")["metrics"] == whole["metrics"]


def test_evaluate_leaves_no_scores(collected, home, offmarl, succeed, press):
    run = Path(succeed(f"{TRAIN} --seed 2")["folder"])
    before = files(home)
    press("offmarl.training.acting:LearnerPolicy.act", call=2)
    stopped(offmarl(f"evaluate --run {run} --episodes 4"), "keep their scores")
    assert files(home) == before


def test_an_import_leaves_nothing(collected, home, offmarl, succeed, press, tmp_path):
    succeed(f"data export --format d3rlpy --out {tmp_path}/buffers {DATASET}")
    before = files(home)
    press("offmarl.data.writer:Writer.append", call=1)
    name = "mpe_spread/imported-v0"
    stopped(offmarl(f"data import {tmp_path}/buffers --format d3rlpy --name {name}"), "starts anew")
    assert files(home) == before


@pytest.mark.parametrize("what", ["--html {folder}/page.html", "--markdown {folder}/tables.md"])
def test_report_leaves_no_half_page(collected, offmarl, succeed, press, tmp_path, what):
    run = succeed(f"{TRAIN} --seed 3 --overwrite")["run"]
    succeed(f"evaluate --run {run} --episodes 3")
    press("offmarl.atomic:os.fsync", call=1)  # the page is written, but not yet under its name
    stopped(
        offmarl(f"report {run} {what.format(folder=tmp_path)}"), "the same command writes all of them anew"
    )
    assert files(tmp_path) == set()


def test_a_process_that_is_stopped_ends_quietly(tmp_path):
    """The signal as a terminal sends it, to a process that is busy for long."""
    command = "collect --env mpe_spread --quality random --num-envs 10 --steps 100000000"
    process = subprocess.Popen(
        [Path(sys.executable).parent / "offmarl", *command.split(), "--out", tmp_path / "data"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OFFMARL_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("data.partial/parts/*.h5")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()  # one that did not hear would go on for hours
    assert process.returncode == 130
    assert out == ""
    assert error.splitlines()[-1] == (
        "offmarl: stopped: finished episodes are kept, and the same command goes on from there"
    )
    assert "Traceback" not in error
