"""ICQ: its gradients, its weights, what it does with ends of episodes, the mixer and the checkpoint."""

from dataclasses import replace

import bandits
import pytest
import torch
from safetensors.torch import load_file, save_file

from offmarl.data.table import Batch
from offmarl.errors import DataError
from offmarl.learners.icq import ICQ, ICQConfig
from offmarl.learners.registry import make_learner

OBS = torch.rand(1, 500, 2, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1


def batch_of(seeds: int, rows: int = 40, seed: int = 0) -> Batch:
    """Random transitions of agents with two and one action dimensions; every fifth ends, half of them by time."""
    g = torch.Generator().manual_seed(seed)
    used = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    done = torch.zeros(seeds, rows)
    done[:, ::5] = 1
    terminated = done.clone()
    terminated[:, ::10] = 0
    action, next_action = (torch.rand(2, seeds, rows, 2, 2, generator=g) * 2 - 1) * used
    return Batch(
        obs=torch.randn(seeds, rows, 2, 3, generator=g),
        action=action,
        reward=torch.randn(seeds, rows, 2, generator=g),
        next_obs=torch.randn(seeds, rows, 2, 3, generator=g),
        next_action=next_action,
        terminated=terminated,
        done=done,
        alive=torch.rand(seeds, rows, 2, generator=g) < 0.9,
    )


def narrow_learner(seeds=(0, 1), **values) -> ICQ:
    """Agents with two and one action dimensions."""
    task = bandits.spec(actions=(2, 1))
    return make_learner("icq", task, {"hidden": (16, 12), "gradient_clip": None, **values}, seeds)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("mixer", [False, True])
def test_every_step_descends_the_gradient_that_autograd_finds(share, mixer):
    learner, twin = (narrow_learner(share=share, mixer=mixer) for _ in range(2))
    batch = batch_of(2)
    obs, action = twin.prepare(batch.obs), batch.action.transpose(1, 2)
    counted, alive = (torch.rand(2, 2, 40) < 0.8 for _ in range(2))
    counted = counted[:, :1] if mixer else counted
    target = torch.randn(2, 1 if mixer else 2, 40)

    q = twin.apply(twin.critic, torch.cat([obs, action], 3)).squeeze(3)
    parts = [("critic", twin.critic.parameters())]
    value = q
    if mixer:
        output = twin.mixer(obs.transpose(1, 2).flatten(2)).transpose(1, 2)
        weight = output[:, :2].exp() / output[:, :2].exp().sum(1, keepdim=True)
        value = (weight * q).sum(1, keepdim=True) + output[:, 2:]
        parts.append(("mixer", twin.mixer.parameters()))
    loss = twin.squared_error(value, target, counted)
    metrics = learner.critic_step(obs, action, None, target, counted)
    torch.testing.assert_close(metrics["critic_loss"], loss.detach().mean(1), atol=1e-5, rtol=1e-5)
    same_gradients(learner, parts, loss.sum() if mixer else twin.total(loss))

    twin.critic.flat.copy_(learner.critic.flat)
    q = twin.q_values(twin.critic, obs, action)
    v = twin.apply(twin.value, obs).squeeze(3)
    loss = twin.squared_error(v, q, alive)
    advantage, _ = learner.value_step(obs, action, alive)
    torch.testing.assert_close(advantage, (q - v).detach(), atol=1e-5, rtol=1e-5)
    same_gradients(learner, [("value", twin.value.parameters())], twin.total(loss))

    rho = torch.rand(2, 2, 40) * 3
    for one in (learner, twin):
        one.log_sd.flat.copy_(torch.linspace(-1, 0.5, one.log_sd.flat.numel()).view_as(one.log_sd.flat))
    mean = torch.tanh(twin.apply(twin.policy, obs)) * learner._used
    deviation = twin.log_deviations().exp()
    gaussian = torch.distributions.Normal(mean, deviation.expand_as(mean))
    likelihood = (gaussian.log_prob(action) * learner._used).sum(3)
    loss = -(rho * likelihood).mean(2)
    metrics = learner.policy_step(obs, action, rho)
    torch.testing.assert_close(metrics["policy_loss"], loss.detach().mean(1), atol=1e-5, rtol=1e-5)
    parts = [("policy", twin.policy.parameters()), ("log_sd", [twin.log_sd.biases[0]])]
    same_gradients(learner, parts, twin.total(loss))


def same_gradients(learner, parts, loss):
    """The first moment after one step is a tenth of the gradient."""
    flat = [parameter for _, parameters in parts for parameter in parameters]
    gradients = iter(torch.autograd.grad(loss, flat))
    for name, parameters in parts:
        expected = torch.cat([next(gradients).flatten(1) for _ in parameters], dim=1)
        found = 10 * getattr(learner, f"{name}_optimiser").tensors()["exp_avg"]
        assert expected.abs().max() > 1e-3, name
        torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


def test_importance_has_mean_one_over_what_counts_and_grows_with_the_exponent():
    exponent = torch.tensor([[0.0, 1.0, 2.0, 9.0], [5.0, 5.0, 5.0, 5.0]])
    counted = torch.tensor([[True, True, True, False], [False] * 4])
    rho = ICQ.importance(exponent, counted)
    torch.testing.assert_close(rho[0, :3], 3 * torch.softmax(exponent[0, :3], 0))
    assert rho[0, 3] == 0
    assert (rho[1] == 0).all()


@pytest.mark.parametrize("mixer", [False, True])
def test_targets_use_the_datas_next_action_and_nothing_that_follows_an_end(mixer):
    learner = narrow_learner(mixer=mixer, critic_temperature=0.1)
    batch = batch_of(2)
    target = learner.td_target(batch, learner.prepare(batch.next_obs))
    reward = batch.reward.transpose(1, 2)
    ended = batch.terminated == 1
    expected = reward.mean(1, keepdim=True) if mixer else reward
    torch.testing.assert_close(target.transpose(1, 2)[ended], expected.transpose(1, 2)[ended])

    def other(rows, value):
        changed = torch.where(rows.view(2, 40, 1, 1), value, batch.next_action)
        return learner.td_target(replace(batch, next_action=changed), learner.prepare(batch.next_obs))

    assert torch.equal(other(batch.done == 1, torch.nan), target)
    going_on = batch.done == 0
    assert (other(going_on, 0.9) - target).transpose(1, 2)[going_on].abs().min() > 0


@pytest.mark.parametrize("mixer", [False, True])
def test_where_time_ran_out_critics_learn_nothing_but_policies_do(mixer):
    def state(change: str):
        learner, batch = narrow_learner(mixer=mixer), batch_of(2)
        batch.alive = None
        out_of_time = ((batch.done == 1) & (batch.terminated == 0)).view(2, 40, 1)
        if change == "reward":
            batch.reward = torch.where(out_of_time, 50.0, batch.reward)
        elif change == "action":
            batch.action = torch.where(out_of_time.unsqueeze(3), 0.5, batch.action)
        learner.update(batch)
        return learner.state_dict()

    before, rewarded, acted = state("nothing"), state("reward"), state("action")
    assert all(torch.equal(tensor, rewarded[key]) for key, tensor in before.items())
    assert torch.equal(before["critic.0.weight"], acted["critic.0.weight"])
    assert not torch.equal(before["policy.0.weight"], acted["policy.0.weight"])


def test_dead_agents_teach_nothing():
    states = []
    for value in (0.0, 0.7):
        learner, batch = narrow_learner(), batch_of(2)
        batch.action = torch.where(batch.alive.unsqueeze(3), batch.action, value)
        learner.update(batch)
        states.append(learner.state_dict())
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


@pytest.mark.parametrize("mixer", [False, True])
def test_the_policy_beats_the_behaviour_and_without_weights_equals_it(continuous, mixer):
    def gained(temperature: float) -> float:
        learner = bandits.trained("icq", continuous, mixer=mixer, policy_temperature=temperature)
        reached = bandits.continuous_reward(OBS, learner.act(OBS)).mean()
        return float((reached - behaviour) / (best - behaviour))

    behaviour = bandits.continuous_reward(OBS, bandits.behaviour(OBS)).mean()
    best = bandits.continuous_reward(OBS, 0.8 * OBS[..., :1]).mean()
    assert gained(0.5) > 0.7
    if not mixer:
        assert gained(ICQConfig.policy_temperature) > 0.3
        assert abs(gained(1e6)) < 0.15


def test_the_mixers_weights_are_not_negative_and_its_total_grows_with_every_value(continuous):
    learner = bandits.train(
        make_learner("icq", continuous.spec, {"hidden": (16, 16), "mixer": True}, (0, 1)), continuous, 30
    )
    batch = continuous.sample(200, [torch.Generator().manual_seed(seed) for seed in range(2)])
    obs, action = learner.prepare(batch.obs), batch.action.transpose(1, 2)
    _, weight, bias = learner.mixing(learner.mixer, obs, action, None)
    assert weight.min() > 0
    assert weight.std(2).min() > 1e-4  # it looks at the state
    torch.testing.assert_close(weight.sum(1), torch.ones(2, 200))
    q = torch.randn(2, 2, 200)
    total = learner.q_total(q, weight, bias)
    for agent in range(2):
        higher = q.clone()
        higher[:, agent] += 1
        assert (learner.q_total(higher, weight, bias) > total).all()


def test_with_a_mixer_rewards_are_added_up_in_one_unit(continuous):
    scaled = continuous.with_reward(continuous.column("reward") * torch.tensor([1.0, 10.0]))
    learner = make_learner("icq", continuous.spec, {"mixer": True, "share": False})
    learner.observe(scaled.statistics())
    assert learner.rewards.scale[0] == learner.rewards.scale[1]
    batch = scaled.sample(64, [torch.Generator().manual_seed(0)])
    target = learner.td_target(batch, learner.prepare(batch.next_obs))
    torch.testing.assert_close(target.squeeze(1), batch.reward.mean(2) * learner.rewards.scale[0])


def state_task(with_state: bool):
    task = bandits.spec().model_copy(update={"state_names": ("left", "right")})
    g = torch.Generator().manual_seed(0)
    obs, action = torch.randn(300, 2, 3, generator=g), torch.rand(300, 2, 1, generator=g)
    others = {"state": torch.randn(300, 2, generator=g)} if with_state else {}
    return bandits.one_step(task, obs, action, torch.randn(300, 2, generator=g), **others)


def test_the_mixer_sees_the_state_where_the_task_has_one():
    task = state_task(True)
    learner = make_learner("icq", task.spec, {"mixer": True})
    learner.observe(task.statistics())
    assert learner.mixer.sizes[0] == 2 * 3 + 2
    batch = task.sample(50, [torch.Generator().manual_seed(0)])
    obs, action = learner.prepare(batch.obs), batch.action.transpose(1, 2)
    seen = [learner.mixing(learner.mixer, obs, action, state)[1] for state in (batch.state, 1 + batch.state)]
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    learner.update(batch)

    lacking = state_task(False).statistics()
    with pytest.raises(DataError, match=r"does not record the state: set learner\.critic_sees_state=false"):
        make_learner("icq", task.spec, {"mixer": True}).observe(lacking)
    make_learner("icq", task.spec, {"mixer": True, "critic_sees_state": False}).observe(lacking)


@pytest.mark.parametrize("share", [False, True])
def test_with_a_mixer_a_seed_alone_equals_the_seed_in_a_stack(continuous, share):
    values = {"hidden": (16, 16), "mixer": True, "share": share}
    alone = bandits.train(make_learner("icq", continuous.spec, values, (1,)), continuous, 20, 64).state_dict()
    stacked = bandits.train(
        make_learner("icq", continuous.spec, values, (0, 1, 2)), continuous, 20, 64
    ).state_dict()
    compared = [key for key in alone if key.endswith(("weight", "bias"))]
    assert {"mixer.0.weight", "target_mixer.2.bias", "log_sd.0.bias", "value.0.weight"} <= set(compared)
    for key in compared:
        torch.testing.assert_close(alone[key], stacked[key][1:2], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("mixer", [False, True])
def test_a_checkpoint_in_a_file_goes_on_identically(continuous, mixer, tmp_path):
    def made():
        return make_learner("icq", continuous.spec, {"hidden": (16, 16), "mixer": mixer}, (0, 1))

    first = bandits.train(made(), continuous, 3, 32)
    save_file(first.state_dict(), tmp_path / "checkpoint.safetensors")
    second = made()
    second.load_state_dict(load_file(tmp_path / "checkpoint.safetensors"))
    assert torch.equal(first.act(OBS.expand(2, -1, -1, -1)), second.act(OBS.expand(2, -1, -1, -1)))
    for learner in (first, second):
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        for _ in range(3):
            learner.update(continuous.sample(32, generators))
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key
    if mixer:
        with pytest.raises(DataError, match="no tensor 'mixer"):
            second.load_state_dict(
                {k: v for k, v in first.state_dict().items() if not k.startswith("mixer.")}
            )


def test_actions_beyond_an_agents_own_width_are_zero_and_teach_nothing():
    learner = narrow_learner(share=False)
    action = learner.act(torch.randn(2, 6, 2, 3))
    assert (action[..., 1, 1] == 0).all()
    assert (action[..., 0, 1] != 0).all()
    before = learner.log_sd.flat.view(2, 2, 2).clone()
    learner.update(batch_of(2))
    moved = learner.log_sd.flat.view(2, 2, 2) != before
    assert moved.tolist() == [[[True, True], [True, False]]] * 2
