"""What learners learn, on tasks whose best action is known."""

import bandits
import pytest
import torch

from offmarl.learners.registry import LEARNERS, make_learner

OBS = torch.rand(1, 500, 2, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1


def test_cloning_equals_the_behaviour(continuous):
    learner = bandits.trained("bc", continuous)
    assert (learner.act(OBS) - bandits.behaviour(OBS)).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("name", "settings"), [("td3bc", {}), ("cql", {"alpha": 0.3, "learning_rate": 1e-2})]
)
def test_learners_of_values_beat_the_behaviour(continuous, name, settings):
    learner = bandits.trained(name, continuous, **settings)
    behaviour = bandits.continuous_reward(OBS, bandits.behaviour(OBS)).mean()  # noise would lower it further
    best = bandits.continuous_reward(OBS, 0.8 * OBS[..., :1]).mean()
    gained = (bandits.continuous_reward(OBS, learner.act(OBS)).mean() - behaviour) / (best - behaviour)
    assert gained > 0.5


def test_a_large_cloning_weight_stays_at_the_behaviour(continuous):
    near = bandits.trained("td3bc", continuous, bc_weight=1_000)
    assert (near.act(OBS) - bandits.behaviour(OBS)).abs().mean() < 0.05


def test_discrete_cloning_takes_the_majority_and_cql_the_best(discrete):
    legal = torch.tensor([True, True, True, False]).expand(1, 500, 2, 4)
    cloned = bandits.trained("bc", discrete).act(OBS, legal)
    assert (cloned == 1).float().mean() > 0.95
    chosen = bandits.trained("cql", discrete, alpha=0.1).act(OBS, legal)
    assert (chosen == bandits.best_choice(OBS)).float().mean() > 0.95


@pytest.mark.parametrize("name", [name for name, kinds in LEARNERS.items() if "discrete" in kinds])
def test_no_illegal_choice_is_ever_made(discrete, name):
    learner = make_learner(name, discrete.spec, {}, seeds=(0, 1))
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(2, 300, 2, 3, generator=generator) * 3
    legal = torch.rand(2, 300, 2, 4, generator=generator) < 0.4
    legal[..., 0] |= ~legal.any(-1)
    action = learner.act(obs, legal)
    assert action.shape == (2, 300, 2)
    assert action.dtype == torch.int64
    assert legal.gather(-1, action.unsqueeze(-1)).all()


def test_double_q_targets_ignore_illegal_successors(discrete):
    learner = make_learner("cql", discrete.spec, {"centre_rewards": False, "standardise_rewards": False})
    batch = discrete.sample_steps(64, [torch.Generator().manual_seed(0)])
    batch.terminated = torch.zeros_like(batch.terminated)
    batch.legal = torch.zeros(1, 64, 2, 2, 4, dtype=torch.bool)
    batch.legal[..., 3] = True
    q, target_q = learner.frames(learner.inputs(batch))
    assert (q[:, :, 1:].argmax(-1) != 3).any()
    expected = batch.reward + 0.95 * target_q[..., 3]
    torch.testing.assert_close(learner.td_target(batch, learner.double_q(q, target_q, batch)), expected)


def test_choices_an_agent_does_not_have_are_never_made():
    task = bandits.spec("discrete", actions=(5, 2))
    for name in ("bc", "cql", "cfcql", "icq", "iql", "omar"):
        action = make_learner(name, task).act(torch.randn(1, 500, 2, 3))
        assert action[..., 0].max() > 1
        assert action[..., 1].max() <= 1


def test_conservatism_lowers_actions_that_the_data_lacks():
    generator = torch.Generator().manual_seed(0)
    obs = torch.rand(2_000, 2, 3, generator=generator) * 2 - 1
    action = torch.rand(2_000, 2, 1, generator=generator) * 0.4 - 0.2
    data = bandits.one_step(bandits.spec(), obs, action, 0.5 * torch.randn(2_000, 2, generator=generator))

    def advantage_of_the_data(alpha: float) -> torch.Tensor:
        learner = bandits.trained("cql", data, alpha=alpha, steps=120)
        tried = torch.tensor([0.0, 0.9, -0.9]).view(1, 1, 1, 3, 1).expand(1, 2, 500, 3, 1)
        states = learner.inputs.states(learner.prepare(OBS), tried[..., 0, :], None)
        q = learner.q_values(learner.critic, states, tried)  # [2, S, N, B, 3]
        return q[..., 0] - q[..., 1:].amax(-1)

    conservative = advantage_of_the_data(2.0)
    assert (conservative > 0).float().mean() > 0.99
    assert conservative.mean() > advantage_of_the_data(0.0).mean() + 0.5


def test_policy_samples_keep_the_soft_maximum_unbiased():
    """With Q = 0 everywhere log ∫ exp Q da is log 2^A, however the actions were drawn."""
    for policy_samples in (0, 7):
        task = bandits.spec(actions=(2, 1))
        learner = make_learner("cql", task, {"policy_samples": policy_samples, "last_layer_bound": 3.0})
        sampled, log_density = learner.draw(learner.prepare(torch.randn(1, 4_000, 2, 3)))
        assert sampled.shape == (1, 2, 4_000, 10 + policy_samples, 2)
        assert sampled.abs().max() <= 1
        assert (sampled[:, 1, :, :, 1] == 0).all()  # the second agent has one dimension
        near = log_density[..., 10:]  # uniform on ±0.2, or less at the border
        if policy_samples:
            assert near.min() >= -2 * torch.tensor(0.4).log().abs() - 1e-5
        uniform = learner.soft_maximum(torch.zeros(1, 2, 4_000, 10), log_density[..., :10])
        torch.testing.assert_close(uniform[:, 0], torch.full((1, 4_000), 4.0).log())
        torch.testing.assert_close(uniform[:, 1], torch.full((1, 4_000), 2.0).log())


def test_td3bc_also_learns_online_without_cloning(continuous):
    learner = bandits.trained(
        "td3bc",
        continuous,
        bc_weight=0.0,
        normalise_q=False,
        share=True,
        action_penalty=1e-3,
        reward_sd=0.3,
        steps=500,
    )
    assert (learner.act(OBS) - 0.8 * OBS[..., :1]).abs().mean() < 0.2
