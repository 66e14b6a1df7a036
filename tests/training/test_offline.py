"""From a dataset on disk to a run that acts, and what is refused on the way."""

import json
import shutil

import pytest
import torch

from offmarl.atomic import only_one
from offmarl.behaviour.random import RandomPolicy
from offmarl.data.collect import collect
from offmarl.data.store import Dataset
from offmarl.data.writer import Writer
from offmarl.envs.registry import make
from offmarl.errors import DataError, UsageError
from offmarl.training import offline
from offmarl.training.offline import TrainRequest, _run_id, train_offline
from offmarl.training.run import RunFolder, find_run, load_policy

FAST = {"steps": 4, "batch_size": 32, "log_every": 2, "checkpoint_every": 2, "tensorboard": False}


@pytest.fixture(scope="module")
def folder(random_dataset):
    return random_dataset("mpe_tag", 200, 8)


@pytest.fixture
def dataset(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path))
    return Dataset.open(folder)


def request(**values):
    usual = {"learner": "bc", "rewards": "team", "train_settings": FAST}
    return TrainRequest(**{**usual, **values})


def test_a_run_says_where_it_came_from_and_can_act(dataset):
    run = train_offline(
        dataset, request(learner="td3bc", rewards="mean", seeds=(0, 1), command="offmarl train")
    )
    assert run.status == "complete"
    assert run.id.startswith("mpe_tag/random-v0/td3bc-mean-s0-1-")
    record = json.loads((run.folder / "run.json").read_text())
    assert record["dataset"]["sha256"] == dataset.card.sha256
    assert record["learner_config"]["bc_weight"] == 5.0  # resolved, not only what was asked for
    assert record["train_config"]["steps"] == 4
    assert record["command"] == "offmarl train"
    policy = load_policy(find_run())
    with make(policy.spec.id, 4, backend=policy.spec.backend, options=policy.spec.options) as env:
        step = env.step(policy.act(env.reset(0), torch.Generator()))
    assert step.team_reward.isfinite().all()


def test_the_rewards_asked_for_are_the_ones_taught(dataset):
    means = {}
    for rewards in ("team", "mean"):
        run = train_offline(dataset, request(learner="td3bc", rewards=rewards))
        means[rewards] = load_policy(run).learner.tensors()["normaliser.reward_mean"]
    torch.testing.assert_close(means["team"], means["mean"] * dataset.spec.n_agents)


def test_only_settings_that_differ_change_the_id(dataset):
    default = train_offline(dataset, request(train_settings={**FAST, "steps": 2}))
    assert default.id != "mpe_tag/random-v0/bc-team-s0"
    same = train_offline(
        dataset,
        request(train_settings={**FAST, "steps": 2}, learner_settings={"agent_id": False}, overwrite=True),
    )
    assert same.id == default.id
    other = train_offline(
        dataset, request(train_settings={**FAST, "steps": 2}, learner_settings={"agent_id": True})
    )
    assert other.id != default.id


def test_runs_of_many_settings_do_not_share_a_folder(dataset):
    ids = {
        _run_id("data", request(), {"BCConfig.learning_rate": number / 100_000}) for number in range(1, 2_000)
    }
    assert len(ids) == 1_999


def test_a_run_that_exists_is_refused_resumed_or_replaced(dataset):
    first = train_offline(dataset, request())
    with pytest.raises(UsageError, match="already complete: --overwrite"):
        train_offline(dataset, request())
    assert train_offline(dataset, request(resume=True)).record == first.record
    first.update(status="running")
    with pytest.raises(UsageError, match="--resume continues it"):
        train_offline(dataset, request())
    assert train_offline(dataset, request(resume=True)).status == "complete"
    first.update(status="running", rewards="mean")
    with pytest.raises(UsageError, match="started with rewards mean, not team"):
        train_offline(dataset, request(resume=True))
    longer = request(resume=True, train_settings={**FAST, "steps": 6}, out=first.folder, rewards="mean")
    with pytest.raises(UsageError, match=r"started with train_config {'steps': 4}, not {'steps': 6}:"):
        train_offline(dataset, longer)
    assert train_offline(dataset, request(overwrite=True)).record["rewards"] == "team"
    with pytest.raises(UsageError, match="give one of the two"):
        train_offline(dataset, request(overwrite=True, resume=True))


def test_a_second_process_on_a_run_is_refused(dataset, tmp_path):
    folder = tmp_path / "run"
    run = train_offline(dataset, request(out=folder))
    with only_one(folder, "ours"):
        for asked in ({"overwrite": True}, {"resume": True}):
            run.update(status="running")
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            with pytest.raises(UsageError, match="another process is training in"):
                train_offline(dataset, request(out=folder, **asked))
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        RunFolder.create(folder, run.record, overwrite=True)
        with pytest.raises(UsageError, match="theirs"), only_one(folder, "theirs"):
            pass
    assert train_offline(dataset, request(out=folder, overwrite=True)).status == "complete"


def test_a_place_that_is_no_runs_is_refused_before_data_are_read(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "require_valid", None)
    foreign, file = tmp_path / "foreign", tmp_path / "file"
    foreign.mkdir()
    for note in (foreign / "note", file):
        note.write_text("mine")
    for asked in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="foreign holds files that are no run: choose another folder"):
            train_offline(dataset, request(out=foreign, **asked))
        with pytest.raises(UsageError, match="file is a file: choose a folder for the run"):
            train_offline(dataset, request(out=file, **asked))
    assert (foreign / "note").read_text() == file.read_text() == "mine"


def test_wrong_requests_write_nothing(dataset, tmp_path):
    for wrong, message in (
        ({"learner": "td3"}, "did you mean td3bc"),
        ({"rewards": "maca"}, "maca"),
        ({"learner_settings": {"learning_rte": 1}}, "did you mean learning_rate"),
        ({"learner_settings": {"learning_rate": -1}}, "learning_rate=-1"),
        ({"learner_settings": {"learning_rate": 1e39}}, "learning_rate=1e.39"),
        ({"learner_settings": {"hidden": [100_000_000]}}, "learner.hidden.0=100000000"),
        ({"learner": "omar", "learner_settings": {"first_mean": -2}}, "learner.first_mean=-2"),
        ({"train_settings": {"step": 3}}, "did you mean steps"),
        ({"train_settings": {"batch_size": 10_000}}, "larger than the data"),
        ({"seeds": (1, 1)}, "each once"),
    ):
        with pytest.raises(UsageError, match=message):
            train_offline(dataset, request(out=tmp_path / "run", **wrong))
        assert not (tmp_path / "run").exists(), wrong


def test_damaged_data_is_named_and_nothing_is_written(dataset, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    data = bytearray((copy / "data.h5").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (copy / "data.h5").write_bytes(data)
    with pytest.raises(DataError, match="changed after it was written"):
        train_offline(Dataset.open(copy), request(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_unfinished_collection_is_no_training_data(tmp_path):
    with make("mpe_tag", 4) as env:
        writer = Writer(tmp_path / "open-v0", env.spec, id="mpe_tag/open-v0")
        with pytest.raises(ZeroDivisionError), writer:
            collect(env, RandomPolicy(env.spec), writer, 100, 0, progress=lambda done, total: 1 // 0)
    with pytest.raises(DataError, match="is not finished"):
        train_offline(Dataset.open(tmp_path / "open-v0.partial"), request(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
