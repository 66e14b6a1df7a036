"""The commands as a person types them, on data so small that a run takes seconds."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DATASET = "mpe_targets/expert-agents-2-free-riders-1-v0"
COLLECT = (
    "collect --env mpe_targets --set env.agents=2 --free-riders 1 --steps 3000 --num-envs 40 "
    "--set behaviour.steps=300 --set behaviour.warm_up=50 --set behaviour.num_envs=32 --name " + DATASET
)
FAST_CREDIT = "--set credit.structure_steps=150 --set credit.refit_steps=80 --set credit.pruning_factors=[]"


def offmarl(command: str, home: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OFFMARL_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    executable = Path(sys.executable).parent / "offmarl"
    return subprocess.run(
        [str(executable), *shlex.split(command)], capture_output=True, text=True, env=environment, timeout=300
    )


def succeed(command: str, home: Path) -> dict:
    done = offmarl(command + " --json", home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def collected(home):
    return succeed(COLLECT, home)


@pytest.fixture(scope="module")
def decomposed(home, collected):
    return succeed(f"decompose {FAST_CREDIT}", home)


@pytest.fixture(scope="module")
def trained(home, decomposed):
    return succeed(
        "train --learner td3bc --rewards macca --steps 30 --seeds 2 --set train.batch_size=128", home
    )


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


def test_evaluate_takes_the_latest_run(trained, home):
    done = offmarl("evaluate --episodes 20 --json", home)
    assert done.returncode == 0, done.stderr
    assert "the latest" in done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert run["run"] == trained["run"]
    assert len(run["per_seed"]) == 2
    assert run["interval"]["over"] == "seeds"
    assert run["interval"]["low"] <= run["interval"]["mean"] <= run["interval"]["high"]


def test_evaluate_compares_all_runs_of_a_dataset_and_draws_them(trained, home, tmp_path):
    figure = tmp_path / "scores.png"
    done = offmarl(f"evaluate --dataset {DATASET} --episodes 10 --figure {figure}", home)
    assert done.returncode == 0, done.stderr
    assert "(behaviour)" in done.stdout
    assert "td3bc" in done.stdout
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_data_commands(collected, home):
    assert [entry["id"] for entry in succeed("data ls", home)["datasets"]] == [DATASET]
    assert succeed(f"data info {DATASET}", home)["episodes"] == collected["episodes"]
    assert succeed("data validate", home) == {"dataset": DATASET, "valid": True, "problems": []}


def test_envs_lists_every_task(home):
    listed = {entry["id"] for entry in succeed("envs", home)["envs"]}
    assert {
        "mpe_spread",
        "mpe_tag",
        "mpe_world",
        "mpe_spread_omar",
        "mpe_targets",
        "scm_a",
        "scm_nonlocal",
    } <= listed


def test_every_result_can_go_elsewhere(collected, home, tmp_path):
    succeed(f"collect --env scm_a --quality random --steps 500 --out {tmp_path}/data", home)
    report = succeed(f"decompose --dataset {tmp_path}/data --method mean --out {tmp_path}/credit", home)
    run = succeed(
        f"train --dataset {tmp_path}/data --learner bc --rewards {report['credit']} --steps 5 "
        f"--set train.batch_size=64 --out {tmp_path}/run",
        home,
    )
    assert Path(run["folder"]) == tmp_path / "run"
    scores = succeed(f"evaluate --run {tmp_path}/run --episodes 4 --out {tmp_path}/scores", home)
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
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(trained, home, command, message):
    before = sorted(home.rglob("*"))
    done = offmarl(command, home)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("offmarl: ")
    assert "Traceback" not in done.stderr
    assert sorted(home.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize(
    "command",
    [
        COLLECT,
        f"decompose {FAST_CREDIT}",
        "train --learner td3bc --rewards macca --steps 30 --seeds 2 --set train.batch_size=128",
    ],
)
def test_the_same_command_twice_refuses_and_names_the_flag(trained, home, command):
    done = offmarl(command, home)
    assert done.returncode in (1, 2)
    assert "--overwrite" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_edited_dataset_is_found_out(collected, home, tmp_path):
    import shutil

    copy = tmp_path / "edited"
    shutil.copytree(home / "datasets" / DATASET, copy)
    data = bytearray((copy / "data.h5").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (copy / "data.h5").write_bytes(data)
    done = offmarl(f"data validate {copy}", home)
    assert done.returncode == 1
    assert "sha256" in done.stdout + done.stderr

    (copy / "data.h5").write_bytes(bytes(data[: len(data) // 2]))
    done = offmarl(f"train --dataset {copy} --rewards mean --learner bc", home)
    assert done.returncode == 1
    assert "data.h5" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_policy_of_another_task_is_refused(trained, home):
    done = offmarl(f"collect --env mpe_spread --policy {trained['folder']}", home)
    assert done.returncode == 1
    assert "was trained on mpe_targets" in done.stderr
    assert not (home / "datasets" / "mpe_spread").exists()


def test_too_little_memory_is_one_line(home, tmp_path):
    folder = tmp_path / "wide"
    done = offmarl(f"collect --env mpe_spread --quality random --num-envs {10**12} --out {folder}", home)
    assert done.returncode == 1
    assert "memory does not suffice" in done.stderr
    assert "Traceback" not in done.stderr
    assert not folder.exists()
