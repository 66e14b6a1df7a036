"""Learners of choices: what counts in their losses, targets along an episode, acting with a memory."""

import bandits
import episodes
import pytest
import torch
from episodes import batch_of, learner_of

from offmarl.envs.base import Frame
from offmarl.learners.registry import LEARNERS, make_learner
from offmarl.streams import stream
from offmarl.training.acting import LearnerPolicy

ALL = [name for name, kinds in LEARNERS.items() if "discrete" in kinds]
TRUNKS = ("gru", "mlp")


@pytest.mark.parametrize("share", [False, True])
def test_values_return_from_their_networks_in_their_place(battle, share):
    learner = learner_of("bc", battle, (0, 1), share=share)
    values = torch.randn(2, 20, 3, 7)
    sorted_ = learner.to_networks(values)
    assert sorted_.shape == ((2, 60, 7) if share else (6, 20, 7))
    assert torch.equal(learner.from_networks(sorted_), values)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("name", ALL)
def test_what_is_padded_dead_or_illegal_changes_nothing(battle, name, trunk, share):
    """Death is for good here, as it must be for a memory not to carry what the dead saw."""

    def state(spoil: bool):
        learner = learner_of(name, battle, (0, 1), trunk=trunk, share=share)
        learner.observe(battle.statistics())
        learner.see(battle)
        batch = batch_of(learner, battle)
        if trunk == "gru":
            batch.alive = batch.alive.int().cummin(2).values.bool()
        if spoil:
            g = stream(9, "spoil")
            padded = torch.cat([torch.zeros_like(batch.valid[:, :, :1]), 1 - batch.valid], 2).bool()
            dead = ~batch.alive | padded.unsqueeze(3)
            batch.obs = torch.where(
                dead.unsqueeze(4), 5 * torch.randn(batch.obs.shape, generator=g), batch.obs
            )
            batch.state = torch.where(padded.unsqueeze(3), 3.0, batch.state)
            unfilled = batch.valid == 0
            batch.terminated = torch.where(unfilled, 1.0, batch.terminated)
            # The reward of the dead is the team's all the same: only padding is spoilt.
            batch.reward = torch.where(unfilled.unsqueeze(3), 7.0, batch.reward)
            not_acting = unfilled.unsqueeze(3) | ~batch.alive[:, :, :-1]
            batch.action = torch.where(not_acting, 0, batch.action)
            batch.legal = torch.where(dead.unsqueeze(4), torch.tensor([True, True, True, True]), batch.legal)
        learner.update(batch)
        return learner.state_dict()

    plain, spoilt = state(False), state(True)
    compared = 0
    for key, tensor in plain.items():
        if key.endswith("exp_avg"):
            assert tensor.abs().max() > 0
            torch.testing.assert_close(spoilt[key], tensor, rtol=1e-5, atol=1e-8)
            compared += 1
    assert compared


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("name", ALL)
def test_illegal_choices_change_no_gradient_and_are_never_made(battle, name, trunk):
    """Raising an output that is never legal moves no other weight."""

    def state(bonus: float):
        learner = learner_of(name, battle, trunk=trunk)
        for part in learner.tensors():
            last = part.endswith("head.bias" if trunk == "gru" else "2.bias") and "mixer" not in part
            if last and "value" not in part:  # which rates no choices
                learner.tensors()[part][..., 3] += bonus
        learner.see(battle)
        batch = batch_of(learner, battle)
        batch.legal[..., 3] = False
        batch.action = batch.action.clamp(max=2)
        batch.legal.scatter_(4, torch.nn.functional.pad(batch.action, (0, 0, 0, 1)).unsqueeze(4), True)
        learner.update(batch)
        return learner, learner.state_dict()

    (learner, plain), (raised, spoilt) = state(0.0), state(50.0)
    for key, tensor in plain.items():
        if key.endswith("exp_avg"):
            torch.testing.assert_close(spoilt[key], tensor, rtol=1e-5, atol=1e-8)
    obs, legal = torch.randn(1, 40, 3, 5), torch.tensor([True, True, True, False]).expand(1, 40, 3, 4)
    assert (raised.act(obs, legal) != 3).all()
    assert torch.equal(raised.act(obs, legal), learner.act(obs, legal))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_with_a_memory_a_seed_alone_equals_the_seed_in_a_stack(battle, name, share):
    settings = {"trunk": "gru", "share": share}
    alone = bandits.train(learner_of(name, battle, (1,), **settings), battle, 5, 8)
    stacked = bandits.train(learner_of(name, battle, (0, 1, 2), **settings), battle, 5, 8)
    for key, tensor in alone.state_dict().items():
        if key.endswith(("weight", "bias")):
            torch.testing.assert_close(tensor[0], stacked.state_dict()[key][1], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_with_a_memory_a_restored_learner_goes_on_identically(battle, name):
    first = bandits.train(learner_of(name, battle, (0, 1), trunk="gru"), battle, 3, 8)
    second = learner_of(name, battle, (0, 1), trunk="gru")
    second.load_state_dict(first.state_dict())
    for learner in (first, second):
        learner.see(battle)
        learner.update(batch_of(learner, battle))
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_targets_mix_the_n_step_returns_of_each_episode(battle, lam):
    learner = learner_of("cql", battle, td_lambda=lam, gamma=0.9)
    assert learner.batch_unit == "episodes"
    batch = batch_of(learner, battle)
    going_on, reward = 1 - batch.terminated, batch.reward[..., 0]
    value = torch.randn(reward.shape)
    found = learner.lambda_return(reward, value, going_on, batch.valid)
    length = batch.valid.sum(2).long()
    for b in range(reward.shape[1]):
        T = int(length[0, b])
        for t in range(T):
            n_step = []
            for n in range(1, T - t + 1):
                rewards = sum(0.9**k * reward[0, b, t + k] for k in range(n))
                n_step.append(rewards + 0.9**n * going_on[0, b, t + n - 1] * value[0, b, t + n - 1])
            weights = [(1 - lam) * lam**k for k in range(len(n_step) - 1)] + [lam ** (len(n_step) - 1)]
            expected = sum(w * g for w, g in zip(weights, n_step, strict=True))
            torch.testing.assert_close(found[0, b, t], expected)


def test_an_agents_future_ends_with_its_death_and_the_teams_does_not(battle):
    learner = learner_of("qmix_cql", battle, gamma=0.9, trunk="mlp")
    batch = batch_of(learner, battle, 100)
    value = torch.ones(batch.action.shape)
    dies = batch.alive[:, :, :-1] & ~batch.alive[:, :, 1:]
    assert dies.any()
    assert torch.equal(learner.td_target(batch, value)[dies], batch.reward[dies])
    going_on = 1 - batch.terminated
    expected = batch.reward.mean(3) + 0.9 * going_on
    torch.testing.assert_close(learner.team_target(batch, value[..., 0]), expected)


@pytest.mark.parametrize("share", [False, True])
def test_acting_step_by_step_is_the_unrolled_network(battle, share):
    learner = learner_of("cql", battle, (0, 1), trunk="gru", share=share)
    learner.observe(battle.statistics())
    batch = batch_of(learner, battle, 10)
    q = learner.masked(learner.run(learner.critic, learner.inputs(batch)), batch.legal)
    policy = LearnerPolicy(learner)
    nobody = torch.zeros(20, dtype=torch.bool)
    for t in range(batch.steps + 1):
        frame = Frame(batch.obs[:, :, t].flatten(0, 1), legal=batch.legal[:, :, t].flatten(0, 1))
        policy.begin(nobody, stream(0))
        action = policy.act(frame, stream(0))
        there = (t < batch.lifetimes).flatten(0, 1)  # [S * B, N]
        assert torch.equal(action[there], q[:, :, t].argmax(-1).flatten(0, 1)[there]), t


def test_only_copies_that_start_forget(battle):
    learner = learner_of("cql", battle, trunk="gru")
    policy, frame = LearnerPolicy(learner), Frame(torch.randn(4, 3, 5))
    policy.act(frame, stream(0))
    before = policy._memory.clone()
    starting = torch.tensor([True, False, False, True])
    policy.begin(starting, stream(0))
    assert (policy._memory[0, starting] == 0).all()
    assert torch.equal(policy._memory[0, ~starting], before[0, ~starting])
    assert (before != 0).all()
    policy.begin(torch.ones(7, dtype=torch.bool), stream(0))  # taken to another environment
    assert policy.act(Frame(torch.randn(7, 3, 5)), stream(0)).shape == (7, 3)


def test_one_seed_of_several_acts_with_its_own_memory(battle):
    learner = learner_of("bc", battle, (0, 1), trunk="gru")
    both, second = LearnerPolicy(learner), LearnerPolicy(learner, 1)
    for _ in range(3):
        obs = torch.randn(5, 3, 5)
        expected = both.act(Frame(torch.cat([obs, obs])), stream(0))[5:]
        assert torch.equal(second.act(Frame(obs), stream(0)), expected)


@pytest.mark.parametrize("name", ["cql", "qmix_cql"])
def test_a_memory_recalls_what_a_single_step_does_not_show(name):
    data = episodes.recall()
    cue = torch.randint(2, (400, 2), generator=stream(3, "cue"))
    right = {}
    for trunk in TRUNKS:
        learner = make_learner(name, data.spec, {"hidden": (16, 16), "trunk": trunk, "alpha": 0.1})
        bandits.train(learner, data, 150, 64)
        memory = torch.zeros(1, 400, 2, learner.memory_dim)
        for t in range(3):
            obs = torch.zeros(1, 400, 2, 3)
            obs[..., 0], obs[..., 1] = (2.0 * cue - 1) * (t == 0), t / 3
            action, memory = learner.step(obs, None, memory)
        right[trunk] = float((action == cue).float().mean())
    assert right["gru"] > 0.95
    assert right["mlp"] < 0.65


def test_cloning_with_a_memory_copies_what_depends_on_the_past():
    data = episodes.recall(300, skilled=True)
    learner = make_learner("bc", data.spec, {"hidden": (16, 16), "trunk": "gru"})
    bandits.train(learner, data, 150, 64)
    batch = batch_of(learner, data, 100)
    chosen = learner.run(learner.policy, learner.inputs(batch))[:, :, 2].argmax(-1)
    assert (chosen == batch.action[:, :, 2]).float().mean() > 0.95
