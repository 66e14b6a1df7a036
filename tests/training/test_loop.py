"""The loop: resuming, stopping, logging. And runs as policies."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from walk import SPEC, VALUES, config, new_run, record, run_training, table

from offmarl.envs.base import Frame
from offmarl.errors import DataError, OffmarlError, UsageError
from offmarl.learners.base import Learner
from offmarl.learners.registry import make_learner
from offmarl.native.library import library, rounds
from offmarl.training.checkpoint import Checkpoint
from offmarl.training.logging import read_metrics
from offmarl.training.loop import AlongTheWay, train
from offmarl.training.run import RunFolder, find_run, list_runs, load_policy, seeds_text


def same_run(one: RunFolder, other: RunFolder) -> None:
    first, second = load_file(one.checkpoint_path), load_file(other.checkpoint_path)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert read_metrics(one.metrics_path) == read_metrics(other.metrics_path)


@pytest.mark.parametrize("learner", ["td3bc", "cql", "bc"])
def test_an_interrupted_run_resumes_to_the_same_numbers(tmp_path, learner):
    def interrupt(done: int, total: int) -> None:
        if done == 27:
            raise KeyboardInterrupt

    whole = new_run(tmp_path / "whole")
    run_training(whole, learner=learner)
    broken = new_run(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        run_training(broken, progress=interrupt, learner=learner)
    assert Checkpoint.load(broken.checkpoint_path).step == 20
    assert broken.status == "running"
    assert RunFolder.open(broken.folder).record["steps"] == 20
    with open(broken.metrics_path, "a") as file:
        file.write('{"step": 30, "cri')  # a line cut short
    resumed = RunFolder.open(broken.folder)
    run_training(resumed, resume=True, learner=learner)
    assert resumed.status == "complete"
    assert resumed.summary == whole.summary
    assert [line["step"] for line in read_metrics(resumed.metrics_path)] == list(range(5, 41, 5))
    same_run(whole, resumed)


@pytest.mark.parametrize("damage", [b"1\n", b"{}\n", b"\xff\xfe", b'{"step": "40"}\n'])
def test_metrics_that_are_damaged_do_not_keep_a_run_from_going_on(tmp_path, damage):
    run = new_run(tmp_path / "run")
    run_training(run, steps=20)
    run.update(status="running")
    run.metrics_path.write_bytes(run.metrics_path.read_bytes() + damage)
    run_training(run, resume=True)
    assert [line["step"] for line in read_metrics(run.metrics_path)] == list(range(5, 41, 5))


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
torch.set_num_threads(1)
import walk
run = walk.RunFolder.open(Path(sys.argv[1]))
walk.run_training(run, progress=lambda done, total: time.sleep(0.02 if done > 12 else 0))
"""


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    whole, killed = new_run(tmp_path / "whole"), new_run(tmp_path / "killed")
    run_training(whole)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(killed.folder), str(Path(__file__).parent)])
    deadline = time.monotonic() + 60
    while not killed.checkpoint_path.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert 10 <= Checkpoint.load(killed.checkpoint_path).step < 40
    killed = RunFolder.open(killed.folder)
    assert killed.status == "running"
    run_training(killed, resume=True)
    same_run(whole, killed)


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    run = new_run(tmp_path / "run")
    learner = make_learner("td3bc", SPEC, VALUES, [0, 1])

    def poison(done: int, total: int) -> None:
        if done == 23:
            learner.critic.flat[0, 0] = float("nan")

    with pytest.raises(
        OffmarlError, match=r"diverged by step 25.*step 20 is kept.*learning_rate \(now 0.003\)"
    ):
        train(learner, table(), config(), run, progress=poison)
    assert Checkpoint.load(run.checkpoint_path).step == 20
    assert all(torch.isfinite(tensor.float()).all() for tensor in load_file(run.checkpoint_path).values())
    assert RunFolder.open(run.folder).status == "failed"
    assert RunFolder.open(run.folder).record["steps"] == 20, "what scores of the checkpoint are compared with"


def test_metrics_hold_every_seed_and_their_mean(tmp_path):
    run = new_run(tmp_path / "run")
    run_training(run)
    lines = read_metrics(run.metrics_path)
    assert {"step", "critic_loss", "policy_loss", "saturation"} <= lines[0].keys()
    assert len(lines[0]["critic_loss"]["seeds"]) == 2
    assert lines[0]["critic_loss"]["mean"] == pytest.approx(sum(lines[0]["critic_loss"]["seeds"]) / 2)
    assert run.summary["critic_loss"] == pytest.approx(lines[-1]["critic_loss"]["mean"])


def test_tensorboard_gets_the_same_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = new_run(tmp_path / "run")
    run_training(run, tensorboard=True)
    board = EventAccumulator(str(run.folder / "tensorboard"))
    board.Reload()
    points = {event.step: event.value for event in board.Scalars("critic_loss")}
    expected = {line["step"]: line["critic_loss"]["mean"] for line in read_metrics(run.metrics_path)}
    assert points == pytest.approx(expected)


def test_settings_of_the_loop_are_checked():
    with pytest.raises(UsageError, match=r"checkpoint_every=12 is no multiple of train\.log_every=5"):
        config(checkpoint_every=12).check()
    with pytest.raises(UsageError, match="did you mean steps"):
        config(step=3)
    with pytest.raises(UsageError, match=r"train\.matmul_precision='half'"):
        config(matmul_precision="half")
    with pytest.raises(UsageError, match="nothing compiled runs the networks"):
        config(matmul_precision="bfloat16", kernels="torch").check()
    with pytest.raises(UsageError, match="bfloat16 is for CPUs"):
        config(matmul_precision="bfloat16").check("cuda")


@pytest.mark.skipif(not getattr(library(), "bfloat16", False), reason="no bfloat16 units here")
def test_bfloat16_trains_nearly_the_same_and_scores_are_of_the_policy_as_it_will_act(tmp_path):
    rounding = []

    def measure(learner: Learner) -> dict[str, list[float]]:
        rounding.append(rounds())
        return {}

    q = {}
    for precision in ("auto", "bfloat16"):
        run = new_run(tmp_path / precision)
        learner = make_learner("cql", SPEC, {"hidden": [32, 32]}, [0, 1])
        loop = config(steps=10, matmul_precision=precision)
        train(learner, table(), loop, run, along=AlongTheWay(10, measure))
        q[precision] = run.summary["q_mean"]
    assert rounding == [False, False]
    assert RunFolder.open(run.folder).record["matmul_precision"] == "bfloat16"
    assert q["bfloat16"] != q["auto"]
    assert q["bfloat16"] == pytest.approx(q["auto"], rel=0.05, abs=1e-3)


def test_a_run_acts_for_all_its_seeds_without_the_dataset(tmp_path):
    run = new_run(tmp_path / "run")
    run_training(run)
    policy = load_policy(run)
    assert (policy.n_seeds, policy.steps, policy.spec) == (2, 40, SPEC)
    obs = torch.randn(6, 2, 2)
    action = policy.act(Frame(obs), torch.Generator())
    assert action.shape == (6, 2, 1)
    trained = make_learner("td3bc", SPEC, VALUES, [0, 1])
    trained.load_state_dict(Checkpoint.load(run.checkpoint_path).learner)
    assert (trained.obs_mean != 0).all()
    torch.testing.assert_close(action[:3], trained.act(obs[:3].expand(2, 3, 2, 2))[0])
    torch.testing.assert_close(action[3:], trained.act(obs[3:].expand(2, 3, 2, 2))[1])
    with pytest.raises(UsageError, match="5 copies"):
        policy.act(Frame(torch.randn(5, 2, 2)), torch.Generator())


def test_settings_that_only_an_update_refuses_leave_a_failed_run(tmp_path):
    run = new_run(tmp_path / "run")
    learner = make_learner("td3bc", SPEC, VALUES, [0, 1])

    def refuse(batch):
        raise UsageError("the package refuses it")

    learner.update = refuse
    with pytest.raises(UsageError, match="the package refuses it"):
        train(learner, table(), config(), run)
    failed = RunFolder.open(run.folder)
    assert (failed.status, failed.record["error"]) == ("failed", "the package refuses it")


def test_divergence_names_what_was_chosen_too(tmp_path):
    run = new_run(tmp_path / "run")
    learner = make_learner("td3bc", SPEC, VALUES | {"bc_weight": 1e29, "gamma": 0.5}, [0, 1])

    def poison(done: int, total: int) -> None:
        if done == 3:
            learner.critic.flat[0, 0] = float("nan")

    with pytest.raises(
        OffmarlError, match=r"gamma \(now 0\.5\).*instead of a default: .*learner\.bc_weight=1e\+29"
    ):
        train(learner, table(), config(), run, progress=poison)


def test_damaged_runs_are_refused_by_name(tmp_path):
    run = new_run(tmp_path / "run")
    with pytest.raises(DataError, match="no checkpoint"):
        load_policy(run)
    run_training(run)
    good, good_record = run.checkpoint_path.read_bytes(), run.record
    run.checkpoint_path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match="cannot be read as a checkpoint"):
        load_policy(run)
    save_file({"x": torch.zeros(1)}, str(run.checkpoint_path))
    with pytest.raises(DataError, match="no training checkpoint"):
        load_policy(run)
    run.checkpoint_path.write_bytes(good)
    tensors = load_file(run.checkpoint_path)
    for metadata, message in (
        ({"step": "x", "metrics": "{}"}, "its step or its metrics cannot be read"),
        ({"step": "4", "metrics": "{bad"}, "its step or its metrics cannot be read"),
        ({"metrics": "{}"}, "its step or its metrics cannot be read"),
    ):
        save_file(tensors, str(run.checkpoint_path), {"format": "offmarl run 1", **metadata})
        with pytest.raises(DataError, match=message):
            load_policy(run)
    whole = {"format": "offmarl run 1", "step": "4", "metrics": "{}"}
    save_file(tensors | {"sampling": tensors["sampling"].float()}, str(run.checkpoint_path), whole)
    with pytest.raises(DataError, match=r"'sampling' holds torch\.float32, not bytes"):
        load_policy(run)
    save_file(tensors | {"sampling": tensors["sampling"][:, :9].clone()}, str(run.checkpoint_path), whole)
    with pytest.raises(DataError, match="does not hold what drew the batches of 2 seeds"):
        run_training(run, resume=True)
    run.checkpoint_path.write_bytes(good)
    run.update(learner_config={"hidden": [8, 9]})
    with pytest.raises(DataError, match=r"checkpoint\.safetensors: tensor 'policy\.1\.weight' has shape"):
        load_policy(run)
    run.update(learner_config={"hiden": [8, 9]})
    with pytest.raises(DataError, match="did you mean hidden"):
        load_policy(run)
    run.update(env={"id": "walk"})
    with pytest.raises(DataError, match="'env' is damaged"):
        load_policy(run)
    (run.folder / "run.json").write_text('{"id": "x"}')
    with pytest.raises(DataError, match="it has no field 'created'"):
        RunFolder.open(run.folder)
    (run.folder / "run.json").write_text("{")
    with pytest.raises(DataError, match="JSON"):
        RunFolder.open(run.folder)
    for name, wrong in (("created", 5), ("dataset", {}), ("seeds", []), ("seeds", "0")):
        run.update(**{name: wrong})
        with pytest.raises(DataError, match=f"no record of a run: .*{name}"):
            RunFolder.open(run.folder)
        run.update(**{name: good_record[name]})
    RunFolder.open(run.folder)


def test_a_run_is_not_replaced_unasked(tmp_path):
    run = new_run(tmp_path / "run")
    with pytest.raises(UsageError, match="not complete: --resume continues it"):
        new_run(tmp_path / "run")
    run.update(status="complete")
    with pytest.raises(UsageError, match="already complete: --overwrite"):
        new_run(tmp_path / "run")
    RunFolder.create(run.folder, record(), overwrite=True)
    other = tmp_path / "papers"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no run"):
        RunFolder.create(other, record(), overwrite=True)
    assert (other / "thesis.tex").exists()


def test_runs_are_found_by_id_path_or_age(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="no run"):
        find_run()
    for name in ("walk/test-v0/bc-team-s0", "walk/test-v0/cql-team-s0"):
        run_training(new_run(tmp_path / "runs" / name, name=name, seeds=(0,)), steps=5)
    new_run(tmp_path / "runs/walk/test-v0/later", name="walk/test-v0/later")  # nothing trained yet
    assert [run.id.rsplit("/", 1)[1] for run in list_runs()] == ["bc-team-s0", "cql-team-s0", "later"]
    assert find_run().id == "walk/test-v0/cql-team-s0"
    assert (
        find_run("walk/test-v0/bc-team-s0").folder
        == find_run(tmp_path / "runs/walk/test-v0/bc-team-s0").folder
    )
    with pytest.raises(UsageError, match="did you mean walk/test-v0/cql-team-s0"):
        find_run("walk/test-v0/cql-team-s1")


def test_seeds_are_short_to_read():
    assert [seeds_text(seeds) for seeds in ([3], [0, 1, 2], [4, 1])] == ["3", "0-2", "4+1"]


def test_json_stays_json(tmp_path):
    run = new_run(tmp_path / "run")
    run_training(run, steps=5)
    assert json.loads((run.folder / "run.json").read_text())["steps"] == 5
