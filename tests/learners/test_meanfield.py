import pytest
import torch
from battles import AGENTS, learner_of, sources, spec_of, states, trained
from torch.testing import assert_close

from offmarl.envs.magent_render import renderers, scene
from offmarl.errors import UsageError
from offmarl.learners.meanfield.cmfq import CMFQ
from offmarl.learners.meanfield.q_learning import MeanFieldQ
from offmarl.learners.meanfield.seen import neighbours_of
from offmarl.learners.registry import LEARNERS, learner_class, make_learner
from offmarl.streams import stream

pytest.importorskip("magent2")

ALL = [name for name, kinds in LEARNERS.items() if "rendered" in kinds]
WEIGHING = ["mfq", "attention_mfq", "random_mfq", "cmfq"]


@pytest.fixture(scope="module")
def spec():
    return spec_of()


@pytest.fixture(scope="module")
def cmfq(spec) -> CMFQ:
    """Trained so long that what neighbours do matters to it."""
    learner = trained(learner_of("cmfq", spec, (0, 1), beta=10.0, alpha=0.0), 100)
    assert isinstance(learner, CMFQ)
    return learner


def seen_by(learner, state):
    """Everybody on the left side, [S, E * n]."""
    renderer = next(iter(renderers(learner.spec).values()))
    S, E = len(learner.seeds), len(state)
    unit = torch.arange(AGENTS).repeat(S, E)
    repeated = state.repeat_interleave(AGENTS, 0).expand(S, -1, -1)
    return learner.look(renderer, repeated, unit, [stream(0, "look")] * S)


def full_pass(learner, index, inputs, action):
    """Q of one seed by a network put together from the checkpoint's tensors, without any split."""
    kind = next(iter(learner.actors))
    t = {name: tensor[index, 0] for name, tensor in learner.actors[kind].tensors().items()}
    hidden = (inputs @ t["trunk_0.weight"] + t["trunk_0.bias"]).relu()
    embedded = (action @ t["embedding.weight"] + t["embedding.bias"]).relu()
    both = torch.cat([hidden, embedded], dim=-1) @ torch.cat([t["state.weight"], t["action.weight"]])
    merged = (both + t["state.bias"] + t["action.bias"]).relu()
    return merged @ t["head.weight"] + t["head.bias"]


def test_interventions_by_shared_parts_are_those_by_full_passes(cmfq):
    state = states(cmfq.spec, 4, stream(1, "test"))
    seen = seen_by(cmfq, state)
    renderer = next(iter(renderers(cmfq.spec).values()))
    network = cmfq.actors[renderer.kind.name]
    z = network.state_part(seen.inputs)
    effects = cmfq.causal_effects(network, z, seen.counts)
    near = renderer.neighbours(state).flatten(0, 1)  # [E * n, M]
    last = scene(renderer.grid, state).action.repeat_interleave(AGENTS, 0)
    beta, compared, largest = cmfq.config.beta, 0, 0.0
    for index in range(len(cmfq.seeds)):
        for unit in range(len(near)):
            inputs, counts = seen.inputs[index, unit], seen.counts[index, unit]
            average = counts / counts.sum().clamp(min=1)
            policy = torch.log_softmax(beta * full_pass(cmfq, index, inputs, average), dim=-1)
            for neighbour in (near[unit] & (last[unit] >= 0)).nonzero().flatten():
                action = int(last[unit, neighbour])
                intervened = torch.nn.functional.one_hot(torch.tensor(action), 21).float()
                counterfactual = torch.log_softmax(beta * full_pass(cmfq, index, inputs, intervened), dim=-1)
                effect = (policy.exp() * (policy - counterfactual)).sum()
                assert_close(effects[index, unit, action], effect.clamp(min=0), atol=1e-4, rtol=1e-4)
                compared, largest = compared + 1, max(largest, float(effect))
    assert compared > 50, "somebody has neighbours"
    assert largest > 0.05, "the network was trained until neighbours mattered"
    assert (effects >= 0).all()


def test_with_a_large_epsilon_it_is_mfq(cmfq):
    mfq = learner_of("mfq", cmfq.spec, (0, 1))
    same = learner_of("cmfq", cmfq.spec, (0, 1), beta=10.0, epsilon=1e6)
    for learner in (mfq, same):
        learner.load_state_dict(cmfq.state_dict())
    seen = seen_by(cmfq, states(cmfq.spec, 6, stream(2, "test")))
    kind = next(iter(cmfq.actors))
    q = {learner: learner.outputs(learner.actors[kind], seen) for learner in (cmfq, mfq, same)}
    assert_close(q[same], q[mfq], atol=1e-5, rtol=1e-5)
    assert float((q[cmfq] - q[mfq]).detach().abs().max()) > 1e-2, "with a small one it is not"


@pytest.mark.parametrize("scope", ["own", "both"])
@pytest.mark.parametrize("name", WEIGHING)
def test_weights_lie_on_the_simplex(spec, name, scope):
    learner = trained(learner_of(name, spec, (0, 1), scope=scope), 20)
    state = states(spec, 8, stream(3, "test"), dead=0.6)
    state[0, renderers(spec)["red"].grid.columns["health"]] = 0
    state[0, renderers(spec)["red"].grid.columns["health"].start] = 1  # one lonely unit
    for renderer in renderers(spec).values():
        near, weight = learner.weights(state.expand(2, -1, -1), renderer)
        total = weight.sum(3)
        assert (weight >= 0).all()
        assert not weight[~near].any()
        assert_close(total, near.any(3).float(), atol=1e-5, rtol=0)
        assert {0.0, 1.0} == set(total.round(decimals=4).unique().tolist()), "some have neighbours, some none"
        others = torch.ones(near.shape[3], dtype=torch.bool)
        others[renderer.slots] = False
        assert bool(near[..., others].any()) == (scope == "both")
        seen = learner.look(
            renderer, state.repeat_interleave(AGENTS, 0).expand(2, -1, -1),
            torch.arange(AGENTS).repeat(2, 8), [stream(0, "look")] * 2,
        )  # fmt: skip
        network = learner.actors[renderer.kind.name]
        mean = learner.mean_action(network, network.state_part(seen.inputs), seen)
        one = seen.counts.sum(2) == 1
        assert one.any()
        assert_close(mean[one], seen.counts[one], atol=1e-5, rtol=0)
        assert not mean[seen.counts.sum(2) == 0].any()
        if name != "random_mfq":  # which draws anew
            acted = scene(renderer.grid, state).action.long().clamp(min=0).view(1, 8, 1, -1).expand_as(weight)
            by_action = torch.zeros(*weight.shape[:3], renderer.choices).scatter_add_(3, acted, weight)
            assert_close(mean, by_action.flatten(1, 2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", WEIGHING)
def test_a_unit_sees_who_is_near_whether_its_state_is_its_own_or_shared(spec, name):
    learner = learner_of(name, spec, (0, 1), scope="both")
    renderer = renderers(spec)["red"]
    state = states(spec, 6, stream(5, "test"), dead=0.5).view(2, 3, -1)
    unit, copy = torch.arange(AGENTS).repeat(2, 3), torch.arange(3).repeat_interleave(AGENTS).expand(2, -1)
    own = torch.stack([state[seed, copy[seed]] for seed in range(2)])
    alone = neighbours_of(renderer, own, unit, "both", None)
    shared = neighbours_of(renderer, state, unit, "both", None, copy)
    for field in ("near", "number", "action", "attributes"):
        assert_close(getattr(alone, field), getattr(shared, field))
    acted = scene(renderer.grid, own.flatten(0, 1)).action >= 0
    expected = renderer.neighbours(own.flatten(0, 1), unit.view(-1, 1), "both").squeeze(1) & acted
    assert 1 < alone.near.shape[2] < renderer.grid.movers, "places for those who are near alone"
    movers = renderer.grid.movers
    assert_close(alone.over_all(alone.near.float(), movers).flatten(0, 1), expected.float())
    health = scene(renderer.grid, own.flatten(0, 1)).health[:, :movers]
    found = alone.over_all(alone.attributes[..., 2], movers).flatten(0, 1)
    assert_close(found, health * expected)
    state[..., renderer.grid.columns["action"]] = -1  # nobody has acted
    lonely = learner.look(renderer, state, unit, [stream(0, "look")] * 2, copy)
    network = learner.actors[renderer.kind.name]
    mean = learner.mean_action(network, network.state_part(lonely.inputs), lonely)
    assert mean.shape == (2, 3 * AGENTS, renderer.choices)
    assert not mean.any()


def test_independent_q_learning_looks_at_nobody(spec):
    learner = learner_of("idqn", spec)
    state = states(spec, 3, stream(4, "test"))
    renderer = renderers(spec)["red"]
    near, weight = learner.weights(state.unsqueeze(0), renderer)
    assert near.any()
    assert not weight.any()
    columns = renderer.grid.columns["action"]
    other = state.clone()
    other[:, columns.start + 1 : columns.stop] = 3.0  # everybody but the first did something else
    q = [seen_by(learner, one).inputs[:, ::AGENTS] for one in (state, other)]
    assert_close(q[0], q[1])


@pytest.mark.parametrize("name", ALL)
def test_a_seed_alone_equals_the_seed_in_a_stack(spec, name):
    stack, alone = (trained(learner_of(name, spec, seeds), 6) for seeds in ((0, 1), (1,)))
    kind = next(iter(alone.actors))
    assert_close(stack.actors[kind].flat[1:], alone.actors[kind].flat, atol=1e-6, rtol=1e-5)
    assert not torch.equal(stack.actors[kind].flat[0], stack.actors[kind].flat[1])
    state, renderer = states(spec, 4, stream(5, "test")), renderers(spec)["blue"]
    generators = [stream(0, "act"), stream(1, "act")]
    together = stack.choose(state.expand(2, -1, -1), renderer, 0.3, generators)
    if name != "random_mfq":  # whose draws fill up the seed with fewer living units
        assert torch.equal(together[1:], alone.choose(state.unsqueeze(0), renderer, 0.3, [stream(1, "act")]))
    greedy = stack.choose(state.expand(2, -1, -1), renderer, 0.0, [stream(0, "act"), stream(1, "act")])
    of_seed = stack.of_seed(1).choose(state.unsqueeze(0), renderer, 0.0, [stream(1, "act")])
    assert name == "random_mfq" or torch.equal(greedy[1:], of_seed)


@pytest.mark.parametrize("name", ["mfq", "cmfq", "attention_mfq", "bc"])
def test_convolutions_learn_and_stack(spec, name):
    stack, alone = (trained(learner_of(name, spec, seeds, trunk="conv"), 3, 8) for seeds in ((0, 1), (1,)))
    kind = next(iter(alone.actors))
    # Adam makes full steps of gradients that differ in nothing but rounding, where they are almost zero.
    difference = (stack.actors[kind].flat[1:] - alone.actors[kind].flat).abs()
    assert float(difference.mean()) < 1e-6
    assert float(difference.max()) < 1e-3
    start = learner_of(name, spec, (1,), trunk="conv").actors[kind]
    for layer, tensor in alone.actors[kind].tensors().items():
        if layer != "key.bias":  # the same for all neighbours
            assert not torch.equal(tensor, start.tensors()[layer]), f"{layer} does not learn"


@pytest.mark.parametrize("name", ALL)
def test_training_goes_on_where_it_stopped(spec, name):
    through = trained(learner_of(name, spec), 8)
    generators = [stream(0, "batches")]
    half = trained(learner_of(name, spec), 4, generators=generators)
    resumed = learner_of(name, spec, learning_rate=5e-3)
    resumed.load_state_dict(half.state_dict())
    trained(resumed, 4, generators=generators)
    for tensor, value in through.tensors().items():
        assert torch.equal(value, resumed.tensors()[tensor]), tensor


@pytest.mark.parametrize("values", [{"scope": "both"}, {"radius": 3.0}])
def test_settings_of_neighbours_are_refused_by_who_has_none(spec, values):
    with pytest.raises(UsageError, match="looks at no neighbours"):
        learner_of("idqn", spec, **values)


@pytest.mark.parametrize("name", ["cmfq", "attention_mfq", "idqn", "bc"])
def test_names_and_sides_do_not_matter(spec, name):
    """Units that change places, and armies that change sides, are told the same."""
    steps = 0 if name == "bc" else 20  # after so few a clone always stays
    learner = trained(learner_of(name, spec), steps)
    state = states(spec, 6, stream(6, "test"))
    red, blue = renderers(spec).values()
    columns = red.grid.columns
    order = torch.randperm(AGENTS, generator=stream(0, "order"))
    shuffled, swapped = state.clone(), state.clone()
    for where in (columns[part] for part in ("x", "y", "action", "reward", "health")):
        mine = state[:, where][:, :AGENTS]
        shuffled[:, where] = torch.cat([mine[:, order], state[:, where][:, AGENTS:]], 1)
        swapped[:, where] = torch.cat([state[:, where][:, AGENTS:], mine], 1)
    act = [stream(0, "act")]
    chosen = learner.choose(state.unsqueeze(0), red, 0.0, act)
    assert len(chosen.unique()) > 2
    assert torch.equal(learner.choose(shuffled.unsqueeze(0), red, 0.0, act), chosen[:, :, order])
    assert torch.equal(learner.choose(swapped.unsqueeze(0), blue, 0.0, act), chosen)


def test_it_acts_for_more_units_than_it_was_trained_with(spec):
    learner = trained(learner_of("cmfq", spec), 5)
    large = spec_of(agents=30)
    state = states(large, 2, stream(7, "test"), dead=0.5)
    for renderer in renderers(large).values():
        chosen = learner.choose(state.unsqueeze(0), renderer, 0.5, [stream(0, "act")])
        alive = scene(renderer.grid, state).alive[:, renderer.slots]
        assert chosen.shape == (1, 2, 30)
        assert not chosen[0][~alive].any(), "the dead get 0"
        assert chosen[0][alive].any()
    nobody = torch.zeros_like(state)
    assert not learner.choose(nobody.unsqueeze(0), renderer, 1.0, [stream(0, "act")]).any()


def test_exploration_takes_its_share(spec):
    learner = learner_of("mfq", spec)
    state = states(spec, 60, stream(8, "test"), dead=0.0).unsqueeze(0)
    renderer = renderers(spec)["red"]
    greedy = learner.choose(state, renderer, 0.0, [stream(0, "act")])
    noisy = learner.choose(state, renderer, 0.3, [stream(0, "act")])
    share = float((noisy != greedy).float().mean())
    assert 0.3 * 20 / 21 - 0.06 < share < 0.3 * 20 / 21 + 0.06
    always = learner.choose(state, renderer, 1.0, [stream(0, "act")])
    assert always.unique().tolist() == list(range(21))


@pytest.mark.parametrize("name", ["mfq", "cmfq", "attention_mfq"])
def test_it_learns_to_do_what_neighbours_did(spec, name):
    learner = trained(learner_of(name, spec, alpha=0.0), 100)
    batch = learner.sample(sources(spec), 400, [stream(9, "test")])["small"]
    best = learner.outputs(learner.actors["small"], batch.now).argmax(2)
    sure = batch.now.counts.max(2).values >= 2  # where a favourite is one
    agreement = float((best == batch.now.counts.argmax(2))[sure].float().mean())
    assert agreement > 0.3, "by chance it is 0.05"


def test_the_conservative_term_keeps_to_the_data(spec):
    learners = [trained(learner_of("mfq", spec, alpha=alpha), 40) for alpha in (0.0, 2.0)]
    batch = learners[0].sample(sources(spec), 200, [stream(10, "test")])
    free, held = (learner.update(batch)["conservative_gap"] for learner in learners)
    assert float(held) < float(free) - 0.05


def test_targets_end_with_a_unit(spec):
    learner = learner_of("mfq", spec, gamma=0.9, standardise_rewards=False)
    assert isinstance(learner, MeanFieldQ)
    batch = learner.sample(sources(spec), 50, [stream(11, "test")])["small"]
    assert_close(learner.td_target("small", batch), batch.reward)
    going = type(batch)(batch.now, batch.action, batch.reward, batch.next, torch.ones_like(batch.reward))
    best = learner.outputs(learner.actors["small"], batch.next).argmax(2, keepdim=True)
    value = learner.outputs(learner.targets["small"], batch.next).gather(2, best).squeeze(2)
    assert_close(learner.td_target("small", going), batch.reward + 0.9 * value)


def test_causal_effects_are_reported_over_neighbours(cmfq):
    batch = cmfq.sample(sources(cmfq.spec), 64, [stream(12, "test"), stream(13, "test")])["small"]
    network = cmfq.actors["small"]
    effects = cmfq.causal_effects(network, network.state_part(batch.now.inputs), batch.now.counts)
    found = cmfq.effect_quantiles("small", batch)
    for index in range(2):
        repeats = batch.now.counts[index].flatten().long()
        everybody = effects[index].flatten().repeat_interleave(repeats)
        for name, quantile in (("effect_median", 0.5), ("effect_q99", 0.99)):
            exact = torch.quantile(everybody, quantile, interpolation="lower")
            upper = torch.quantile(everybody, quantile, interpolation="higher")
            assert float(exact) - 1e-6 <= float(found[name][index]) <= float(upper) + 1e-6
    assert {"effect_median", "effect_q99"} <= set(cmfq.update({"small": batch}))


def test_causal_effects_do_not_depend_on_the_unit_of_values(cmfq):
    other = learner_of("cmfq", cmfq.spec, (0, 1), beta=10.0)
    state = cmfq.state_dict()
    for name in state:
        if name.startswith("critic.small.head") or name == "normaliser.small.reward_scale":
            state[name] = 4 * state[name]
    other.load_state_dict(state)
    seen = seen_by(cmfq, states(cmfq.spec, 4, stream(16, "test")))
    effects = [
        learner.causal_effects(network, network.state_part(seen.inputs), seen.counts)
        for learner, network in ((one, one.actors["small"]) for one in (cmfq, other))
    ]
    assert_close(effects[0], effects[1], atol=1e-5, rtol=1e-3)
    assert torch.equal(other.of_seed(1).actors["small"].unit, 4 * torch.ones(1))


def test_predators_and_prey_have_a_network_each():
    pursuit = spec_of("magent_pursuit", agents=4, prey=8)
    learner = trained(learner_of("cmfq", pursuit, scope="both"), 3)
    assert list(learner.actors) == ["predator", "prey"]
    state = states(pursuit, 2, stream(14, "test"), dead=0.0).unsqueeze(0)
    for renderer in renderers(pursuit).values():
        assert learner.choose(state, renderer, 0.0, [stream(0, "act")]).max() < len(renderer.kind.actions)
    half = spec_of("magent_pursuit", agents=4, prey=8, background="prey")
    one = learner_of("cmfq", half)
    assert list(one.actors) == ["predator"]
    with pytest.raises(UsageError, match="prey of magent_pursuit is of a kind that was not trained"):
        one.choose(state, renderers(pursuit)["prey"], 0.0, [stream(0, "act")])


def test_what_does_not_fit_is_one_sentence(spec):
    plain = spec_of(minimap=False)
    learner = learner_of("mfq", spec)
    with pytest.raises(UsageError, match="give the same option minimap"):
        learner.choose(torch.zeros(1, 1, plain.state_dim), renderers(plain)["red"], 0.0, [stream(0, "act")])
    with pytest.raises(
        UsageError, match=r"learner 'cmfq' learns of battles .* those that do: bc, cfcql, cql"
    ):
        learner_class("cmfq", "continuous")
    with pytest.raises(UsageError, match=r"learner\.epsilon"):
        make_learner("cmfq", spec, {"epsilon": 0})


def test_learners_of_tables_still_take_rendered_tasks():
    assert learner_class("cql", "rendered") is learner_class("cql", "discrete")
    assert learner_class("bc", "rendered") is not learner_class("bc", "discrete")
