"""IQL: the equations of its paper, for both kinds of actions."""

import bandits
import pytest
import torch
from episodes import batch_of, learner_of

from offmarl.streams import stream

OBS = torch.rand(1, 500, 2, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1


def test_values_go_to_the_expectile(battle):
    """Of values 0 and 1, equally often, the τ-expectile is τ."""
    learner = learner_of("iql", battle, expectile=0.8)
    values, v = torch.tensor([0.0, 1.0]), torch.tensor(0.3, requires_grad=True)
    descent = torch.optim.SGD([v], lr=0.2)
    for _ in range(100):
        descent.zero_grad()
        learner.value_loss(values - v).mean().backward()
        descent.step()
    torch.testing.assert_close(v.detach(), torch.tensor(0.8), atol=1e-3, rtol=0)


def test_iql_weights_are_exponential_in_units_of_spread_and_bounded(battle):
    learner = learner_of("iql", battle, policy_temperature=0.5, largest_weight=20.0)
    batch = batch_of(learner, battle)
    advantage = torch.randn(batch.action.shape) * 7
    found = learner.episode_weight(advantage, batch)
    for agent in range(3):
        rows = batch.weight[0, :, :, agent] > 0
        mine = advantage[0, :, :, agent][rows]
        expected = (2 * mine / mine.std(correction=0)).exp().clamp(max=20)
        torch.testing.assert_close(found[0, :, :, agent][rows], expected)
    assert found.max() == 20


def test_values_of_what_was_never_done_do_not_reach_iql(battle):
    """Neither targets nor weights look at choices beside the data's."""

    def state(bonus: float):
        learner = learner_of("iql", battle)
        learner.target_critic.biases[-1][..., 2] += bonus
        learner.critic.biases[-1].data[..., 2] += bonus
        batch = batch_of(learner, battle)
        batch.action[batch.action == 2] = 1
        learner.update(batch)
        return learner.state_dict()

    plain, raised = state(0.0), state(30.0)
    compared = [key for key in plain if key.endswith("exp_avg")]
    assert len(compared) == 3
    for key in compared:
        torch.testing.assert_close(raised[key], plain[key], rtol=1e-5, atol=1e-8)


# ---- continuous actions


def continuous_batch(learner, transitions):
    """Some rows of dead agents, some that end and some that go on."""
    batch = batch_of(learner, transitions, 60)
    g = stream(4, "rows")
    batch.alive = torch.rand(batch.reward.shape, generator=g) < 0.8
    batch.terminated = (torch.rand(batch.terminated.shape, generator=g) < 0.5).float()
    return batch


@pytest.mark.parametrize("share", [False, True])
def test_every_step_descends_the_gradient_that_autograd_finds(continuous, share):
    settings = {
        "gradient_clip": None,
        "share": share,
        "expectile": 0.8,
        "policy_temperature": 0.7,
        "gamma": 0.9,
    }
    learner, twin = (learner_of("iql", continuous, (0, 1), **settings) for _ in range(2))
    for one in (learner, twin):
        one.target_critic.flat.mul_(1.5)
    batch = continuous_batch(learner, continuous)
    obs, next_obs, action = (
        twin.prepare(batch.obs),
        twin.prepare(batch.next_obs),
        batch.action.transpose(1, 2),
    )
    alive = batch.alive.transpose(1, 2)
    rated = torch.cat([obs, action], 3)
    v = twin.apply(twin.value, obs).squeeze(3)
    u = twin.apply(twin.target_critic, rated).squeeze(3) - v
    asymmetric = torch.where(u > 0, 0.8, 0.2) * u.square()
    target = batch.reward.transpose(1, 2) + 0.9 * (1 - batch.terminated.unsqueeze(1)) * twin.apply(
        twin.value, next_obs
    ).squeeze(3)
    error = (twin.apply(twin.critic, rated).squeeze(3) - target.detach()).square()
    weight = torch.zeros_like(u)
    for seed in range(2):
        for agent in range(2):
            mine = alive[seed, agent]
            own = u.detach()[seed, agent][mine]
            weight[seed, agent][mine] = (own / (0.7 * own.std(correction=0))).exp().clamp(max=100)
    gaussian = torch.distributions.Normal(torch.tanh(twin.apply(twin.policy, obs)), 1.0)
    cloning = -(weight * gaussian.log_prob(action).squeeze(3)).mean(2)
    metrics = learner.update(batch)
    for name, each in (("value", asymmetric), ("critic", error), ("policy", None)):
        loss = cloning if each is None else (each * alive).sum(2) / alive.sum(2)
        torch.testing.assert_close(metrics[f"{name}_loss"], loss.detach().mean(1), atol=1e-5, rtol=1e-5)
        gradients = torch.autograd.grad(twin.total(loss), getattr(twin, name).parameters())
        expected = torch.cat([part.flatten(1) for part in gradients], 1)
        found = 10 * getattr(learner, f"{name}_optimiser").tensors()["exp_avg"]
        assert expected.abs().max() > 1e-3, name
        torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


def test_dead_agents_teach_nothing(continuous):
    results = []
    for noise in (0.0, 0.7):
        learner = learner_of("iql", continuous)
        batch = continuous_batch(learner, continuous)
        dead = ~batch.alive
        batch.obs = torch.where(dead.unsqueeze(3), batch.obs + noise, batch.obs)
        batch.action = torch.where(dead.unsqueeze(3), noise, batch.action)
        batch.reward = torch.where(dead, 5 * noise, batch.reward)
        learner.update(batch)
        results.append(learner.state_dict())
    for key, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][key], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("share", [False, True])
def test_it_beats_the_behaviour_of_continuous_data(continuous, share):
    learner = bandits.trained("iql", continuous, 200, learning_rate=1e-2, share=share, policy_temperature=0.5)
    behaviour = bandits.continuous_reward(OBS, bandits.behaviour(OBS)).mean()
    best = bandits.continuous_reward(OBS, 0.8 * OBS[..., :1]).mean()
    gained = (bandits.continuous_reward(OBS, learner.act(OBS)).mean() - behaviour) / (best - behaviour)
    assert gained > 0.5
