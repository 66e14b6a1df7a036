"""The commands as a person types them, on data so small that a run takes seconds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from offmarl import cli

DATASET = "mpe_targets/expert-agents-2-free-riders-1-v0"
COLLECT = (
    "collect --env mpe_targets --set env.agents=2 --free-riders 1 --steps 3000 --num-envs 40 "
    "--set behaviour.steps=300 --set behaviour.warm_up=50 --set behaviour.num_envs=32 --name " + DATASET
)
FAST_CREDIT = "--set credit.structure_steps=150 --set credit.refit_steps=80 --set credit.pruning_factors=[]"


@pytest.fixture(scope="module")
def collected(succeed):
    return succeed(COLLECT)


@pytest.fixture(scope="module")
def decomposed(collected, succeed):
    return succeed(f"decompose {FAST_CREDIT}")


@pytest.fixture(scope="module")
def trained(decomposed, succeed):
    return succeed("train --learner td3bc --rewards macca --steps 30 --seeds 2 --set train.batch_size=128")


def test_collect_tells_what_it_made(collected, home):
    assert collected["id"] == DATASET
    assert collected["transitions"] == 3_000
    assert collected["references"]["expert"] > collected["references"]["random"]
    assert (home / "datasets" / DATASET / "data.h5").exists()


def test_decompose_answers_in_the_documented_form(decomposed):
    assert {"credit", "fit_r2", "fallback", "truth", "seconds"} <= decomposed.keys()
    assert decomposed["truth"].keys() == {"pearson", "r2", "skill", "hijack", "f1"}


def test_the_commands_come_up_without_the_heavy_libraries():
    code = "import sys, offmarl.cli; print([m for m in ('torch', 'h5py', 'matplotlib', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_python_runs_the_package_as_well():
    asked = [sys.executable, "-m", "offmarl", "train", "--learner"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "requires an argument" in done.stderr


def test_evaluate_takes_the_latest_run(trained, offmarl):
    done = offmarl("evaluate --episodes 20 --json")
    assert done.returncode == 0, done.stderr
    assert "the latest" in done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert run["run"] == trained["run"]
    assert len(run["per_seed"]) == 2
    assert run["interval"]["over"] == "seeds"
    assert run["interval"]["low"] <= run["interval"]["mean"] <= run["interval"]["high"]


def test_evaluate_compares_all_runs_of_a_dataset_and_draws_them(trained, tmp_path, offmarl):
    figure = tmp_path / "scores.png"
    done = offmarl(f"evaluate --dataset {DATASET} --episodes 10 --figure {figure}")
    assert done.returncode == 0, done.stderr
    assert "(behaviour)" in done.stdout
    assert "td3bc" in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_data_commands(collected, succeed):
    assert [entry["id"] for entry in succeed("data ls")["datasets"]] == [DATASET]
    assert succeed(f"data info {DATASET}")["episodes"] == collected["episodes"]
    assert succeed("data validate") == {"dataset": DATASET, "valid": True, "problems": []}


def test_commands_say_how_another_dataset_is_chosen(collected, offmarl, tmp_path):
    for command in ("info", "validate", f"export --format minari --out {tmp_path / 'theirs'}"):
        done = offmarl(f"data {command}")
        assert done.returncode == 0, done.stderr
        assert f"dataset: {DATASET} (the latest; name another to choose it)" in done.stderr
    assert "choose another with --dataset" in offmarl("train --rewards mean --learner nope").stderr


def test_a_terminal_of_ascii(collected, home):
    asked = [sys.executable, "-m", "offmarl", "data", "info"]
    ascii_only = {**os.environ, "OFFMARL_HOME": str(home), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, env=ascii_only)
    assert (done.returncode, " ? " in done.stdout) == (0, True), done.stderr


def test_a_folder_that_was_removed(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "offmarl: the current folder does not exist any more: cd to another\n"


def test_envs_lists_every_task(succeed):
    listed = {entry["id"] for entry in succeed("envs")["envs"]}
    assert {
        "mpe_spread",
        "mpe_tag",
        "mpe_world",
        "mpe_spread_omar",
        "mpe_targets",
        "scm_a",
        "scm_nonlocal",
    } <= listed


def test_every_result_can_go_elsewhere(collected, home, tmp_path, succeed):
    succeed(f"collect --env scm_a --quality random --steps 500 --out {tmp_path}/data")
    report = succeed(f"decompose --dataset {tmp_path}/data --method mean --out {tmp_path}/credit")
    run = succeed(
        f"train --dataset {tmp_path}/data --learner bc --rewards {report['credit']} --steps 5 "
        f"--set train.batch_size=64 --out {tmp_path}/run"
    )
    assert Path(run["folder"]) == tmp_path / "run"
    scores = succeed(f"evaluate --run {tmp_path}/run --episodes 4 --out {tmp_path}/scores")
    assert scores["runs"][0]["learner"] == "bc"
    assert len(list((tmp_path / "scores").glob("*.json"))) == 1
    assert not (home / "runs" / "scm_a").exists()
    assert not (home / "datasets" / "scm_a").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("collect --env mpe_spred", "did you mean mpe_spread"),
        ("collect --env mpe_spread --quality expart", "did you mean expert"),
        ("collect --env mpe_spread --set env.agent=4", "did you mean agents"),
        ("collect --env mpe_spread --set behaviour.nose=1", "did you mean noise"),
        ("collect --env mpe_spread --backend petingzoo", "did you mean pettingzoo"),
        ("collect --env mpe_targets --quality random --free-riders 9", "--free-riders 9: expected 1 to 8"),
        ("collect --env mpe_spread --quality random --name nonsense", "namespace/name-vN"),
        ("decompose --dataset mpe_targets/expart-v0", "unknown dataset"),
        (f"decompose --dataset {DATASET} --method maca", "did you mean macca"),
        (f"decompose --dataset {DATASET} --set credit.lamda=1", "unknown setting of credit"),
        (f"train --dataset {DATASET} --learner cqql", "did you mean cql"),
        (f"train --dataset {DATASET} --rewards maca", "macca"),
        (f"train --dataset {DATASET} --rewards mean --set learner.alhpa=1", "did you mean alpha"),
        (f"train --dataset {DATASET} --rewards mean --set learner.alpha=-1", "learner.alpha"),
        (f"train --dataset {DATASET} --rewards mean --set train.batch_size=1000000", "larger than the data"),
        ("evaluate --run nothing/here", "unknown run"),
        ("train --device tpu9", "--device tpu9"),
        ("train --device meta", "--device meta: not usable here"),
        (f"decompose --dataset {DATASET} --method :", "expected module:Class"),
        ("collect --env mpe_spread --set env.agents=2020-13-45", "month must be in 1..12"),
        ("data download --name a/b-v0", "--name needs NAME"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(trained, home, command, message, offmarl):
    before = sorted(home.rglob("*"))
    done = offmarl(command)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("offmarl: ")
    assert sorted(home.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize(
    "command",
    [
        COLLECT,
        f"decompose {FAST_CREDIT}",
        "train --learner td3bc --rewards macca --steps 30 --seeds 2 --set train.batch_size=128",
    ],
)
def test_the_same_command_twice_refuses_and_names_the_flag(trained, command, offmarl):
    done = offmarl(command)
    assert done.returncode in (1, 2)
    assert "--overwrite" in done.stderr


def test_an_edited_dataset_is_found_out(collected, home, tmp_path, offmarl):
    copy = tmp_path / "edited"
    shutil.copytree(home / "datasets" / DATASET, copy)
    data = bytearray((copy / "data.h5").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (copy / "data.h5").write_bytes(data)
    done = offmarl(f"data validate {copy}")
    assert done.returncode == 1
    assert "sha256" in done.stdout + done.stderr

    (copy / "data.h5").write_bytes(bytes(data[: len(data) // 2]))
    done = offmarl(f"train --dataset {copy} --rewards mean --learner bc")
    assert done.returncode == 1
    assert "data.h5" in done.stderr


def test_a_policy_of_another_task_is_refused(trained, home, offmarl):
    done = offmarl(f"collect --env mpe_spread --policy {trained['folder']}")
    assert done.returncode == 1
    assert "was trained on mpe_targets" in done.stderr
    assert not (home / "datasets" / "mpe_spread").exists()


def test_too_little_memory_is_one_line(tmp_path, offmarl):
    folder = tmp_path / "wide"
    done = offmarl(f"collect --env mpe_spread --quality random --num-envs {10**12} --out {folder}")
    assert done.returncode == 1
    assert "memory does not suffice" in done.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.28 TiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_every_library_that_runs_out_of_memory_is_understood(error, monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", Mock(side_effect=error))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert "memory does not suffice" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("cannot allocate 3 agents to 2 groups"), RuntimeError("a bug")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(error, monkeypatch):
    monkeypatch.setattr(cli, "app", Mock(side_effect=error))
    with pytest.raises(type(error)) as raised:
        cli.main()
    assert raised.value is error
