import pytest
import torch

from offmarl.behaviour.checkpoint import load_policy_file, save_policy
from offmarl.behaviour.online import Checkpoint, OnlineConfig, train_online
from offmarl.behaviour.qualities import half_way
from offmarl.behaviour.random import RandomPolicy
from offmarl.envs.registry import make
from offmarl.errors import DataError, UsageError
from offmarl.evaluation.rollout import rollout

CONFIG = OnlineConfig(
    steps=500, warm_up=50, checkpoint_every=100, num_envs=32, evaluation_episodes=64, batch_rows=512
)
OPTIONS = {"agents": 2}


@pytest.fixture(scope="module")
def checkpoints():
    with (
        make("mpe_targets", 32, options=OPTIONS) as env,
        make("mpe_targets", 64, options=OPTIONS) as evaluation_env,
    ):
        return train_online(env, evaluation_env, CONFIG, seed=0)


def test_online_training_learns(checkpoints):
    with make("mpe_targets", 64, options=OPTIONS) as env:
        by_chance = rollout(env, RandomPolicy(env.spec), seed=0).mean_agent.mean()
    assert checkpoints[-1].episode_return > 3 * by_chance


def actions_of_training(until):
    taken = []
    config = OnlineConfig(**{**vars(CONFIG), "steps": 200})
    with make("mpe_targets", 32, options=OPTIONS) as env, make("mpe_targets", 8, options=OPTIONS) as other:
        train_online(
            env, other, config, 0, on_step=lambda _, action, __: taken.append(action.clone()), until=until
        )
    return taken


def test_stopping_early_takes_the_same_steps():
    whole, stopped = actions_of_training(None), actions_of_training(120)
    assert (len(whole), len(stopped)) == (200, 120)
    assert all(torch.equal(a, b) for a, b in zip(whole, stopped, strict=False))


def test_a_saved_policy_acts_as_before(checkpoints, tmp_path):
    with make("mpe_targets", 64, options=OPTIONS) as env:
        save_policy(tmp_path / "expert.safetensors", env.spec, CONFIG, 0, checkpoints[-1])
        policy, spec = load_policy_file(tmp_path / "expert.safetensors")
        assert spec == env.spec
        score = float(rollout(env, policy, seed=0).mean_agent.mean())
    assert score == pytest.approx(checkpoints[-1].episode_return, rel=0.1)


def test_a_damaged_policy_file_is_named(tmp_path):
    path = tmp_path / "expert.safetensors"
    path.write_bytes(b"not a policy at all")
    with pytest.raises(DataError, match=r"expert\.safetensors cannot be read"):
        load_policy_file(path)
    with pytest.raises(DataError, match=r"missing\.safetensors cannot be read"):
        load_policy_file(tmp_path / "missing.safetensors")


def test_a_buffer_holds_a_step_at_least():
    with (
        make("mpe_spread", 4) as env,
        pytest.raises(
            UsageError, match="capacity=11: expected at least 12, a step of 4 copies with 3 agents"
        ),
    ):
        train_online(env, env, OnlineConfig(capacity=11), 0)


def test_medium_lies_half_way_and_before_the_expert():
    def at(step, value):
        return Checkpoint(step, value, {})

    checkpoints = [at(100, 0.0), at(200, 40.0), at(300, 60.0), at(400, 100.0), at(500, 50.0)]
    assert half_way(checkpoints, 10.0, checkpoints[3]).step == 300
