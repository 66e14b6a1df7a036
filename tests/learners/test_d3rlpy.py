"""d3rlpy's algorithms as learners: the same numbers as d3rlpy alone, and the same promises as the own learners."""

import sys

import bandits
import numpy as np
import pytest
import torch

from offmarl.errors import UsageError
from offmarl.learners.registry import learner_class, make_learner
from offmarl.streams import stream, stream_seed

pytest.importorskip("d3rlpy")

SMALL = {"hidden": (16, 16)}
# Every family of algorithm: values, imitation, a VAE, an index of the dataset, Q alone, a categorical policy.
KINDS = [
    ("iql", "continuous"),
    ("td3_plus_bc", "continuous"),
    ("bcq", "continuous"),
    ("prdc", "continuous"),
    ("cql", "discrete"),
    ("sac", "discrete"),
    ("bc", "discrete"),
]


def learner_of(name, transitions, seeds=(0,), **values):
    return make_learner(f"d3rlpy:{name}", transitions.spec, {**SMALL, **values}, seeds)


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


def test_one_agent_learns_what_d3rlpy_alone_learns():
    """The reference: d3rlpy's own classes, its NumPy batches and its own `update`."""
    import d3rlpy
    from d3rlpy.dataset import TransitionMiniBatch

    task = bandits.spec(agents=1, actions=(2,))
    g = stream(0, "one")
    obs, action = torch.randn(64, 1, 3, generator=g), torch.rand(64, 1, 2, generator=g) * 2 - 1
    table = bandits.one_step(task, obs, action, torch.randn(64, 1, generator=g))
    learner = learner_of(
        "iql",
        table,
        normalise_observations=False,
        standardise_rewards=False,
        centre_rewards=False,
        expectile=0.9,
    )
    learner.observe(table.statistics())
    encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=[16, 16])
    alone = d3rlpy.algos.IQLConfig(
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        value_encoder_factory=encoder,
        expectile=0.9,
    ).create()
    torch.manual_seed(stream_seed(0, "d3rlpy", "initial", 0))
    alone.create_impl((3,), 2)
    for step in range(5):
        batch = table.sample(32, [stream(step, "batch")])
        learner.update(batch)
        torch.manual_seed(stream_seed(0, "d3rlpy", "update", step))
        alone.update(
            TransitionMiniBatch(
                observations=batch.obs[0, :, 0].numpy(),
                actions=batch.action[0, :, 0].numpy(),
                rewards=batch.reward[0].numpy(),
                next_observations=batch.next_obs[0, :, 0].numpy(),
                next_actions=batch.next_action[0, :, 0].numpy(),
                terminals=batch.terminated[0].unsqueeze(1).numpy(),
                intervals=np.ones((32, 1), dtype=np.float32),
                transitions=[],
            )
        )
    ours = learner.networks[0][0].modules
    for name, module in alone.impl.modules.get_torch_modules().items():
        for key, tensor in module.state_dict().items():
            torch.testing.assert_close(ours.get_torch_modules()[name].state_dict()[key], tensor)
    expected = alone.predict(obs[:8, 0].numpy())
    torch.testing.assert_close(learner.act(obs[:8].unsqueeze(0))[0, :, 0], torch.from_numpy(expected))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_restored_learner_goes_on_identically(data, name, kind):
    first = bandits.train(learner_of(name, data[kind], (0, 1)), data[kind], 3, 32)
    second = learner_of(name, data[kind], (0, 1))
    second.load_state_dict(first.state_dict())
    second.see(data[kind])
    for learner in (first, second):
        torch.manual_seed(hash(learner) % 1000)  # the global generator does not matter
        generators = [stream(seed, "more") for seed in range(2)]
        for _ in range(3):
            metrics = learner.update(data[kind].sample(32, generators))
    same(first, second)
    assert metrics
    assert all(value.shape == (2,) and value.isfinite().all() for value in metrics.values())


def test_a_checkpoint_holds_the_moments_of_optimisers(data):
    learner = bandits.train(learner_of("iql", data["continuous"], share=False), data["continuous"], 2, 32)
    state = learner.state_dict()
    assert float(state["network.0.1.actor_optim.0.step"]) == 2
    assert state["network.0.1.critic_optim.0.exp_avg_sq"].abs().sum() > 0
    assert {"normaliser.reward_mean", "network.0.0.policy._mu.weight"} <= state.keys()


@pytest.mark.parametrize("share", [False, True])
def test_a_seed_alone_equals_the_seed_beside_others(data, share):
    transitions = data["continuous"]
    alone = bandits.train(learner_of("awac", transitions, (1,), share=share), transitions, 3, 32).state_dict()
    both = bandits.train(
        learner_of("awac", transitions, (0, 1), share=share), transitions, 3, 32
    ).state_dict()
    names = [name for name in alone if name.startswith("network.0.")]
    assert len([name for name in names if name.endswith("policy._mu.weight")]) == (1 if share else 2)
    for name in names:
        assert torch.equal(alone[name], both[name.replace("network.0.", "network.1.", 1)]), name


def test_nothing_is_drawn_from_the_global_generator(data):
    learner = bandits.train(learner_of("sac", data["continuous"]), data["continuous"], 1, 32)
    before = torch.get_rng_state()
    learner.update(data["continuous"].sample(32, [stream(0, "x")]))
    learner.act(torch.randn(1, 4, 2, 3, generator=stream(0, "y")))
    assert torch.equal(torch.get_rng_state(), before)


def test_policies_that_draw_candidates_act_the_same_twice(data):
    learner = bandits.train(learner_of("bcq", data["continuous"]), data["continuous"], 2, 32)
    obs = torch.randn(1, 5, 2, 3)
    assert torch.equal(learner.act(obs), learner.act(obs))


@pytest.mark.parametrize("share", [False, True])
def test_agents_of_different_width_get_their_own_dimensions(share):
    task = bandits.spec(actions=(1, 3))
    g = stream(0, "wide")
    action = torch.rand(64, 2, 3, generator=g) * 2 - 1
    action[:, 0, 1:] = 0
    obs = torch.randn(64, 2, 3, generator=g)
    table = bandits.one_step(task, obs, action, torch.randn(64, 2, generator=g))
    acted = bandits.train(learner_of("td3_plus_bc", table, share=share), table, 2, 32).act(obs.unsqueeze(0))
    assert acted.shape == (1, 64, 2, 3)
    assert (acted[..., 0, 1:] == 0).all()
    assert (acted[..., 1, :] != 0).all()


@pytest.mark.parametrize("name", ["cql", "sac", "bc", "bcq"])
@pytest.mark.parametrize("share", [False, True])
def test_only_legal_choices_are_made_and_the_own_choice_where_it_is_legal(data, name, share):
    transitions = data["discrete"]
    learner = bandits.train(learner_of(name, transitions, share=share), transitions, 5, 32)
    obs = torch.randn(1, 200, 2, 3, generator=stream(0, "obs"))
    free = learner.act(obs)
    legal = torch.rand(1, 200, 2, 4, generator=stream(0, "legal")) < 0.5
    legal[..., 1] |= ~legal.any(-1)
    chosen = learner.act(obs, legal)
    assert legal.gather(-1, chosen.unsqueeze(-1)).all()
    was_legal = legal.gather(-1, free.unsqueeze(-1)).squeeze(-1)
    assert torch.equal(chosen[was_legal], free[was_legal])
    assert not was_legal.all()


def test_values_decide_among_the_legal_choices(data):
    learner = bandits.train(learner_of("dqn", data["discrete"], share=False), data["discrete"], 5, 32)
    obs = torch.randn(1, 50, 2, 3, generator=stream(0, "obs"))
    values = torch.stack(
        [
            learner.networks[0][agent]._q_func_forwarder.compute_expected_q(learner.prepare(obs)[0, agent])
            for agent in range(2)
        ],
        dim=1,
    )  # [B, N, K]
    legal = torch.tensor([True, False, True, False]).expand(1, 50, 2, 4)
    expected = values.masked_fill(~legal[0], -torch.inf).argmax(-1)
    assert torch.equal(learner.act(obs, legal)[0], expected)


def test_they_learn(data):
    """Twice as near to the best action as the behaviour is; random choices are right one time in three."""
    transitions = data["continuous"]
    learner = bandits.trained(
        "d3rlpy:td3_plus_bc", transitions, 300, learning_rate=3e-3, alpha=10.0, update_actor_interval=1
    )
    obs = transitions.column("obs")[transitions.transition_rows][None, :500]
    error = (learner.act(obs)[..., 0] - 0.8 * obs[..., 0]).abs().mean()
    assert error < 0.5 * (bandits.behaviour(obs)[..., 0] - 0.8 * obs[..., 0]).abs().mean()
    discrete = data["discrete"]
    learner = bandits.trained("d3rlpy:dqn", discrete, 300, learning_rate=3e-3, target_update_interval=20)
    obs = discrete.column("obs")[discrete.transition_rows][None, :500]
    assert (learner.act(obs) == bandits.best_choice(obs)).float().mean() > 0.85


def test_settings_are_d3rlpys_own(data):
    spec = data["continuous"].spec
    learner = make_learner(
        "d3rlpy:cql",
        spec,
        {
            "n_critics": 3,
            "conservative_weight": 2.0,
            "q_func_factory": {"type": "qr", "params": {"n_quantiles": 7}},
            "gradient_clip": 1.5,
            "critic_learning_rate": 1e-2,
        },
    )
    made = learner.networks[0][0]
    assert len(made.modules.q_funcs) == 3
    assert made._conservative_weight == 2.0
    assert made.modules.q_funcs[0]._fc.out_features == 7
    assert made.modules.q_funcs[0]._encoder._layers[0].out_features == 256
    assert made.modules.critic_optim._clip_grad_norm == 1.5
    assert made.modules.critic_optim.optim.param_groups[0]["lr"] == 1e-2
    assert made.modules.actor_optim.optim.param_groups[0]["lr"] == 1e-4  # d3rlpy's default
    one_for_all = make_learner("d3rlpy:cql", spec, {"learning_rate": 5e-3})
    assert one_for_all.networks[0][0].modules.actor_optim.optim.param_groups[0]["lr"] == 5e-3


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("iqll", {}, "unknown d3rlpy algorithm 'iqll': did you mean iql"),
        ("", {}, "known: awac, bc, bcq"),
        ("nope", {}, "known: awac, (?!.*decision_transformer)"),
        ("dqn", {}, "no continuous actions.*d3rlpy:iql"),
        ("decision_transformer", {}, "window of past steps.*d3rlpy:iql"),
        ("cal_ql", {}, "needs the return that followed"),
        ("random_policy", {}, "learns nothing"),
        ("iql", {"expectil": 0.9}, "did you mean expectile"),
        ("iql", {"expectile": "high"}, "learner.expectile='high'"),
        ("iql", {"batch_size": 7}, "unknown setting of learner 'batch_size'"),
        ("cql", {"q_func_factory": {"type": "qrr"}}, "type of learner.q_func_factory 'qrr': did you mean qr"),
        ("cql", {"q_func_factory": {"kind": "qr"}}, "'kind' is not known"),
        ("cql", {"q_func_factory": {"type": "qr", "params": {"n_quantile": 7}}}, "did you mean n_quantiles"),
        ("bc", {"policy_type": "nonsense"}, "d3rlpy refuses these settings of bc"),
        ("bc", {"hidden": ()}, "learner.hidden"),
        ("iql", {"gamma": 1.5}, "learner.gamma=1.5"),
        ("cql", {"n_action_samples": 0}, "learner.n_action_samples=0"),
        ("td3_plus_bc", {"update_actor_interval": 0}, "learner.update_actor_interval=0"),
        ("iql", {"tau": 0}, "learner.tau=0"),
        ("iql", {"expectile": 1.0}, "learner.expectile=1.0"),
        ("bcq", {"lam": 7}, "learner.lam=7"),
        ("awac", {"lam": 0}, "learner.lam=0"),
        ("sac", {"initial_temperature": 0}, "learner.initial_temperature=0"),
        ("sac", {"actor_learning_rate": 0}, "learner.actor_learning_rate=0"),
        ("iql", {"actor_encoder_factory": {"type": [1]}}, "type of learner.actor_encoder_factory"),
        ("iql", {"actor_encoder_factory": {"type": "vector", "params": [1]}}, r"params=\[1\]: expected"),
        *[
            (
                "iql",
                {"actor_encoder_factory": {"type": "vector", "params": {"hidden_units": sizes}}},
                r"learner\.actor_encoder_factory: hidden_units=",
            )
            for sizes in ([], [0], 8)
        ],
        ("iql", {"actor_encoder_factory": {"type": "pixel"}}, "AssertionError without a reason"),
        (
            "td3",
            {"q_func_factory": {"type": "qr", "params": {"n_quantiles": 0}}},
            "learner.q_func_factory: n_quantiles=0: .*greater than or equal to 1",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(data, name, values, message):
    with pytest.raises(UsageError, match=message):
        make_learner(f"d3rlpy:{name}", data["continuous"].spec, values)


def test_every_algorithm_of_the_documentation_is_found():
    for name in ["awac", "bc", "bcq", "bear", "cql", "crr", "iql", "plas", "prdc", "sac", "td3_plus_bc"]:
        assert learner_class(f"d3rlpy:{name}", "continuous").action_type == "continuous"
    for name in ["bc", "bcq", "cql", "double_dqn", "dqn", "nfq", "sac"]:
        assert learner_class(f"d3rlpy:{name}", "discrete").action_type == "discrete"


def test_nan_is_told_as_divergence(data):
    learner = bandits.train(learner_of("sac", data["continuous"], share=True), data["continuous"], 1, 32)
    with torch.no_grad():
        next(learner.networks[0][0].modules.policy.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"policy.* is not finite"):
        learner.update(data["continuous"].sample(32, [stream(0, "x")]))
    assert learner.to_lower()["actor_learning_rate"] == 3e-4


def test_activations_that_are_no_numbers_are_told_as_divergence(data):
    """As PLAS's are while its parameters still are: a distribution of PyTorch's refuses them, and prints them all."""
    learner = learner_of("plas", data["continuous"], share=True)

    def update(batch, step):
        return torch.distributions.Normal(torch.full((27, 4), float("nan")), 1.0)

    learner.networks[0][0].update = update
    with pytest.raises(FloatingPointError, match="parameters are not finite"):
        learner.update(data["continuous"].sample(32, [stream(0, "x")]))


def test_what_d3rlpy_refuses_at_an_update_is_told_in_one_line(data):
    learner = learner_of("crr", data["continuous"], share=True, advantage_type="foo")
    with pytest.raises(
        UsageError, match=r"refuses these settings of crr, {.*'advantage_type': 'foo'}: "
    ) as refused:
        learner.update(data["continuous"].sample(32, [stream(0, "x")]))
    assert "\n" not in str(refused.value)


def test_without_d3rlpy_one_line_says_what_to_install(monkeypatch, data):
    from offmarl.learners import d3rlpy, d3rlpy_settings

    d3rlpy.d3rlpy_learner.cache_clear()
    d3rlpy_settings._algorithms.cache_clear()
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    with pytest.raises(UsageError, match=r'pip install "offmarl\[d3rlpy\]"'):
        make_learner("d3rlpy:iql", data["continuous"].spec)
    monkeypatch.undo()
    make_learner("d3rlpy:iql", data["continuous"].spec)
