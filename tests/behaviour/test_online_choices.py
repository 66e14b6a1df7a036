"""Online training of choices: mixed values of a team with a state, exploration that falls, legal choices only."""

import pytest
import torch
from signals import HORIZON, Signals

from offmarl.behaviour.checkpoint import load_policy_file, save_policy
from offmarl.behaviour.online import OnlineConfig, behaviour_learner, train_online
from offmarl.behaviour.random import RandomPolicy
from offmarl.behaviour.replay import ReplayBuffer
from offmarl.envs.registry import make
from offmarl.evaluation.rollout import rollout
from offmarl.learners.cql import DiscreteCQL
from offmarl.learners.qmix_cql import QMIXCQL
from offmarl.streams import stream

CONFIG = OnlineConfig(
    steps=300,
    warm_up=20,
    checkpoint_every=100,
    num_envs=16,
    evaluation_episodes=64,
    batch_rows=128,
    hidden=(32, 32),
    exploration=0.05,
    exploration_steps=100,
)


def test_exploration_falls_in_equal_steps_after_the_warm_up():
    shares = [CONFIG.epsilon(count) for count in (1, 20, 70, 120, 300)]
    assert shares == pytest.approx([1.0, 1.0, 0.525, 0.05, 0.05])
    assert OnlineConfig(exploration=0.2).epsilon(5) == 0.2


def test_a_team_with_a_state_is_taught_by_mixing_and_others_alone():
    with make("mpe_targets", options={"actions": "discrete"}) as env:
        assert isinstance(behaviour_learner(env.spec, CONFIG, 0, "cpu"), DiscreteCQL)
    spec = Signals(1).spec
    mixed = behaviour_learner(spec, CONFIG, 0, "cpu")
    assert isinstance(mixed, QMIXCQL)
    assert mixed.config.alpha == 0
    alone = OnlineConfig(**{**vars(CONFIG), "mixer": None})
    assert isinstance(behaviour_learner(spec, alone, 0, "cpu"), DiscreteCQL)


@pytest.mark.parametrize("mixer", ["qmix", "vdn"])
def test_the_team_learns_its_signals_and_keeps_them_in_a_file(tmp_path, mixer):
    config = OnlineConfig(**{**vars(CONFIG), "mixer": mixer})
    env, evaluation = Signals(16), Signals(64)
    explored = []

    def watch(frame, action, step):
        explored.append(float((action == frame.obs.argmax(2))[frame.alive].float().mean()))

    checkpoints = train_online(env, evaluation, config, 0, on_step=watch)
    best = float(rollout(Signals(64), Perfect(), 3).mean_agent.mean())
    by_chance = float(rollout(Signals(64), RandomPolicy(env.spec), 3).mean_agent.mean())
    assert checkpoints[-1].episode_return > by_chance + 0.9 * (best - by_chance)
    assert sum(explored[:20]) / 20 < 0.45  # a third by chance
    assert sum(explored[-20:]) / 20 > 0.85
    save_policy(tmp_path / "expert.safetensors", env.spec, config, 0, checkpoints[-1])
    policy, spec = load_policy_file(tmp_path / "expert.safetensors")
    assert spec == env.spec
    score = float(rollout(Signals(64), policy, 3).mean_agent.mean())
    assert score == pytest.approx(best, rel=0.15)


class Perfect(RandomPolicy):
    def __init__(self):
        super().__init__(Signals(1).spec)

    def act(self, frame, generator):
        return frame.obs.argmax(2)


def test_the_buffer_gives_back_what_was_seen():
    env, buffer = Signals(5), ReplayBuffer(Signals(1).spec, 5 * HORIZON)
    frame, policy, seen = env.reset(0), RandomPolicy(env.spec), []
    for count in range(HORIZON):
        action = policy.act(frame, stream(count))
        step = env.step(action)
        reward = step.team_reward.unsqueeze(1).expand(5, 2)
        buffer.add(frame, action, step, reward)
        seen.append((frame, action, step))
        frame = step.frame
    batch = buffer.sample(400, stream(0, "draw"))
    assert batch.valid.min() == 1
    for count, (frame, action, step) in enumerate(seen):
        for copy in range(5):
            row = 5 * count + copy
            stored = {name: buffer.row[row, columns] for name, columns in buffer.columns.items()}
            assert torch.equal(stored["obs"].view(2, 2, 3)[0], frame.obs[copy])
            assert torch.equal(stored["obs"].view(2, 2, 3)[1], step.successor.obs[copy])
            assert torch.equal(stored["state"].view(2, 6)[1], step.successor.state[copy])
            assert torch.equal(stored["alive"].view(2, 2)[1].bool(), step.successor.alive[copy])
            assert torch.equal(stored["action"].long(), action[copy])
    moments = buffer.statistics()
    obs = torch.cat([frame.obs for frame, _, _ in seen])
    torch.testing.assert_close(moments.obs_mean, obs.mean(0))
    torch.testing.assert_close(moments.state_mean, obs.flatten(1).mean(0))
    assert moments.terminates is False
    drawn = batch.obs[0, :, 0].flatten(1)
    rows = buffer.row[:, buffer.columns["obs"]][:, :6]
    match = (drawn[:, None] == rows[None]).all(2).any(1)
    assert match.all()
