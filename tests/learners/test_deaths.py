"""Agents that die before their episode ends: the dead teach nothing, and a death is an end of one's own future."""

from dataclasses import replace

import bandits
import episodes
import pytest
import torch

from offmarl.data.table import Transitions
from offmarl.learners.registry import make_learner
from offmarl.streams import stream

CONTINUOUS = [
    ("bc", {}),
    ("iql", {}),
    ("icq", {}),
    ("icq", {"mixer": True}),
    ("td3bc", {}),
    ("cql", {}),
    ("omar", {}),
]


def half_dead(action_type: str, width: int) -> list[Transitions]:
    """The same data twice: only what agents did when they were dead differs."""
    g = stream(0, "deaths")
    task = bandits.spec(action_type, actions=(width, width))
    obs, reward = torch.randn(512, 2, 3, generator=g), torch.randn(512, 2, generator=g)
    alive = torch.rand(512, 2, generator=g) < 0.5
    if action_type == "discrete":
        action = torch.randint(width, (512, 2), generator=g)
        other = torch.where(alive, action, torch.zeros_like(action))
    else:
        action = torch.rand(512, 2, width, generator=g) * 2 - 1
        other = torch.where(alive.unsqueeze(2), action, torch.ones_like(action))
    return [
        bandits.one_step(task, obs, done.float(), reward, alive=alive.float()) for done in (action, other)
    ]


def actions_learnt(name: str, transitions: Transitions, settings: dict, steps: int = 8) -> torch.Tensor:
    learner = make_learner(name, transitions.spec, {"hidden": (8, 8), **settings})
    return bandits.train(learner, transitions, steps, 128).act(transitions.column("obs")[None])


@pytest.mark.parametrize(("name", "settings"), CONTINUOUS)
@pytest.mark.parametrize("share", [False, True])
def test_what_the_dead_did_teaches_nothing(name, settings, share):
    """Critics of joint actions see the dead beside the living: of those see the gradients in test_critics.py."""
    first, second = (
        actions_learnt(name, one, {**settings, "share": share}) for one in half_dead("continuous", 1)
    )
    assert torch.equal(first, second)


def test_only_the_living_have_a_part_in_cfcqls_conservatism():
    data, _ = half_dead("continuous", 1)
    learner = make_learner("cfcql", data.spec, {"hidden": (8, 8), "sharpness": 1.0})
    batch = data.sample(64, learner.generators)
    action = batch.action.transpose(1, 2).contiguous()
    states = learner.inputs.states(learner.prepare(batch.obs), action, None)
    weight = learner.weight(replace(states, counted=learner.counted(batch)))
    alive = batch.alive.transpose(1, 2)
    assert not bool(weight[~alive].any())
    torch.testing.assert_close(weight.sum(1), alive.sum(1).float())


@pytest.mark.parametrize("algorithm", ["bc", "dqn"])
def test_what_the_dead_did_teaches_d3rlpy_nothing(algorithm):
    pytest.importorskip("d3rlpy")
    first, second = (actions_learnt(f"d3rlpy:{algorithm}", one, {}) for one in half_dead("discrete", 4))
    assert torch.equal(first, second)


def walk(action_type: str) -> Transitions:
    """Episodes that time ends. Choosing 1 (or acting above 0) is death; the living earn 1 a step, or 10 if rich."""
    g, E, T, N = stream(0, "walk"), 300, 10, 2
    discrete = action_type == "discrete"
    task = episodes.spec(N, 3, (2, 2), horizon=T) if discrete else bandits.spec(actions=(1, 1))
    rich = (torch.rand(E, generator=g) < 0.5).float()
    dies = torch.rand(E, T, N, generator=g) < 0.15
    alive = torch.ones(E, T + 1, N)
    alive[:, 1:] = (~dies).float().cumprod(1)
    obs = torch.stack([rich.view(E, 1, 1).expand(E, T + 1, N), alive, torch.zeros_like(alive)], 3)
    action = dies.float() if discrete else (dies * 2.0 - 1).unsqueeze(3)
    reward = (1 + 9 * rich).view(E, 1, 1) * alive[:, 1:]
    truncated = torch.zeros(E, T + 1)
    truncated[:, -2] = 1

    def rows(values: torch.Tensor) -> torch.Tensor:
        missing = values.new_zeros(E, T + 1 - values.shape[1], *values.shape[2:])
        return torch.cat([values, missing], 1).flatten(0, 1)

    arrays = {"obs": obs, "action": action, "reward": reward, "team_reward": reward.sum(2), "alive": alive}
    arrays |= {"terminated": torch.zeros(E, T + 1), "truncated": truncated}
    start = torch.arange(0, E * (T + 1) + 1, T + 1)
    return Transitions.from_arrays(task, {name: rows(values) for name, values in arrays.items()}, start)


def test_deaths_are_counted_and_the_end_by_time_is_none():
    data = walk("discrete")
    assert not data.statistics().terminates
    assert data.statistics().deaths
    nobody = data.column("alive").clone()
    data.column("alive").fill_(1)
    assert not data.statistics().agents_end
    data.column("alive").copy_(nobody)


@pytest.mark.parametrize("name", ["cql", "omar", "iql"])
def test_where_agents_die_rewards_are_not_centred_and_nobody_chooses_to_die(name):
    """Centred, living in the poor state earns less than nothing, and death is worth nothing."""
    data = walk("discrete")
    settings = {"hidden": (32,), "tau": 0.05, "normalise_observations": False}
    settings |= {} if name == "iql" else {"alpha": 0.0}
    learner = bandits.train(make_learner(name, data.spec, settings), data, 300, 256)
    assert not bool(learner.rewards.mean.any())
    states = torch.tensor([[0.0, 1, 0], [1.0, 1, 0]])[:, None].expand(2, 2, 3)
    assert learner.act(states[None]).tolist() == [[[0, 0], [0, 0]]]


def test_ones_own_future_ends_with_death_and_the_teams_does_not():
    data = walk("continuous")
    learner = make_learner("cql", data.spec, {})
    batch = data.sample(256, [stream(0, "test")])
    died = (batch.alive & ~batch.next_alive).transpose(1, 2)  # [1, N, B]
    assert 0 < int(died.sum()) < died.numel() / 2
    ahead = torch.full(died.shape, 7.0)
    own = learner.rewards.td_target(batch, ahead)
    assert torch.equal(own[died], batch.reward.transpose(1, 2)[died])
    going_on = batch.next_alive.transpose(1, 2)
    torch.testing.assert_close(own[going_on], (batch.reward.transpose(1, 2) + 0.95 * 7)[going_on])
    team = learner.rewards.team_target(batch, ahead[:, :1])
    torch.testing.assert_close(team, batch.reward.mean(2).unsqueeze(1) + 0.95 * 7)
