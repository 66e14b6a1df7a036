"""ICQ, OMAR and CFCQL for choices: the equations of their papers; what they and IQL learn."""

import bandits
import episodes
import pytest
import torch
from episodes import batch_of, learner_of

from offmarl.learners.choice_policy import ChoicePolicy
from offmarl.learners.icq_discrete import DiscreteICQ
from offmarl.learners.registry import make_learner
from offmarl.streams import stream

OBS = torch.rand(1, 500, 2, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1
LEGAL = torch.tensor([True, True, True, False]).expand(1, 500, 2, 4)


# ---- what they learn


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("icq", {"policy_temperature": 0.5}),
        ("icq", {"policy_temperature": 0.5, "mixer": False}),
        ("iql", {"policy_temperature": 0.5}),
        ("omar", {"alpha": 0.1}),
        ("omar", {"alpha": 0.1, "coefficient": 0.0, "share": False}),
        ("omar", {"alpha": 0.1, "coefficient": 1.0}),
        ("cfcql", {"alpha": 0.1}),
        ("cfcql", {"alpha": 0.1, "sharpness": 0.0, "mixer": "vdn"}),
    ],
)
def test_they_find_the_best_where_the_behaviour_prefers_another(discrete, name, values):
    learner = bandits.trained(name, discrete, 90, learning_rate=1e-2, **values)
    chosen = learner.act(OBS, LEGAL)
    assert (chosen == bandits.best_choice(OBS)).float().mean() > 0.9


@pytest.mark.parametrize("name", ["icq", "iql"])
def test_policies_that_weigh_all_alike_are_clones(discrete, name):
    learner = bandits.trained(name, discrete, 60, learning_rate=1e-2, policy_temperature=1e3)
    assert (learner.act(OBS, LEGAL) == 1).float().mean() > 0.95


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("icq", {"policy_temperature": 0.5}),
        ("iql", {"policy_temperature": 0.5}),
        ("omar", {"alpha": 0.1}),
        ("cfcql", {"alpha": 0.1, "mixer_embedding": 8, "hypernet_hidden": 16}),
    ],
)
def test_with_a_memory_they_recall_what_a_single_step_does_not_show(name, values):
    data = episodes.recall()
    settings = {"hidden": (16, 16), "trunk": "gru", "learning_rate": 1e-2, **values}
    learner = bandits.train(make_learner(name, data.spec, settings), data, 100, 64)
    cue = torch.randint(2, (400, 2), generator=stream(3, "cue"))
    memory = torch.zeros(1, 400, 2, learner.memory_dim)
    for t in range(3):
        obs = torch.zeros(1, 400, 2, 3)
        obs[..., 0], obs[..., 1] = (2.0 * cue - 1) * (t == 0), t / 3
        action, memory = learner.step(obs, None, memory)
    assert (action == cue).float().mean() > 0.95


def test_cfcql_finds_the_game_that_pays_more_by_its_mixer():
    """The data is played at random, so returns of several of its steps would say nothing of what is best."""
    data = episodes.two_step()
    settings = {"hidden": (32, 32), "trunk": "mlp", "alpha": 0.1, "td_lambda": 0.0}
    settings |= {"mixer_embedding": 16, "hypernet_hidden": 32, "learning_rate": 3e-3}
    learner = bandits.train(make_learner("cfcql", data.spec, settings), data, 250, 128)
    rows = torch.eye(3)[:, None, None, None].expand(3, 1, 1, 2, 3)
    assert (learner.act(rows[2]) == 1).all()
    assert learner.act(rows[0])[0, 0, 0] == 1


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("trunk", ["gru", "mlp"])
@pytest.mark.parametrize("name", ["icq", "iql", "omar", "cfcql"])
def test_an_exported_policy_chooses_as_the_learner(battle, name, trunk, share):
    """By the actor where there is one, by the values of the critic in CFCQL."""
    learner = bandits.train(learner_of(name, battle, (0, 1), trunk=trunk, share=share), battle, 2, 8)
    g = stream(0, "frames")
    obs, memory = torch.randn(50, 3, 5, generator=g), torch.rand(50, 3, learner.memory_dim, generator=g)
    legal = torch.rand(50, 3, 4, generator=g) < 0.7
    legal[..., 0] = True
    both = [values.expand(2, *values.shape) for values in (obs, legal, memory)]
    action, after = learner.step(*both)
    exported = learner.exported(1)
    if trunk == "gru":
        found, remembered = exported(obs, legal, memory)
        torch.testing.assert_close(remembered, after[1])
    else:
        found = exported(obs, legal)
    assert torch.equal(found, action[1])
    actor = learner.tensors()["critic.0.weight" if name == "cfcql" else "policy.0.weight"][1, 0, :5]
    torch.testing.assert_close(exported.tensors()["0.weight"][0], actor)


# ---- ICQ


def test_importance_has_mean_one_over_what_counts_and_padding_has_none():
    exponent = torch.randn(2, 5, 4, 3, generator=stream(0, "rho"))
    counted = torch.rand(2, 5, 4, 3, generator=stream(1, "rho")) < 0.6
    exponent[~counted] = 1e4  # the largest by far, were they looked at
    rho = DiscreteICQ.importance(exponent, counted)
    assert (rho[~counted] == 0).all()
    for agent in range(3):
        mine, own = counted[0, :, :, agent], exponent[0, :, :, agent]
        expected = own[mine].exp() / own[mine].exp().mean()
        torch.testing.assert_close(rho[0, :, :, agent][mine], expected)
    torch.testing.assert_close(DiscreteICQ.importance(exponent[..., 0], counted[..., 0]), rho[..., 0])


def test_mixing_weights_sum_to_one_over_the_living(battle):
    learner = learner_of("icq", battle)
    batch = batch_of(learner, battle)
    weight, bias = learner.mixing(learner.mixer, learner.states(batch), batch.alive)
    assert weight.shape == batch.alive.shape
    assert bias.shape == batch.alive.shape[:3]
    assert (weight >= 0).all()
    assert (weight[~batch.alive] == 0).all()
    someone = batch.alive.any(3)
    torch.testing.assert_close(weight.sum(3)[someone], torch.ones(int(someone.sum())))
    assert weight[batch.alive].std() > 0.01


@pytest.mark.parametrize("mixer", [False, True])
def test_icq_targets_follow_the_datas_choices_and_end_where_those_do(battle, mixer):
    """One step at a time, λ = 0: r + γ ρ Q'(s', a'); unknown where time ran out."""
    learner = learner_of("icq", battle, mixer=mixer, td_lambda=0.0, gamma=0.9, critic_temperature=2.0)
    assert learner.batch_unit == "episodes"
    batch = batch_of(learner, battle)
    _, target_q = learner.frames(learner.inputs(batch))
    target, taught = learner.target(target_q, batch)
    weight, bias = (
        learner.mixing(learner.target_mixer, learner.states(batch), batch.alive) if mixer else (None,) * 2
    )
    values, places = [], []
    for b in range(16):
        for t in range(int(batch.valid[0, b].sum()) - 1):
            q = target_q[0, b, t].gather(1, batch.action[0, b, t + 1].unsqueeze(1)).squeeze(1)  # [N]
            if mixer:
                q = (weight[0, b, t + 1] * q).sum() + bias[0, b, t + 1]
            values.append(q)
            places.append((b, t))
    q = torch.stack(values)
    counted = torch.stack([batch.alive[0, b, t + 1] for b, t in places])
    for (b, t), value, lives in zip(places, q, counted, strict=True):
        reward = batch.reward[0, b, t]
        if mixer:
            rho = (value / 2).exp() / (q / 2).exp().mean()
            torch.testing.assert_close(target[0, b, t], reward.mean() + 0.9 * rho.clamp(max=1) * value)
            continue
        for agent in range(3):
            mean = (q[counted[:, agent], agent] / 2).exp().mean()
            rho = ((value[agent] / 2).exp() / mean).clamp(max=1)
            expected = reward[agent] + 0.9 * rho * value[agent] * lives[agent]
            torch.testing.assert_close(target[0, b, t, agent], expected)
    ends = 0
    for b in range(16):
        last = int(batch.valid[0, b].sum()) - 1
        ended = batch.terminated[0, b, last]
        assert taught.valid[0, b, last] == ended
        assert (taught.valid[0, b, :last] == 1).all()
        assert (taught.valid[0, b, last + 1 :] == 0).all()
        if ended:
            reward = batch.reward[0, b, last]
            torch.testing.assert_close(target[0, b, last], reward.mean() if mixer else reward)
            ends += 1
    assert 0 < ends < 16


def test_advantages_are_over_what_the_policy_would_choose(battle):
    learner = learner_of("icq", battle)
    batch = batch_of(learner, battle)
    logits, q = (
        learner.policy.logits(learner.inputs(batch), batch).detach(),
        torch.randn(*batch.action.shape, 4),
    )
    found = learner.advantage(q, logits, batch.action)
    legal = batch.legal_now[0, 0, 0, 1]
    probability = torch.zeros(4)
    probability[legal] = torch.softmax(logits[0, 0, 0, 1][legal], 0)
    expected = q[0, 0, 0, 1, batch.action[0, 0, 0, 1]] - (probability * q[0, 0, 0, 1]).sum()
    torch.testing.assert_close(found[0, 0, 0, 1], expected)


# ---- policies


def test_cloning_weighs_choices_and_the_dead_may_have_chosen_anything(battle):
    learner = learner_of("iql", battle, trunk="mlp", share=False, seeds=(0, 1))
    batch = batch_of(learner, battle)
    weight = torch.rand(batch.action.shape)
    weight[batch.weight == 0] = float("inf")
    weight = weight.nan_to_num(posinf=3e38)
    illegal = batch.legal_now.float().argmin(-1)
    batch.action = torch.where(batch.weight > 0, batch.action, illegal)
    logits = learner.policy.logits(learner.inputs(batch), batch)
    likelihood = torch.log_softmax(logits.detach(), -1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    before = learner.policy.network.flat.clone()
    metrics = learner.policy.clone(logits, batch, weight)
    per_agent = []
    for agent in range(3):
        rows = batch.weight[0, :, :, agent] > 0
        per_agent.append(-(weight * likelihood)[0, :, :, agent][rows].mean())
    torch.testing.assert_close(metrics["policy_loss"][0], torch.stack(per_agent).mean())
    assert learner.policy.network.flat.isfinite().all()
    assert not torch.equal(learner.policy.network.flat, before)


def test_policies_have_the_settings_and_the_place_in_checkpoints_of_their_learner(battle):
    learner = learner_of("iql", battle, gradient_clip=2.5)
    assert isinstance(learner.policy, ChoicePolicy)
    assert learner.policy.optimiser.gradient_clip == 2.5
    assert learner.actor is learner.policy.network
    state = learner.state_dict()
    assert "policy.head.weight" in state
    assert "policy_optimiser.exp_avg" in state


# ---- OMAR


def test_rectification_is_towards_the_best_legal_choice(battle):
    learner = learner_of("omar", battle, coefficient=1.0)
    batch = batch_of(learner, battle)
    q = torch.randn(*batch.action.shape, 4)
    unmasked_is_illegal = ~batch.legal_now.gather(-1, q.argmax(-1, keepdim=True)).squeeze(-1)
    assert unmasked_is_illegal.any()
    logits = learner.policy.logits(learner.inputs(batch), batch).detach().requires_grad_()
    (slope,) = torch.autograd.grad(learner.policy_loss(logits, q, batch).sum(), logits)
    best = q.masked_fill(~batch.legal_now, -torch.inf).argmax(-1, keepdim=True)
    counted = (batch.weight > 0) & (batch.legal_now.sum(-1) > 1)
    assert (slope.gather(-1, best).squeeze(-1)[counted] < 0).all()
    assert (slope[~batch.legal_now] == 0).all()
    assert (slope[batch.weight == 0] == 0).all()


def test_climbing_is_the_expected_policy_gradient_whatever_unit_values_have(battle):
    learner = learner_of("omar", battle, coefficient=0.0)
    batch = batch_of(learner, battle)
    q = torch.randn(*batch.action.shape, 4)
    logits = torch.randn(*batch.action.shape, 4).masked_fill(~batch.legal_now, -1e30).requires_grad_()
    (slope,) = torch.autograd.grad(learner.policy_loss(logits, q, batch).sum(), logits)
    policy = torch.softmax(logits.detach(), -1)
    advantage = q - (policy * q).sum(-1, keepdim=True)
    expected = -policy * advantage * batch.weight.unsqueeze(-1)
    assert (slope / expected)[batch.legal_now & (expected.abs() > 1e-3)].std() < 1e-3  # proportional
    (scaled,) = torch.autograd.grad(learner.policy_loss(logits, 9 * q + 4, batch).sum(), logits)
    torch.testing.assert_close(scaled, slope, atol=1e-6, rtol=1e-3)


def test_the_policy_chooses_and_the_target_critic_rates(battle, monkeypatch):
    learner = learner_of("omar", battle, (0, 1), trunk="gru")
    batch = batch_of(learner, battle)
    _, target_q = learner.frames(learner.inputs(batch))
    logits = learner.run(learner.policy.network, learner.inputs(batch))[:, :, 1:]
    choice = logits.masked_fill(~batch.legal[:, :, 1:], -torch.inf).argmax(-1, keepdim=True)
    expected = learner.td_target(batch, target_q.gather(-1, choice).squeeze(-1))
    found, critic_step = [], learner.critic_step
    monkeypatch.setattr(
        learner, "critic_step", lambda q, target, b: found.append(target) or critic_step(q, target, b)
    )
    learner.update(batch)
    torch.testing.assert_close(found[0], expected)


# ---- CFCQL


def test_counterfactuals_change_one_agents_choice(battle):
    learner = learner_of("cfcql", battle)
    batch = batch_of(learner, battle)
    joint = learner.joint_choices(batch).unflatten(4, (3, 4))  # [S, B, T, N, whose, K]
    for whose in range(3):
        for choice in range(4):
            expected = batch.action.clone()
            expected[..., whose] = choice
            assert torch.equal(joint[..., whose, choice], expected)


def test_the_gap_is_a_weighted_sum_of_each_agents_soft_maximum(battle):
    learner = learner_of("cfcql", battle)
    batch = batch_of(learner, battle)
    S, B, T, N = batch.action.shape
    q, q_data = torch.randn(S, B, T, N * 4), torch.randn(S, B, T)
    beta = learner.behaviour.logits(learner.inputs(batch), batch).detach()
    found = learner.conservative_gap(q, q_data, batch, beta)
    for b, t in ((0, 0), (3, 0), (7, 0), (9, 0)):
        living, soft, divergence = batch.alive[0, b, t], [], []
        for agent in range(N):
            legal = batch.legal_now[0, b, t, agent]
            mine = q[0, b, t].view(N, 4)[agent][legal]
            soft.append(mine.exp().sum().log())
            mu = torch.softmax(mine, 0)
            divergence.append((mu * (mu / torch.softmax(beta[0, b, t, agent][legal], 0)).log()).sum())
        gap = (torch.stack(soft) - q_data[0, b, t])[living]
        weight = torch.softmax(5 * torch.stack(divergence)[living], 0)
        torch.testing.assert_close(found[0, b, t], (weight * gap).sum())


def test_with_sharpness_zero_all_living_agents_weigh_the_same_and_nothing_is_cloned(battle):
    learner = learner_of("cfcql", battle, sharpness=0.0)
    batch = batch_of(learner, battle)
    weight = learner.weight(torch.randn(*batch.action.shape, 4), batch)
    living = batch.weight.sum(3, keepdim=True).clamp(min=1)
    torch.testing.assert_close(weight, batch.weight / living)
    assert not any("behaviour" in name for name in learner.tensors())
    assert "behaviour_loss" not in learner.update(batch)


def test_the_behaviour_is_cloned_alongside(discrete):
    learner = bandits.trained("cfcql", discrete, 100, learning_rate=1e-2)
    batch = batch_of(learner, discrete, 500)
    policy = torch.softmax(learner.behaviour.logits(learner.inputs(batch), batch).detach(), -1).mean(
        (0, 1, 2, 3)
    )
    torch.testing.assert_close(policy, torch.tensor([0.25, 0.5, 0.25, 0.0]), atol=0.04, rtol=0)
