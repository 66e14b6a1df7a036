"""Processes that do the work: those that die, and a bench that is killed with them."""

import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from tiny_recipes import CREDIT, Inline, recipe

from offmarl.data.schema import check_id
from offmarl.recipes.bench import read_results, run_bench
from offmarl.recipes.engine import Finished, ProcessEngine


def test_processes_do_the_work_and_one_that_dies_fails_only_its_own_job():
    engine = ProcessEngine(2)
    work = {
        "root": partial(math.sqrt, 9),
        "bug": partial(int, "x"),
        "message": partial(check_id, "NOT AN ID"),
        "exit": partial(os._exit, 3),
        "threads": partial(torch.get_num_threads),
    }
    ended: dict[str, Finished] = {}
    waiting = list(work.items())
    try:
        while len(ended) < len(work):
            while waiting and len(work) - len(waiting) - len(ended) < engine.slots:
                engine.submit(*waiting.pop(0))
            ended |= {finished.key: finished for finished in engine.wait()}
    finally:
        engine.close()
    assert ended["root"].value == 3
    assert ended["bug"].error.startswith("ValueError: invalid literal")
    assert "Traceback" in ended["bug"].traceback
    assert "NOT AN ID" in ended["message"].error
    assert ended["message"].traceback is None
    assert ended["exit"].error == "its process died with exit code 3"
    assert ended["threads"].value == 1


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_a_killed_bench_leaves_no_process_and_goes_on_to_the_same_numbers(tmp_path):
    plan = recipe(CREDIT, seeds=10)
    file, out, only = tmp_path / "tiny.yaml", tmp_path / "out", ["method=mean"]
    file.write_text(yaml.safe_dump({**CREDIT, "seeds": 10}))
    executable = Path(sys.executable).parent / "offmarl"
    command = [str(executable), "bench", str(file), "--out", str(out), "--jobs", "1", "--only", *only]
    environment = {**os.environ, "OFFMARL_HOME": str(tmp_path / "home"), "COLUMNS": "120"}
    deadline = time.monotonic() + 120
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while len(list(out.glob("cells/[!.]*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = children(process.pid)
        assert workers
        process.kill()
    kept = {path.name: path.read_bytes() for path in out.glob("cells/[!.]*.json")}
    assert 2 <= len(kept) < 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    table = tmp_path / "table.md"
    done = subprocess.run(
        [*command, "--table", str(table)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "20 of 20 cells are measured" in done.stdout
    assert "| scm_a | 500 | 0.00 | 10 |" in table.read_text()
    assert all((out / "cells" / name).read_bytes() == content for name, content in kept.items())
    whole = run_bench(plan, tmp_path / "whole", Inline(), only)
    for ours, theirs in zip(read_results(plan, out, only).results, whole.results, strict=True):
        assert ours.values["pearson"] == pytest.approx(theirs.values["pearson"], rel=1e-6)
