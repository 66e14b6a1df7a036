"""OMAR: what its search finds, and what it leads to."""

import bandits
import pytest
import torch

from offmarl.learners.registry import make_learner
from offmarl.streams import stream

OBS = torch.rand(1, 500, 2, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1


def states_of(learner, transitions, count=200):
    batch = transitions.sample(count, [stream(seed, "test") for seed in learner.seeds])
    return learner.inputs.states(
        learner.prepare(batch.obs), batch.action.transpose(1, 2).contiguous(), batch.state
    )


@pytest.mark.parametrize("critic", ["own", "joint", "central"])
def test_the_best_of_the_last_samples_and_the_policys_action_is_found(continuous, monkeypatch, critic):
    learner = make_learner("omar", continuous.spec, {"critic": critic, "last_layer_bound": 2.0}, seeds=(0, 1))
    states = states_of(learner, continuous)
    rated = []
    first_q = learner.first_q

    def recorded(states, own):
        rated.append((own, first_q(states, own)))
        return rated[-1][1]

    monkeypatch.setattr(learner, "first_q", recorded)
    found = learner.rectified(states)
    assert [own.shape[3] for own, _ in rated] == [10, 10, 11]
    own, q = rated[-1]  # the policy's action is the last
    torch.testing.assert_close(own[..., -1, :], learner.actions(learner.policy, states.obs)[0])
    torch.testing.assert_close(first_q(states, found.unsqueeze(3)).squeeze(3), q.amax(3))
    chosen = q.argmax(3)
    assert (chosen == 10).float().mean() < 0.5
    assert len(chosen.unique()) > 5


def test_the_search_closes_in_on_a_narrow_hill(continuous, monkeypatch):
    states = states_of(make_learner("omar", continuous.spec), continuous)

    def distance(rounds):
        learner = make_learner("omar", continuous.spec, {"rounds": rounds, "samples": 20})
        monkeypatch.setattr(learner, "first_q", lambda _, own: -20 * (own - 0.7).square().sum(-1))
        return float((learner.rectified(states) - 0.7).abs().mean())

    assert distance(3) < 0.03
    assert distance(1) > 2 * distance(3)


def test_samples_are_refitted_by_their_softmax():
    from offmarl.learners.omar import OMAR

    sampled = torch.tensor([[[0.0], [1.0]]])  # [A, K, B], all but K one
    mean, sd = OMAR.refitted(sampled, torch.tensor([[0.0, 3.0]]).log().nan_to_num(neginf=-1e9))
    torch.testing.assert_close(mean, torch.tensor([[[1.0]]]))
    assert 0 < sd < 0.01
    mean, sd = OMAR.refitted(sampled, torch.tensor([[1.0, 3.0]]).log())
    torch.testing.assert_close(mean, torch.tensor([[[0.75]]]))
    torch.testing.assert_close(sd.square(), torch.tensor([[[0.25 * 0.75]]]))


def test_narrower_agents_stay_narrow():
    task = bandits.spec(actions=(2, 1))
    learner = make_learner("omar", task, {"last_layer_bound": None})
    obs, action = torch.randn(1, 2, 50, 3), torch.zeros(1, 2, 50, 2)
    found = learner.rectified(learner.inputs.states(obs, action, None))
    assert (found[:, 1, :, 1] == 0).all()
    assert (found[:, 0] != 0).all()


def test_without_rectification_an_update_is_that_of_cql(continuous):
    """The search draws after everything else, so that numbers are the same until the second update."""
    pair = []
    for name, own in (("omar", {"coefficient": 0.0}), ("cql", {})):
        learner = make_learner(name, continuous.spec, {"hidden": (16, 16), **own})
        learner.observe(continuous.statistics())
        learner.update(continuous.sample(64, [stream(0, "sample")]))
        pair.append(learner.state_dict())
    for key, tensor in pair[1].items():
        assert key == "generators" or torch.equal(tensor, pair[0][key]), key


@pytest.mark.parametrize("settings", [{}, {"critic": "joint"}, {"share": True}])
def test_it_beats_the_behaviour(continuous, settings):
    learner = bandits.trained("omar", continuous, 150, alpha=0.3, learning_rate=1e-2, **settings)
    behaviour = bandits.continuous_reward(OBS, bandits.behaviour(OBS)).mean()
    best = bandits.continuous_reward(OBS, 0.8 * OBS[..., :1]).mean()
    gained = (bandits.continuous_reward(OBS, learner.act(OBS)).mean() - behaviour) / (best - behaviour)
    assert gained > 0.5
