"""CFCQL: whose reward it climbs, and how agents are weighed. Gradients are in test_critics.py."""

import bandits
import pytest
import torch

from offmarl.errors import UsageError
from offmarl.learners.registry import make_learner
from offmarl.streams import stream

OBS = torch.rand(1, 500, 2, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1


def selfish():
    """What an agent gains the other one loses twice: good for each by its own reward, bad for the team."""
    g = stream(4, "bandit")
    obs = torch.rand(bandits.EPISODES, 2, 3, generator=g) * 2 - 1
    action = (0.4 * torch.randn(bandits.EPISODES, 2, 1, generator=g)).clamp(-1, 1)
    own = action.squeeze(-1)
    return bandits.one_step(bandits.spec(), obs, action, own - 2 * own.flip(1))


def test_it_climbs_what_the_team_earns():
    data = selfish()
    assert bandits.trained("cql", data, 120, alpha=0.3, learning_rate=1e-2).act(OBS).mean() > 0.3
    for sharpness in (0.0, 1.0):
        settings = {"alpha": 0.3, "sharpness": sharpness, "learning_rate": 1e-2}
        assert bandits.trained("cfcql", data, 120, **settings).act(OBS).mean() < -0.3


def test_it_learns_a_best_action_of_each_state():
    learner = bandits.trained("cfcql", bandits.continuous(), 150, alpha=0.3, learning_rate=1e-2)
    behaviour = bandits.continuous_reward(OBS, bandits.behaviour(OBS)).mean()
    best = bandits.continuous_reward(OBS, 0.8 * OBS[..., :1]).mean()
    gained = (bandits.continuous_reward(OBS, learner.act(OBS)).mean() - behaviour) / (best - behaviour)
    assert gained > 0.5


def test_the_loss_is_one_conservative_term_an_agent_weighed():
    learner = make_learner("cfcql", bandits.spec(agents=3, actions=(1, 1, 1)), {"alpha": 2.0})
    q, target = torch.randn(2, 3 * 7, 5), torch.randn(2, 7).repeat(1, 3)
    q[..., -1] = q[:, :7, -1].repeat(1, 3)  # one critic: all agents see the same value of the data
    share = torch.softmax(torch.randn(2, 3, 7), dim=1)
    log_density = torch.zeros(2, 3 * 7, 4)
    loss, _ = learner.critic_loss(q, target, log_density, 3 * share.flatten(1))
    by_agent = q.view(2, 3, 7, 5)
    soft = torch.logsumexp(by_agent[..., :-1], dim=-1) - torch.tensor(4.0).log()
    data = by_agent[:, 0, :, -1]
    expected = (data - target[:, :7]).square() + 2 * ((share * soft).sum(1) - data)
    torch.testing.assert_close(loss.mean(1), expected.mean(1))


@pytest.mark.parametrize("sharpness", [2.0, -2.0, 0.0])
def test_agents_near_the_behaviour_weigh_more_where_sharpness_is_positive(sharpness):
    data = bandits.continuous()
    learner = make_learner("cfcql", data.spec, {"hidden": (16,), "sharpness": sharpness, "share": False})
    bandits.train(learner, data, 100)
    learner.policy.biases[-1].detach()[1] += 2.0  # far from what the second agent did
    batch = data.sample(100, [stream(0, "test")])
    action = batch.action.transpose(1, 2).contiguous()
    weight = learner.weight(learner.inputs.states(learner.prepare(batch.obs), action, None))
    torch.testing.assert_close(weight.sum(1), torch.full((1, 100), 2.0))
    near, far = weight[0].mean(1)
    if sharpness:
        assert (near - far) * sharpness > 0.5
    else:
        assert (weight == 1).all()


def test_divergence_is_in_units_of_the_spread_of_behaviour():
    data = bandits.continuous()
    learner = bandits.trained("cfcql", data, 150, sharpness=1.0, learning_rate=1e-2)
    batch = data.sample(2_000, [stream(0, "test")])
    action = batch.action.transpose(1, 2).contiguous()
    states = learner.inputs.states(learner.prepare(batch.obs), action, None)
    policy_action = learner.actions(learner.policy, states.obs)[0]
    behaviour = bandits.behaviour(batch.obs).transpose(1, 2)
    expected = (policy_action - behaviour).square().mean() / (2 * 0.38**2)  # noise of 0.4, clipped
    torch.testing.assert_close(learner.divergence(states).mean(), expected, rtol=0.2, atol=0.02)


def test_another_critic_is_refused():
    with pytest.raises(UsageError, match=r"learner\.critic=joint goes with cql"):
        make_learner("cfcql", bandits.spec(), {"critic": "joint"})
