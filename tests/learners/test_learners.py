"""What holds for every learner: seeds, checkpoints, settings, layout."""

from dataclasses import replace

import bandits
import pytest
import torch

from offmarl.data.table import Statistics
from offmarl.errors import DataError, UsageError
from offmarl.learners import networks
from offmarl.learners.registry import LEARNERS, make_learner
from offmarl.native.library import Library, kernels, library
from offmarl.streams import stream

ALL = [(name, kind) for name, kinds in LEARNERS.items() for kind in kinds if kind != "rendered"]


def learner_of(name, transitions, seeds=(0,), **values):
    return make_learner(name, transitions.spec, {"hidden": (16, 16), **values}, seeds)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("name", "kind"), ALL)
def test_a_seed_alone_equals_the_seed_in_a_stack(data, name, kind, share):
    alone = bandits.train(learner_of(name, data[kind], (1,), share=share), data[kind], 20, 64)
    stacked = bandits.train(learner_of(name, data[kind], (0, 1, 2), share=share), data[kind], 20, 64)
    for key, tensor in alone.state_dict().items():
        other = stacked.state_dict()[key]
        if key == "generators":
            assert torch.equal(tensor[0], other[1])
        elif key.endswith(("weight", "bias")):
            other = other.narrow(tensor.shape.index(1), 1, 1)  # twins come before seeds
            torch.testing.assert_close(tensor, other, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_metrics_are_one_finite_number_a_seed(data, name, kind):
    learner = learner_of(name, data[kind], (0, 1))
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    metrics = {}
    for _ in range(2):
        metrics |= learner.update(learner.sample(data[kind], 32, generators))
    assert "policy_loss" in metrics or "critic_loss" in metrics
    for name_, value in metrics.items():
        assert value.shape == (2,), name_
        assert value.isfinite().all(), name_
        assert not value.requires_grad, name_


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_a_restored_learner_goes_on_identically(data, name, kind):
    first = bandits.train(learner_of(name, data[kind], (0, 1)), data[kind], 3, 32)
    second = learner_of(name, data[kind], (0, 1))
    second.load_state_dict(first.state_dict())
    for learner in (first, second):
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        for _ in range(3):
            learner.update(learner.sample(data[kind], 32, generators))
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key


def test_a_checkpoint_of_another_shape_is_refused_by_name_and_changes_nothing(data):
    learner = learner_of("td3bc", data["continuous"])
    before = learner.state_dict()
    wrong = make_learner("td3bc", data["continuous"].spec, {"hidden": (16, 8)}).state_dict()
    with pytest.raises(DataError, match=r"'policy\.1\.weight' has shape \[1, 1, 16, 8\]"):
        learner.load_state_dict(wrong)
    del wrong["policy.0.weight"]
    with pytest.raises(DataError, match=r"no tensor 'policy\.0\.weight'"):
        learner.load_state_dict(wrong)
    with pytest.raises(DataError, match="generators for 1 seeds"):
        learner.load_state_dict({key: value for key, value in before.items() if key != "generators"})
    assert all(torch.equal(tensor, before[key]) for key, tensor in learner.state_dict().items())


def test_wrong_settings_are_refused_with_the_near_name():
    task = bandits.spec()
    with pytest.raises(UsageError, match="did you mean alpha"):
        make_learner("cql", task, {"alfa": 1})
    with pytest.raises(UsageError, match=r"learner\.gamma=1\.5"):
        make_learner("td3bc", task, {"gamma": 1.5})
    with pytest.raises(UsageError, match=r"learner\.hidden"):
        make_learner("bc", task, {"hidden": []})
    with pytest.raises(UsageError, match=r"unknown learner 'cq'.*cql"):
        make_learner("cq", task)
    with pytest.raises(UsageError, match=r"no discrete actions.*bc, cfcql, cql"):
        make_learner("td3bc", bandits.spec("discrete"))


def test_time_limits_are_bootstrapped_through_and_ends_are_not(data):
    learner = learner_of("td3bc", data["continuous"], target_noise=0.0)
    batch = data["continuous"].sample(16, [torch.Generator().manual_seed(0)])
    next_obs = learner.prepare(batch.next_obs)
    ended = learner.td_target(batch, next_obs)
    torch.testing.assert_close(ended, batch.reward.transpose(1, 2))
    batch.terminated = torch.zeros_like(batch.terminated)  # `done` stays 1
    next_action = learner.actions(learner.target_policy, next_obs)[0].unsqueeze(3)
    states = learner.inputs.states(next_obs, next_action.squeeze(3), None)
    q = learner.q_values(learner.target_critic, states, next_action).amin(0).squeeze(-1)
    torch.testing.assert_close(learner.td_target(batch, next_obs), ended + 0.95 * q)


def statistics(terminates: bool) -> Statistics:
    mean, std = torch.full((2, 3), 4.0), torch.tensor([[2.0, 0.0, 1.0]] * 2)
    return Statistics(mean, std, torch.tensor([10.0, -1.0]), torch.tensor([2.0, 0.0]), terminates)


def test_rewards_get_unit_deviation_and_are_centred_only_where_nothing_terminates(data):
    batch = data["continuous"].sample(4, [torch.Generator().manual_seed(0)])
    batch.reward = torch.tensor([12.0, -1.0]).expand(1, 4, 2)
    for terminates, expected in ((False, (1.0, 0.0)), (True, (6.0, -1.0))):
        learner = learner_of("td3bc", data["continuous"], share=False)  # moments of each agent's own
        learner.observe(statistics(terminates))
        target = learner.td_target(batch, learner.prepare(batch.next_obs))
        torch.testing.assert_close(target[0, :, 0], torch.tensor(expected))


def test_observations_are_normalised_and_far_ones_limited(data):
    learner = learner_of("bc", data["continuous"])
    learner.observe(statistics(False))
    obs = torch.tensor([6.0, 4.5, 1e6]).expand(1, 1, 2, 3)
    torch.testing.assert_close(learner.prepare(obs)[0, 0, 0], torch.tensor([1.0, 0.5, 10.0]))


def test_agents_that_share_also_share_normalisers(data):
    learner = learner_of("td3bc", data["continuous"], share=True)
    moments = statistics(False)
    learner.observe(
        replace(moments, obs_mean=torch.tensor([[0.0] * 3, [2.0] * 3]), obs_std=torch.zeros(2, 3))
    )
    torch.testing.assert_close(learner.obs_mean, torch.ones(2, 3))
    torch.testing.assert_close(learner.obs_scale, torch.ones(2, 3))  # the agents differ by ±1
    obs = torch.randn(1, 5, 1, 3).expand(1, 5, 2, 3)
    action = learner.act(obs)
    torch.testing.assert_close(action[:, :, 0], action[:, :, 1])


def test_shared_networks_tell_roles_apart():
    task = bandits.spec(groups=(("agent_0",), ("agent_1",)))
    learner = make_learner("td3bc", task, {"share": True, "last_layer_bound": None})
    assert learner.input_dim == 5
    action = learner.act(torch.ones(1, 4, 2, 3))
    assert (action[:, :, 0] - action[:, :, 1]).abs().min() > 1e-4


def test_actions_beyond_an_agents_own_width_are_zero():
    task = bandits.spec(actions=(2, 1))
    for name in ("td3bc", "cql"):
        learner = make_learner(name, task, {"last_layer_bound": None})
        action = learner.act(torch.randn(1, 6, 2, 3))
        assert (action[..., 1, 1] == 0).all()
        assert (action[..., 0, 1] != 0).all()


def test_dead_agents_teach_cloning_nothing(data):
    transitions = data["continuous"]
    results = []
    for noise in (0.0, 0.7):
        learner = learner_of("bc", transitions)
        batch = transitions.sample(32, [torch.Generator().manual_seed(0)])
        batch.alive = torch.ones(1, 32, 2, dtype=torch.bool)
        batch.alive[:, ::2, 1] = False
        batch.action = torch.where(batch.alive.unsqueeze(-1), batch.action, noise)
        learner.update(batch)
        results.append(learner.state_dict())
    assert all(torch.equal(tensor, results[1][key]) for key, tensor in results[0].items())


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", ["td3bc", "cql"])
def test_tiles_do_not_change_the_update(data, monkeypatch, name, share):
    def state(size: int):
        monkeypatch.setattr(networks, "TILE_BYTES", size)
        settings = {"policy_samples": 2} if name == "cql" else {}
        learner = learner_of(name, data["continuous"], (0, 1), share=share, **settings)
        return bandits.train(learner, data["continuous"], 2, 50).state_dict()

    whole, tiled = state(10**9), state(4 * 16 * 99)
    for key in ("critic_optimiser.exp_avg", "policy_optimiser.exp_avg"):
        torch.testing.assert_close(whole[key], tiled[key], atol=1e-7, rtol=1e-4)


@pytest.mark.skipif(not isinstance(library(), Library), reason=str(library()))
@pytest.mark.parametrize("name", ["td3bc", "cql", "omar", "icq", "cfcql", "iql", "bc"])
def test_compiled_or_not_learners_learn_the_same(name, continuous):
    learners = []
    for choice in ("torch", "compiled"):
        with kernels(choice):
            learner = make_learner(name, continuous.spec, {"hidden": (32, 32)})
            learner.observe(continuous.statistics())
            for _ in range(3):
                metrics = learner.update(continuous.sample(64, [stream(0, "sample")]))
            learners.append((learner, metrics))
    (plain, metrics), (compiled, other) = learners
    for key, value in metrics.items():
        torch.testing.assert_close(other[key], value, atol=1e-4, rtol=1e-3)
    for key, value in plain.tensors().items():
        torch.testing.assert_close(compiled.tensors()[key], value, atol=1e-4, rtol=1e-3)
