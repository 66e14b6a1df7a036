"""Critics that see one agent or the whole team: gradients, what they see, what they value."""

from dataclasses import replace

import bandits
import pytest
import torch

from offmarl.data.table import Statistics
from offmarl.errors import DataError, UsageError
from offmarl.learners.registry import make_learner
from offmarl.streams import stream

LEARNERS = [
    ("td3bc", {}),
    ("td3bc", {"normalise_q": False, "bc_weight": 0.0, "action_penalty": 0.1}),
    ("cql", {}),
    ("cql", {"policy_samples": 3, "temperature": 2.0, "alpha": 0.7, "action_penalty": 0.1}),
    ("cql", {"sample_data_action": True, "policy_samples": 2}),
    ("omar", {}),
    ("cfcql", {"sharpness": 1.5}),
    ("cfcql", {"sharpness": 1.5, "sample_data_action": True}),
]
CASES = [
    (name, {"critic": critic, **settings})
    for name, settings in LEARNERS
    for critic in ("own", "joint", "central")
    if name != "cfcql" or critic == "central"
]


def joined(critic, obs, own, action):
    """Whole inputs of a critic, one agent after another: [S, N, B, K, own], the agent's own action varying."""
    S, N, B, K, _ = own.shape
    inputs = []
    for i in range(N):
        everyone = [action[:, j].unsqueeze(2).expand(S, B, K, -1) for j in range(N)]
        everyone[i] = own[:, i]
        seen = [obs[:, j].unsqueeze(2).expand(S, B, K, -1) for j in range(N)]
        others = [(i + shift) % N for shift in range(1, N)]
        inputs.append(
            {
                "own": [seen[i], own[:, i]],
                "joint": [seen[i], *(part for j in others for part in (seen[j], everyone[j])), own[:, i]],
                "central": [*seen, *everyone],
            }[critic]
        )
    return torch.stack([torch.cat(parts, dim=-1) for parts in inputs], dim=1)


@pytest.mark.parametrize(("share", "some_dead"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_one_update_descends_the_gradient_that_autograd_finds(name, settings, share, some_dead):
    """Of the losses as written, through networks evaluated on joined inputs; the second agent is narrower."""
    task = bandits.spec(agents=3, actions=(2, 1, 2))
    values = {"hidden": (16, 12), "share": share, "gradient_clip": None, "last_layer_bound": 0.5, **settings}
    learner = make_learner(name, task, values, seeds=(0, 1))
    twin = make_learner(name, task, values, seeds=(0, 1))
    g = stream(0, "test")
    obs = 3 * torch.randn(2, 3, 40, 3, generator=g)
    used = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).view(1, 3, 1, 2)
    action = (torch.rand(2, 3, 40, 2, generator=g) * 2 - 1) * used
    td_target = torch.randn(2, 3, 40, generator=g)
    states = learner.inputs.states(obs, action, None)
    if some_dead:
        alive = (torch.rand(2, 3, 40, generator=g) < 0.7).float()
        states = replace(states, counted=alive * 40 / alive.sum(2, keepdim=True))
    counted = torch.ones(2, 3, 40) if states.counted is None else states.counted

    def q_of(critics, own):
        rows = joined(settings["critic"], obs, own, action).flatten(2, 3)
        return critics(twin.critic_rows(rows)).view(*twin.critic_rows(own).shape[:3])

    def gradient(network, loss):
        found = torch.autograd.grad(loss, network.parameters())
        return torch.cat([part.flatten(1) for part in found], dim=1)

    own, *drawn = twin.tried(states)
    loss, _ = twin.critic_loss(
        q_of(twin.critic, own), *(twin.critic_rows(given) for given in (td_target, *drawn))
    )
    loss = loss * twin.critic_rows(counted)
    expected = gradient(twin.critic, loss.mean(1).sum())  # each network's mean over its rows
    metrics = learner.critic_step(states, td_target)
    same_gradient(learner.critic_optimiser, expected)
    norm = expected.norm(dim=1).view(2, 2, -1).mean((0, 2))
    torch.testing.assert_close(metrics["critic_gradient"], norm, atol=0, rtol=1e-4)

    twin.critic.flat.copy_(learner.critic.flat)
    towards = twin.rectified(states) if name == "omar" else action
    policy_action, z = twin.actions(twin.policy, obs)
    q = q_of(twin.critic, policy_action.unsqueeze(3)).view(2, 2, 3, 40)[0]
    loss = twin.policy_loss(q / twin.unit(q.detach(), states), policy_action, towards)
    loss = loss + twin.config.pre_tanh_penalty * z.square().mean(3)
    loss = loss + twin.config.action_penalty * policy_action.square().mean(3)
    loss = (loss * counted).mean(2)
    expected = gradient(twin.policy, twin.total(loss))
    metrics = learner.policy_step(states, action)
    same_gradient(learner.policy_optimiser, expected)
    torch.testing.assert_close(metrics["policy_loss"], loss.detach().mean(1), atol=1e-5, rtol=1e-5)


def same_gradient(optimiser, expected):
    """The first moment after one step is a tenth of the gradient."""
    found = 10 * optimiser.tensors()["exp_avg"]
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


def paid_by_the_other():
    """Each agent's reward is what the other one does."""
    g = stream(2, "bandit")
    obs = torch.rand(bandits.EPISODES, 2, 3, generator=g) * 2 - 1
    action = torch.rand(bandits.EPISODES, 2, 1, generator=g) * 2 - 1
    return bandits.one_step(bandits.spec(), obs, action, action[..., 0].flip(1))


@pytest.mark.parametrize("name", ["td3bc", "cql"])
def test_a_joint_critic_explains_what_others_cause_and_an_own_one_cannot(name):
    data = paid_by_the_other()
    settings = {"alpha": 0.1} if name != "td3bc" else {}

    def error(critic):
        learner = bandits.trained(name, data, steps=80, critic=critic, learning_rate=1e-2, **settings)
        return float(learner.update(data.sample(1_000, [stream(0, "test")]))["critic_loss"])

    assert error("own") > 0.8  # of a variance of 1
    assert error("joint") < 0.1


def test_the_target_takes_everyones_target_policy():
    """A critic that only adds the actions up must see them all, its own included, smoothed and clipped."""
    data = paid_by_the_other()
    for critic in ("joint", "central"):
        values = {"hidden": (4,), "critic": critic, "share": False, "target_noise": 0.0}
        learner = make_learner("td3bc", data.spec, values)
        learner.target_policy.biases[-1].copy_(torch.tensor([0.5, -2.0]).view(2, 1, 1))
        learner.target_policy.weights[-1].zero_()
        target = learner.target_critic
        for values in (*target.weights, *target.biases):
            values.zero_()
        target.weights[0][:, 6:, 0] = 1.0  # after two observations of 3
        target.biases[0][:, :, 0] = 10.0
        target.weights[1][:, 0] = 1.0
        batch = data.sample(5, [stream(0, "test")])
        batch.terminated = torch.zeros_like(batch.terminated)
        batch.reward = torch.zeros_like(batch.reward)
        found = learner.td_target(batch, learner.prepare(batch.next_obs))
        expected = 0.95 * (10 + torch.tensor([0.5, -2.0]).tanh().sum())
        torch.testing.assert_close(found, expected.expand_as(found))


def test_agents_that_share_a_joint_critic_are_told_apart_by_the_order_of_what_they_see():
    task = bandits.spec(agents=3, actions=(1, 1, 1))
    learner = make_learner("td3bc", task, {"critic": "joint", "share": True})
    obs, action = torch.randn(1, 3, 6, 3), torch.rand(1, 3, 6, 1)

    def q(shift):
        turned, acted = torch.roll(obs, shift, 1), torch.roll(action, shift, 1)
        return learner.first_q(learner.inputs.states(turned, acted, None), acted.unsqueeze(3))

    torch.testing.assert_close(q(1), torch.roll(q(0), 1, 1))
    assert (q(0)[:, 0] - q(0)[:, 1]).abs().min() > 1e-5


def test_a_central_critic_values_the_mean_reward_in_one_unit():
    data = paid_by_the_other()
    learner = make_learner("cql", data.spec, {"critic": "central", "share": False})
    moments = data.statistics()
    moments.reward_std.copy_(torch.tensor([1.0, 3.0]))
    learner.observe(moments)
    batch = data.sample(8, [stream(0, "test")])
    scale = 1 / (5.0**0.5)  # mean of the variances; rewards of tasks that terminate are not centred
    expected = scale * batch.reward.mean(2).unsqueeze(1).expand(1, 2, 8)
    target = learner.td_target(batch, learner.prepare(batch.next_obs))
    torch.testing.assert_close(target, expected, atol=1e-3, rtol=1e-3)
    assert learner.critic.copies == (2, 1, 1)


def test_a_state_is_seen_if_asked_for():
    task = bandits.spec().model_copy(update={"state_names": ("hidden", "still")})
    obs, action = torch.zeros(3_000, 2, 3), torch.zeros(3_000, 2, 1)
    state = torch.stack([100 + 30 * torch.randn(3_000, generator=stream(0, "test")), torch.ones(3_000)], 1)
    data = bandits.one_step(task, obs, action, state[:, :1].repeat(1, 2), state=state)
    moments = data.statistics()
    torch.testing.assert_close(moments.state_mean, state.mean(0))
    torch.testing.assert_close(moments.state_std, state.std(0, correction=0))
    for critic in ("own", "joint", "central"):
        losses = {}
        for seen in (False, True):
            learner = bandits.trained(
                "td3bc", data, 60, learning_rate=1e-2, critic=critic, critic_sees_state=seen
            )
            batch = data.sample(500, [stream(0, "test")])
            losses[seen] = float(learner.update(batch)["critic_loss"])
        assert losses[False] > 0.8
        assert losses[True] < 0.1
        assert "critic_inputs.state_mean" in learner.state_dict()


def test_a_state_that_is_not_there_is_refused_in_one_line():
    with pytest.raises(UsageError, match="task 'bandit' has no state"):
        make_learner("cql", bandits.spec(), {"critic": "joint", "critic_sees_state": True})
    task = bandits.spec().model_copy(update={"state_names": ("hidden",)})
    learner = make_learner("cql", task, {"critic": "joint", "critic_sees_state": True})
    zero = torch.zeros(2, 3)
    with pytest.raises(DataError, match="does not record the state"):
        learner.observe(Statistics(zero, zero, zero[:, 0], zero[:, 0]))
    with pytest.raises(UsageError, match=r"learner\.critic"):
        make_learner("cql", task, {"critic": "shared"})


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("critic", ["joint", "central"])
def test_a_seed_alone_equals_the_seed_in_a_stack(critic, share):
    data = bandits.continuous()
    values = {"critic": critic, "share": share, "steps": 20}
    alone = bandits.trained("omar", data, seeds=(1,), **values).state_dict()
    stacked = bandits.trained("omar", data, seeds=(0, 1, 2), **values).state_dict()
    for key, tensor in alone.items():
        if key.endswith(("weight", "bias")):
            other = stacked[key][:, 1:2] if "critic" in key else stacked[key][1:2]
            torch.testing.assert_close(tensor, other, atol=2e-5, rtol=1e-3)


def test_the_datas_action_among_the_sampled_keeps_q_from_being_pulled_apart():
    """Where the data know one action only, and its reward is always the same."""
    obs = torch.randn(256, 2, 3, generator=stream(0, "obs"))
    data = bandits.one_step(bandits.spec(), obs, torch.full((256, 2, 1), 0.5), torch.ones(256, 2))
    lead = {}
    for among in (False, True):
        settings = {"sample_data_action": among, "alpha": 5.0, "learning_rate": 1e-2}
        learner = bandits.trained("cql", data, 400, **settings)
        seen = learner.prepare(obs.unsqueeze(0))  # [1, N, B, O]
        action = torch.tensor([0.5, -0.5]).view(2, 1).expand(1, 2, 256, 2, 1)
        q = learner.first_q(learner.inputs.states(seen, action[..., 0, :], None), action)
        lead[among] = float((q[..., 0] - q[..., 1]).mean())
    assert lead[False] > 2 * lead[True] > 1
