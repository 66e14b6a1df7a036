"""What `train` refuses in one line before any work, and how it stops when values leave the data's scale."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from walk import SPEC, VALUES, config, new_run, table

from offmarl.data import validate
from offmarl.data.store import Dataset
from offmarl.data.writer import Writer
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError, OffmarlError, UsageError
from offmarl.learners.registry import make_learner
from offmarl.settings import configure
from offmarl.streams import stream
from offmarl.training import offline
from offmarl.training.checkpoint import Checkpoint
from offmarl.training.loop import TrainConfig, train
from offmarl.training.offline import TrainRequest, train_offline
from offmarl.training.run import RunFolder

FAST = {"steps": 4, "batch_size": 16, "log_every": 2, "checkpoint_every": 2, "tensorboard": False}


def written(folder, discrete, state=()):
    """A dataset without individual rewards."""
    spec = EnvSpec(
        id="walk",
        agents=("red", "blue"),
        groups=(("red", "blue"),),
        action_type="discrete" if discrete else "continuous",
        obs_names=(("x", "y"),) * 2,
        action_names=(("a", "b"),) * 2,
        state_names=state,
        horizon=10,
        has_agent_reward=False,
    )
    g = stream(0, "walk")
    with Writer(folder, spec, id="walk/test-v0") as writer:
        for _ in range(5):
            action = torch.rand(11, 2, 2, generator=g) * 2 - 1
            if discrete:
                action = torch.randint(2, (11, 2), generator=g)
            reward = torch.randn(11, generator=g)
            action[-1] = reward[-1] = 0
            truncated = torch.zeros(11, dtype=torch.uint8)
            truncated[-2] = 1
            arrays = {
                "obs": torch.randn(11, 2, 2, generator=g),
                "action": action,
                "team_reward": reward,
                "terminated": torch.zeros(11, dtype=torch.uint8),
                "truncated": truncated,
            }
            writer.append({name: array.numpy() for name, array in arrays.items()}, lengths=[11])
    return Dataset.open(folder)


@pytest.fixture
def no_work(monkeypatch):
    """Reading the data fails the test."""

    def read(*_):
        raise AssertionError("work was done before the refusal")

    for name in ("require_valid", "load_transitions", "rewards_for"):
        monkeypatch.setattr(offline, name, read)
    monkeypatch.setattr(validate, "validate", read)


@pytest.mark.parametrize(
    ("discrete", "values", "message"),
    [
        (
            True,
            {"learner": "td3bc"},
            "'td3bc' has no discrete actions, which this dataset has; those that do: bc",
        ),
        (False, {"rewards": "true"}, "does not say what each agent truly earned.*offers: team, mean"),
        (False, {"rewards": "macca"}, "has no credit 'macca'; it offers: team, mean. Make one with"),
        (False, {"rewards": "nowhere/credit.h5"}, "no credit file nowhere/credit.h5"),
        (
            False,
            {"train_settings": {**FAST, "batch_size": 51}},
            "batch_size=51 is larger than the data.*has 50",
        ),
        (False, {"train_settings": {**FAST, "q_limit": 0}}, "train.q_limit=0"),
        (
            False,
            {"learner": "cql", "train_settings": {**FAST, "batch_size": 1}},
            "train.batch_size=1: cql needs at least 2",
        ),
    ],
)
def test_bad_requests_are_refused_before_any_work(tmp_path, no_work, discrete, values, message):
    dataset = written(tmp_path / "data", discrete)
    usual = {"learner": "bc", "rewards": "team", "train_settings": FAST, "out": tmp_path / "run"}
    with pytest.raises(UsageError, match=message) as caught:
        train_offline(dataset, TrainRequest(**{**usual, **values}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("discrete", "learner", "settings", "message"),
    [
        (True, "qmix_cql", {}, "does not record the state of walk, on which a mixer depends: take a learner"),
        (True, "icq", {}, "does not record the state of walk"),
        (False, "icq", {"mixer": True}, "set learner.critic_sees_state=false"),
        (False, "cql", {"critic_sees_state": True}, "set learner.critic_sees_state=false"),
    ],
)
def test_data_without_the_state_that_a_learner_sees_is_refused(
    tmp_path, no_work, discrete, learner, settings, message
):
    dataset = written(tmp_path / "data", discrete, state=("s",))
    with pytest.raises(DataError, match=message):
        train_offline(
            dataset,
            TrainRequest(
                learner,
                "team",
                learner_settings=settings,
                train_settings={**FAST, "batch_size": 4},
                out=tmp_path / "run",
            ),
        )
    assert not (tmp_path / "run").exists()


def test_a_learner_of_d3rlpy_is_refused_for_the_other_kind_of_action(tmp_path, no_work):
    pytest.importorskip("d3rlpy")
    dataset = written(tmp_path / "data", discrete=True)
    with pytest.raises(
        UsageError, match=r"'d3rlpy:iql' has no discrete actions.*d3rlpy:cql, d3rlpy:double_dqn"
    ):
        train_offline(dataset, TrainRequest("d3rlpy:iql", "team", out=tmp_path / "run", train_settings=FAST))


def test_a_checkpoint_of_other_shapes_is_refused_before_any_work(tmp_path, monkeypatch):
    dataset = written(tmp_path / "data", discrete=False)
    request = TrainRequest("bc", "team", out=tmp_path / "run", train_settings=FAST)
    run = train_offline(dataset, request)
    run.update(status="running")
    good = load_file(run.checkpoint_path)
    saved = Checkpoint.load(run.checkpoint_path)
    request.resume = True
    for name in ("require_valid", "load_transitions", "rewards_for"):
        monkeypatch.setattr(offline, name, lambda *_: 1 / 0)
    for key, wrong, message in (
        ("policy.1.weight", torch.zeros(1, 2, 9, 9), r"'policy\.1\.weight' has shape \[1, 2, 9, 9\]"),
        ("generators", torch.zeros(2, 5056, dtype=torch.uint8), "does not hold generators for 1 seeds"),
        ("generators", torch.zeros(1, 16, dtype=torch.uint8), "not written on cpu.*--device"),
        ("generators", torch.zeros(1, 5056), "'generators' holds torch.float32, not bytes"),
        ("policy.1.bias", good["learner.policy.1.bias"].long(), r"'policy\.1\.bias' holds torch\.int64"),
        (
            "policy.1.bias",
            good["learner.policy.1.bias"] * float("nan"),
            r"'policy\.1\.bias' .* finite numbers",
        ),
    ):
        learner = {name.removeprefix("learner."): value for name, value in good.items() if name != "sampling"}
        Checkpoint(saved.step, {**learner, key: wrong}, saved.sampling, {}).save(run.checkpoint_path)
        with pytest.raises(DataError, match=rf"--resume: .*checkpoint\.safetensors: .*{message}"):
            train_offline(dataset, request)
    save_file({"x": torch.zeros(1)}, str(run.checkpoint_path))
    with pytest.raises(DataError, match="no training checkpoint"):
        train_offline(dataset, request)


def test_values_beyond_the_limit_stop_the_run_and_keep_the_checkpoint(tmp_path):
    run = new_run(tmp_path / "run")
    learner = make_learner("td3bc", SPEC, VALUES, [0, 1])

    def inflate(done: int, total: int) -> None:
        if done == 22:
            learner.critic.biases[-1][0].fill_(-7e6)

    with (
        torch.no_grad(),
        pytest.raises(
            OffmarlError,
            match=r"diverged by step 25: q_mean is -\d.*beyond train\.q_limit=1e\+06; the checkpoint of step 20 is "
            r"kept\. Lower learner\.learning_rate \(now 0\.003\) or learner\.gamma \(now 0\.95\) with --set",
        ),
    ):
        train(learner, table(), config(), run, progress=inflate)
    assert Checkpoint.load(run.checkpoint_path).step == 20
    failed = RunFolder.open(run.folder)
    assert failed.status == "failed"
    assert "q_limit" in failed.record["error"]


def test_the_limit_is_a_setting(tmp_path):
    run = new_run(tmp_path / "run")
    learner = make_learner("td3bc", SPEC, VALUES, [0, 1])
    with pytest.raises(OffmarlError, match=r"beyond train\.q_limit=1e-06; no checkpoint had been written"):
        train(learner, table(), config(q_limit=1e-6), run)
    with pytest.raises(UsageError, match="q_limit"):
        configure(TrainConfig, {"q_limit": -1}, "train")


def test_nan_inside_d3rlpy_fails_the_run_in_one_line(tmp_path):
    pytest.importorskip("d3rlpy")
    run = new_run(tmp_path / "run", learner="d3rlpy:sac")
    learner = make_learner("d3rlpy:sac", SPEC, VALUES, [0, 1])

    def poison(done: int, total: int) -> None:
        if done == 12:
            with torch.no_grad():
                next(learner.networks[1][0].modules.policy.parameters()).fill_(float("nan"))

    with pytest.raises(
        OffmarlError, match=r"step 13: .* is not finite.*step 10 is kept.*actor_learning_rate"
    ):
        train(learner, table(), config(), run, progress=poison)
    assert RunFolder.open(run.folder).status == "failed"


def test_a_run_of_d3rlpy_is_trained_resumed_and_evaluated_like_our_own(tmp_path, monkeypatch, random_dataset):
    pytest.importorskip("d3rlpy")
    from offmarl.evaluation.scores import evaluate_run
    from offmarl.reporter import Silent

    monkeypatch.setenv("OFFMARL_HOME", str(tmp_path))
    dataset = Dataset.open(random_dataset("mpe_spread", 200, 8))
    values = {"hidden": [8, 8], "update_actor_interval": 1}
    request = TrainRequest(
        "d3rlpy:td3_plus_bc", "mean", seeds=(0, 1), learner_settings=values, train_settings=FAST
    )
    run = train_offline(dataset, request)
    assert run.id.startswith("mpe_spread/random-v0/d3rlpy-td3_plus_bc-mean-s0-1-")
    assert run.record["learner_config"]["tau"] == 0.005  # resolved
    assert {"critic_loss", "actor_loss"} <= run.summary.keys()
    whole = load_file(run.checkpoint_path)

    class StopError(Exception):
        pass

    class Stopping(Silent):
        def bar(self, title):
            from contextlib import nullcontext

            def progress(done, total):
                if done == 3:
                    raise StopError

            return nullcontext(progress)

    request.overwrite = True
    with pytest.raises(StopError):
        train_offline(dataset, request, Stopping())
    request.overwrite, request.resume = False, True
    assert Checkpoint.load(run.checkpoint_path).step == 2
    resumed = load_file(train_offline(dataset, request).checkpoint_path)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    evaluation = evaluate_run(RunFolder.open(run.folder), 3, 0, {}, "cpu", Silent())
    assert evaluation.learner == "d3rlpy:td3_plus_bc"
    assert len(evaluation.per_seed) == 2
