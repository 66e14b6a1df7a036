from dataclasses import asdict, replace

import pytest
import torch
from recording import record

from offmarl.credit.base import Credit
from offmarl.credit.coverage import exploration, overlap
from offmarl.credit.diagnosis import (
    Diagnosis,
    agreement_with_truth,
    ambiguity,
    expected_error,
    expected_skill,
    reproducibility,
)
from offmarl.credit.heads import FittedFunctions, RewardHeads, minimise, variables_seen
from offmarl.credit.locality import Locality, measure_locality
from offmarl.credit.macca import Macca, MaccaConfig
from offmarl.credit.samples import Samples, Scale
from offmarl.data.table import Transitions
from offmarl.streams import stream


@pytest.fixture
def truth() -> torch.Tensor:
    return torch.randn(4_000, 3, generator=stream(0, "truth"))


def test_the_truth_agrees_with_itself(truth):
    agreement = agreement_with_truth(truth + 5, truth, truth.sum(1))  # constants do not count
    assert agreement["pearson"] == pytest.approx(1)
    assert agreement["r2"] == pytest.approx(1)
    assert agreement["skill"] == pytest.approx(1)
    assert agreement["hijack"] == 0
    assert agreement["f1"] is None


def test_the_equal_split_has_no_skill(truth):
    team_reward = truth.sum(1)
    agreement = agreement_with_truth((team_reward / 3)[:, None].expand(-1, 3), truth, team_reward, equal=True)
    assert agreement["skill"] == pytest.approx(0)
    assert agreement["pearson"] == pytest.approx(3**-0.5, abs=0.05)
    assert agreement["hijack"] is None


def test_exchanged_heads_are_hijacked_and_harmful(truth):
    agreement = agreement_with_truth(truth[:, [1, 0, 2]], truth, truth.sum(1))
    assert agreement["hijack"] == pytest.approx(2 / 3)
    assert agreement["skill"] < -0.5


def test_where_all_are_paid_the_same_skill_is_undefined(truth):
    shared = truth[:, :1].expand(-1, 3)
    agreement = agreement_with_truth(shared, shared, shared.sum(1))
    assert agreement["skill"] is None
    assert agreement["pearson"] == pytest.approx(1)


def test_a_truth_that_never_changes_gives_no_number(truth):
    agreement = agreement_with_truth(truth, torch.ones_like(truth), truth.sum(1))
    assert agreement["pearson"] is None
    assert agreement["r2"] is None


@pytest.mark.parametrize("unit", [1e-9, 1e6])
def test_the_unit_of_the_reward_does_not_matter(truth, unit):
    estimate = truth + 0.3 * torch.randn(truth.shape, generator=stream(2, "error"))
    plain = agreement_with_truth(estimate, truth, truth.sum(1))
    scaled = agreement_with_truth(unit * estimate, unit * truth, unit * truth.sum(1))
    for name in ("pearson", "r2", "skill", "hijack"):
        assert scaled[name] == pytest.approx(plain[name], rel=1e-4)


def test_f1_counts_edges_of_all_agents(truth):
    masks = torch.tensor([[True, True, False], [False, False, True]])
    agreement = agreement_with_truth(
        truth[:, :2], truth[:, :2], truth[:, :2].sum(1), masks, ("a", "b", "c"), (("a",), ("c", "b"))
    )
    assert agreement["f1"] == pytest.approx(2 * 2 / (3 + 3))


def test_reproducibility_is_the_reliability_of_the_mean(truth):
    noise = torch.randn(5, 3, 4_000, generator=stream(1, "noise"))
    members = (
        truth.T + 0.5 * noise
    )  # signal and noise of variance 1 and 1/4, both less their mean over agents
    assert reproducibility(members).tolist() == pytest.approx([1 / (1 + 0.25 / 5)] * 3, abs=0.01)
    assert max(reproducibility(noise)) < 0.3


def test_ambiguity_is_in_units_of_the_answer(truth):
    point = truth.T
    first, second = (
        torch.stack([1.1 * point, point]),
        torch.stack([0.9 * point, point]),
    )  # two pairs of probes
    assert ambiguity(first, second, point).tolist() == pytest.approx([0.2] * 3, rel=1e-3)


def test_expected_skill_foresees_the_real_one(truth):
    estimate = truth + 0.4 * torch.randn(truth.shape, generator=stream(2, "error"))
    team_reward = truth.sum(1)
    exact = estimate + (team_reward - estimate.sum(1))[:, None] / 3
    real = agreement_with_truth(exact, truth, team_reward)["skill"]
    assert expected_skill(estimate.T, team_reward) == pytest.approx(real, abs=0.05)


def test_expected_error_foresees_the_real_one(truth):
    estimate = truth + 0.4 * torch.randn(truth.shape, generator=stream(2, "error"))
    team_reward = truth.sum(1)
    exact = estimate + (team_reward - estimate.sum(1))[:, None] / 3
    real = float((exact - truth).std())
    assert expected_error(estimate.T, team_reward) == pytest.approx(real, rel=0.05)


def test_a_contested_term_is_counted_as_another_agents(truth):
    term = 0.3 * truth[:, 0] * truth[:, 1]
    estimate = truth + torch.stack([term, -term, torch.zeros_like(term)], 1)  # paid to 0, belongs to 1
    team_reward = truth.sum(1)
    share = float(term.var() / team_reward.var())
    real = agreement_with_truth(estimate, truth, team_reward)["skill"]
    assert expected_skill(estimate.T, team_reward) == pytest.approx(1)
    assert expected_skill(estimate.T, team_reward, share) == pytest.approx(real, abs=0.05)


# -- verdicts and reasons ------------------------------------------------------------------------------------

TWO = ("a", "b")


def _diagnosis(**values) -> Diagnosis:
    good = {
        "fit_r2": 0.98,
        "expected_skill": 0.95,
        "expected_error": 0.1,
        "probed_skill": 0.9,
        "ambiguity": (0.1, 0.2),
        "reproducibility": (0.99, 0.98),
        "std_median": 0.05,
        "locality": _locality(),
        "exploration": (0.9, 0.8),
        "overlap": (0.1, 0.2),
        "episodes": 100,
        "varying": 1.0,
        "alive": 1.0,
    }
    return Diagnosis(**(good | values))


def _locality(**values) -> Locality:
    return Locality(
        **({"agents": (1.0, 1.0), "team_r2": 0.98, "overlooked": 0.0, "contested": (0.0, 0.0)} | values)
    )


def test_a_good_fit_stands():
    diagnosis = _diagnosis()
    assert diagnosis.reason_to_fall_back(TWO) == ""
    assert diagnosis.cautions(TWO) == []
    assert diagnosis.verdict(0) == "identified"
    assert diagnosis.metrics()["locality"] == 1


def test_doubts_are_named():
    assert "b 0.50" in _diagnosis(reproducibility=(0.99, 0.5)).reason_to_fall_back(TWO)
    assert "R² 0.27" in _diagnosis(fit_r2=0.27, expected_skill=-1.0).reason_to_fall_back(TWO)
    assert _diagnosis(expected_skill=0.1).reason_to_fall_back(TWO) == ""
    assert "needs 0.4" in _diagnosis(expected_skill=0.3, ambiguity=(0.8, 1.0)).reason_to_fall_back(TWO)
    assert _diagnosis(ambiguity=(0.1, 0.9)).verdict(1) == "identified up to a shared term"
    untested = _diagnosis(ambiguity=(None, None), probed_skill=None)
    assert untested.verdict(0).startswith("not tested")
    assert untested.cautions(TWO) == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"fit_r2": float("-inf")}, "fit_r2"),
        ({"expected_skill": float("nan")}, "expected_skill"),
        ({"ambiguity": (0.1, float("nan"))}, "ambiguity of b"),
        ({"reproducibility": (float("nan"), 0.9)}, "reproducibility of a"),
    ],
)
def test_a_figure_that_is_no_number_is_a_doubt(values, named):
    reason = _diagnosis(**values).reason_to_fall_back(TWO)
    assert f"could not be computed on the held-out transitions ({named})" in reason


def test_what_two_agents_could_be_paid_for_is_not_one_of_theirs():
    some = _diagnosis(locality=_locality(contested=(0.0, 0.09)))
    assert some.reason_to_fall_back(TWO) == ""
    assert [some.verdict(agent) for agent in range(2)] == ["identified", "identified up to a shared term"]
    much = _diagnosis(locality=_locality(contested=(0.0, 0.2))).reason_to_fall_back(TWO)
    assert "20% of the team reward" in much
    assert "in the rewards of b" in much


@pytest.mark.parametrize(
    ("values", "caution"),
    [
        ({"expected_skill": 0.7, "expected_error": 1.5}, "may be wrong by 1.5"),
        ({"probed_skill": 0.61}, "the expected skill is 0.61 instead of 0.95"),
        ({"reproducibility": (0.99, 0.7)}, "agree only in part (reproducibility: b 0.70)"),
        ({"locality": _locality(team_r2=0.49, agents=(0.4, 0.5))}, "only 50%"),
        ({"locality": _locality(overlooked=0.07)}, "7% of the team reward"),
        ({"alive": 0.9}, "agents die (10% of them are dead in the mean)"),
        ({"exploration": (0.9, 0.01)}, "the actions of b follow"),
    ],
)
def test_a_split_that_stands_comes_with_cautions(values, caution):
    diagnosis = _diagnosis(**values)
    assert diagnosis.reason_to_fall_back(TWO) == ""
    (only,) = diagnosis.cautions(TWO)
    assert caution in only


# -- locality: rewards of known form, taught to the heads directly --------------------------------------------


def _samples(own_dims: int = 3, n: int = 6_000) -> Samples:
    """Two agents with `own_dims` independent variables each; R is to be filled in."""
    drawn = torch.randn(n + 2_000, 2 * own_dims, generator=stream(0, "variables"))
    owner = torch.arange(2).repeat_interleave(own_dims)
    V = 2 * own_dims
    return Samples(
        inputs=drawn[:n],
        team_reward=torch.zeros(n),
        alive=torch.ones(n, 2),
        episode=torch.arange(n) // 10,
        rows=torch.arange(n),
        heldout_inputs=drawn[n:],
        heldout_team_reward=torch.zeros(2_000),
        heldout_alive=torch.ones(2_000, 2),
        heldout_rows=torch.arange(2_000),
        scale=Scale(torch.arange(V), torch.zeros(V), torch.ones(V), 0.0, 1.0),
        own=owner == torch.arange(2)[:, None],
        shared=torch.zeros(V, dtype=torch.bool),
        roles=[],
    )


def _locality_of(form, edges, left_out=None) -> Locality:
    """Teach two heads their rewards `form` (of x [n, 3], y [n, 3]) on `edges`; R has `left_out` besides."""
    samples = _samples()
    pay = {}
    for part in ("", "heldout_"):
        x, y = getattr(samples, part + "inputs").split(3, 1)
        pay[part] = torch.stack(form(x, y))  # [N, n]
        more = left_out(x, y) if left_out else 0.0
        setattr(samples, part + "team_reward", pay[part].sum(0) + more)
    variables, counts = variables_seen(torch.tensor(edges) > 0)
    gates = counts.float()[None]
    generator = stream(0, "heads")
    heads = RewardHeads(variables, gates.sum(2), 32, 2, generator)

    def loss(step: int) -> torch.Tensor:
        batch = torch.randint(6_000, (1, 256), generator=generator)
        return (heads(samples.inputs[batch], gates[None])[0] - pay[""][:, batch[0]]).square().mean()

    minimise(loss, [(heads.parameters, 1e-2)], range(500), 500, 50)
    return measure_locality(samples, FittedFunctions(heads, gates), 1, seed=0)


OWN_ONLY = [[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]
ONE_FOREIGN = [[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]]


def test_rewards_of_own_variables_are_local():
    found = _locality_of(lambda x, y: (x[:, 0] * x[:, 1], y[:, 0] * y[:, 1]), OWN_ONLY)
    assert found.agents == (1.0, 1.0)
    assert found.contested == (0.0, 0.0)
    assert found.overlooked < 0.02
    assert found.team_r2 > 0.95


def test_a_product_of_two_agents_variables_is_contested():
    found = _locality_of(lambda x, y: (x[:, 0] * y[:, 0] + x[:, 1], y[:, 1] * y[:, 2]), ONE_FOREIGN)
    assert found.contested[0] == pytest.approx(1 / 3, abs=0.1)  # of R, whose three terms have variance 1 each
    assert found.contested[1] == 0
    assert found.agents[0] == pytest.approx(0.5, abs=0.1)
    assert found.agents[1] == 1
    assert found.team_r2 == pytest.approx(2 / 3, abs=0.08)


def test_a_foreign_variable_that_acts_on_several_own_ones_is_not_contested():
    found = _locality_of(
        lambda x, y: (2 * torch.tanh(x[:, 0] + x[:, 1]) * y[:, 0], y[:, 1] * y[:, 2]), ONE_FOREIGN
    )
    assert found.contested == (0.0, 0.0)
    assert found.agents[0] < 0.1


def test_interactions_that_the_split_left_out_are_seen():
    found = _locality_of(
        lambda x, y: (x[:, 0] * x[:, 1], y[:, 0] * y[:, 1]), OWN_ONLY, lambda x, y: x[:, 2] * y[:, 2]
    )
    assert found.overlooked == pytest.approx(1 / 3, abs=0.08)
    noise = stream(1, "noise")
    found = _locality_of(
        lambda x, y: (x[:, 0] * x[:, 1], y[:, 0] * y[:, 1]),
        OWN_ONLY,
        lambda x, y: torch.randn(len(x), generator=noise),
    )
    assert found.overlooked < 0.03  # noise is not an interaction


# -- coverage -------------------------------------------------------------------------------------------------


def test_exploration_tells_chance_from_a_rule():
    samples = _samples(own_dims=5)
    action = torch.zeros(10, dtype=torch.bool)
    action[[4, 9]] = True  # each agent sees four variables and does one
    rule = torch.randn(4, 8, generator=stream(1, "rule"))
    for inputs in (samples.inputs, samples.heldout_inputs):
        inputs[:, 4] = torch.tanh(torch.relu(inputs[:, :4] @ rule) @ rule.T[:, 0])
    none = torch.zeros_like(action)
    ruled, free = exploration(samples, action, none, seed=0)
    assert ruled < 0.15
    assert free > 0.95
    assert exploration(samples, none, none, seed=0) == [0.0, 0.0]  # actions that never change


def test_overlap_tells_whether_causes_move_by_themselves():
    samples = _samples()
    edges = torch.zeros(2, 6, dtype=torch.bool)
    edges[0, 0] = edges[1, 3] = True
    assert max(overlap(samples, edges)) < 0.05
    samples.inputs[:, 3] = samples.inputs[:, 0] - samples.inputs[:, 1]
    first, second = overlap(samples, edges)
    assert second > 0.95  # agent 1 sees what agent 0 sees
    assert 0.4 < first < 0.6  # agent 0 sees more than that
    edges[0, 0], edges[0, 2] = False, True
    assert overlap(samples, edges)[0] < 0.05  # only causes count


# -- as `macca` answers ---------------------------------------------------------------------------------------


def test_every_agent_and_the_split_as_a_whole_are_diagnosed(scm, quick):
    transitions, _ = scm
    credit = _decomposed(transitions, quick)
    assert set(asdict(credit.agents[0])) == {
        *("name", "verdict", "ambiguity", "reproducibility", "locality", "exploration", "overlap")
    }
    assert [agent.verdict for agent in credit.agents] == ["identified"] * 3
    assert all(agent.locality == 1 and agent.exploration > 0.9 for agent in credit.agents)
    assert all(value is not None for value in credit.metrics.values())
    assert credit.metrics["locality"] == pytest.approx(1, abs=0.02)
    assert credit.metrics["contested"] == 0
    assert credit.edge_probability is not None
    assert 0 < credit.metrics["std_median"] < credit.metrics["expected_error"]


def test_a_fall_back_that_was_switched_off_is_still_said(scm, hasty):
    transitions, _ = scm
    credit = _decomposed(transitions, replace(hasty, structure_steps=20, refit_steps=5, fallback=False))
    assert credit.reason
    assert not credit.fallback
    assert {agent.verdict for agent in credit.agents} == {"not identified: kept as you asked"}


def _decomposed(transitions: Transitions, config: MaccaConfig) -> Credit:
    decomposer = Macca(transitions.spec, config)
    decomposer.fit(transitions)
    return decomposer.assign(transitions)


@pytest.mark.slow
@pytest.mark.parametrize("structure", range(3))
def test_rewards_that_have_nothing_to_do_with_the_owner_fall_back(structure):
    table, _ = record("scm_nonlocal", 50_000, options={"structure_seed": structure}, seed=structure)
    credit = _decomposed(table, MaccaConfig())
    assert credit.fallback
    assert "acting together" in credit.reason
    assert {agent.verdict for agent in credit.agents} == {"not identified: equal split"}


@pytest.mark.slow
@pytest.mark.parametrize("structure", range(3))
def test_neighbours_that_are_causes_do_not_fall_back(structure):
    table, _ = record("scm_b2", 50_000, options={"structure_seed": structure}, seed=structure)
    credit = _decomposed(table, MaccaConfig())
    assert not credit.fallback, credit.reason
    assert "variables of several agents act together" in credit.reason
