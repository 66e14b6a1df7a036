"""The mixer, sampled joint choices, and what mixing is for."""

import bandits
import episodes
import pytest
import torch

from offmarl.learners.mixers import MonotonicMixer, value_decomposition
from offmarl.learners.networks import StackedMLP
from offmarl.learners.registry import make_learner
from offmarl.streams import stream

N, E, D = 3, 4, 5


def mixer() -> MonotonicMixer:
    sizes = (D, 8, MonotonicMixer.outputs(N, E))
    generators = [stream(seed, "mixer") for seed in range(2)]
    return MonotonicMixer(StackedMLP.initialised((2, 1), 0, sizes, generators, torch.device("cpu")), N, E)


def test_the_mixer_is_the_papers_formula():
    made = mixer()
    state, q = torch.randn(2, 6, 3, D), torch.randn(2, 6, 3, N, 2)
    weights = made.network(state.flatten(1, 2)).view(2, 6, 3, -1)
    found = made(state)(q)
    for index in ((0, 0, 0), (1, 5, 2), (0, 3, 1)):
        w = weights[index]
        first, bias = w[: N * E].abs().view(E, N), w[N * E : N * E + E]
        second, value = w[N * E + E : N * E + 2 * E].abs(), w[-1]
        for joint in range(2):
            hidden = torch.nn.functional.elu(first @ q[index][:, joint] + bias)
            torch.testing.assert_close(found[index][joint], second @ hidden + value)


def test_the_team_gains_whatever_an_agent_gains():
    q = torch.randn(2, 50, 1, N, 1, requires_grad=True)
    mixed = mixer()(torch.randn(2, 50, 1, D))(q)
    (slope,) = torch.autograd.grad(mixed.sum(), q)
    assert (slope >= 0).all()
    assert slope.std() > 0
    torch.testing.assert_close(value_decomposition(q), q.sum(3))


def test_sampled_joint_choices_are_uniform_among_the_legal():
    data = episodes.battle()
    learner = make_learner("qmix_cql", data.spec, {"action_samples": 4_000, "trunk": "mlp"})
    batch = learner.sample(data, 6, [stream(0, "sample")])
    batch.legal[0, 0, 0, 0] = torch.tensor([False, True, False, True])
    drawn = learner.joint_choices(batch)
    assert drawn.shape == (1, 6, 1, 3, 4_000)
    share = torch.nn.functional.one_hot(drawn, 4).float().mean(4)
    legal = batch.legal_now.float()
    torch.testing.assert_close(share, legal / legal.sum(-1, keepdim=True), atol=0.04, rtol=0)
    assert (share[legal == 0] == 0).all()


def test_without_a_state_the_mixer_sees_all_observations_and_without_legality_all_choices():
    data = bandits.discrete()
    learner = make_learner("qmix_cql", data.spec, {"hidden": (16, 16)})
    assert learner.states.width == 6
    batch = learner.sample(data, 8, [stream(0, "sample")])
    torch.testing.assert_close(learner.states(batch)[0, :, 0], batch.obs[0, :, 0].flatten(1))
    batch.legal = None
    drawn = learner.joint_choices(batch)
    assert sorted(drawn.unique().tolist()) == [0, 1, 2, 3]
    narrow = make_learner("qmix_cql", bandits.spec("discrete", actions=(4, 2)))
    assert narrow.joint_choices(batch)[:, :, :, 1].max() == 1


def first_choice(name: str, **values: object) -> list[int]:
    data = episodes.two_step()
    settings = {"hidden": (32, 32), "gamma": 0.99, "alpha": 0.0, "trunk": "mlp", **values}
    if name == "qmix_cql":
        settings |= {"mixer_embedding": 16, "hypernet_hidden": 32, "action_samples": 5}
    learner = bandits.train(make_learner(name, data.spec, settings, (0, 1)), data, 400, 128)
    rows = torch.eye(3)[:, None, None, None].expand(3, 2, 1, 2, 3)
    assert (learner.act(rows[2]) == 1).all()  # everyone knows how to play the game that pays 8
    return learner.act(rows[0])[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("qmix_cql", {}, 1),
        ("qmix_cql", {"alpha": 0.1}, 1),
        ("qmix_cql", {"mixer": "vdn"}, 0),  # as the paper says: sums cannot represent the game that pays 8
        ("cql", {}, 0),
    ],
)
def test_only_the_monotonic_mixer_finds_the_game_that_pays_more(name, values, expected):
    assert first_choice(name, **values) == [expected, expected]


def test_conservatism_lowers_joint_choices_that_the_data_lacks():
    data = episodes.two_step(500)
    gap = {}
    for alpha in (0.0, 5.0):
        settings = {"hidden": (16, 16), "alpha": alpha, "trunk": "mlp", "learning_rate": 3e-3}
        learner = make_learner("qmix_cql", data.spec, settings)
        for step in range(80):
            batch = data.sample_steps(64, [stream(step, "lack")])
            batch.valid[batch.action.sum(3) == 2] = 0  # both 1: never seen
            learner.update(batch)
        state = torch.eye(3)[2].expand(1, 1, 2, 3)
        batch.obs, batch.state = state.unsqueeze(3).expand(-1, -1, -1, 2, -1), state
        with torch.no_grad():
            q = learner.run(learner.critic, learner.inputs(batch))[:, :, :1]
            mix = learner.mixers(batch)[0]
            lacking, seen = mix(q[..., 1].unsqueeze(4)), mix(q[..., 0].unsqueeze(4))
        gap[alpha] = float(lacking - seen)
    assert gap[5.0] < gap[0.0] - 0.5
