"""`additive`, `shapley` and `difference`: what they share, and each against its definition."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from recording import agreement, record
from torch import Tensor

from offmarl.credit.additive import Additive, AdditiveConfig
from offmarl.credit.base import Credit, Decomposer
from offmarl.credit.difference import Difference, DifferenceConfig, actions
from offmarl.credit.fitted import FitConfig
from offmarl.credit.macca_paper import MaccaPaperConfig
from offmarl.credit.registry import decomposer_class, make_decomposer
from offmarl.credit.regression import UNTESTED
from offmarl.credit.samples import living, split_episodes
from offmarl.credit.shapley import Shapley, ShapleyConfig
from offmarl.data.table import Transitions
from offmarl.streams import stream

SMALL = {
    "additive": AdditiveConfig(width=24, steps=60),
    "shapley": ShapleyConfig(width=32, steps=60, permutations=4),
    "difference": DifferenceConfig(width=32, steps=60, behaviour_width=16, behaviour_steps=60),
    "macca-paper": MaccaPaperConfig(reward_width=32, steps=60),
}
METHODS = pytest.mark.parametrize("method", SMALL)


def split(
    transitions: Transitions, method: str, config: FitConfig, seed: int = 0
) -> tuple[Decomposer, Credit]:
    decomposer = decomposer_class(method)(transitions.spec, config, seed)
    decomposer.fit(transitions)
    return decomposer, decomposer.assign(transitions)


@pytest.fixture(scope="session")
def small(scm) -> Transitions:
    """Enough for what does not depend on a good fit."""
    return scm[0].episodes(range(80))


@pytest.fixture(scope="module")
def choosing() -> Transitions:
    """Three agents with discrete actions; agent 2 has two choices of three, one is illegal now and then, agent 0
    dies. Everyone living is paid for its choice and what it observes."""
    generator = stream(0, "choosing")
    transitions, _ = record("scm_a", 3_000, options={"agents": 3})
    rows = len(transitions.row)
    spec = transitions.spec.model_copy(
        update={
            "action_type": "discrete",
            "action_names": (("stay", "go", "wait"), ("stay", "go", "wait"), ("stay", "go")),
            "obs_names": (("x", "y"),) * 3,
            "state_names": (),
            "state_owner": (),
            "causes": None,
        }
    )
    action = torch.stack([torch.randint(n, (rows,), generator=generator) for n in (3, 3, 2)], 1)
    legal = torch.ones(rows, 3, 3)
    legal[:, 2, 2] = 0
    legal[:, 1, 1] = (torch.rand(rows, generator=generator) > 0.4).float()
    action[:, 1] = torch.where(legal[:, 1, 1] > 0, action[:, 1], 2 * (action[:, 1] > 0).long())
    alive = torch.ones(rows, 3)
    alive[:, 0] = (torch.arange(rows) % (spec.horizon + 1) < 18).float()
    obs = transitions.column("obs")[:, :, :2] * alive[:, :, None]
    truth = ((action == 1).float() * (2 + obs[:, :, 0]) - (action == 0).float()) * alive
    arrays = {"obs": obs, "action": action, "legal": legal, "alive": alive, "team_reward": truth.sum(1)}
    arrays |= {name: transitions.column(name) for name in ("terminated", "truncated")}
    return Transitions.from_arrays(spec, arrays, transitions.episode_start)


@pytest.mark.parametrize(
    ("method", "config", "needed", "fit_r2"),
    [
        ("additive", AdditiveConfig(width=32, depth=2, steps=500), 0.3, 0.35),
        ("shapley", ShapleyConfig(width=64, steps=800, permutations=8), 0.7, 0.6),
        ("difference", DifferenceConfig(width=64, steps=1_000, behaviour_steps=200), 0.08, 0.5),
    ],
)
def test_disjoint_causes_are_paid_better_than_by_the_equal_split(scm, method, config, needed, fit_r2):
    decomposer, credit = split(scm[0], method, config)
    assert agreement(credit, *scm)["skill"] > needed
    assert credit.metrics["fit_r2"] > fit_r2
    # Exact sums hide nothing: without them the fit leaves what it leaves.
    decomposer.config = replace(config, exact_sum=False)
    inexact = decomposer.assign(scm[0])
    residual = (inexact.reward.sum(1) - scm[0].column("team_reward"))[credit.heldout_rows]
    assert residual.std() > 0.1


@METHODS
def test_rewards_add_up_and_the_last_rows_earn_nothing(small, method):
    transitions = small
    _, credit = split(transitions, method, SMALL[method])
    team_reward = transitions.column("team_reward")
    error = (credit.reward.sum(1) - team_reward)[transitions.transition_rows].abs().max()
    assert error <= 1e-5 * team_reward.abs().max()
    assert not credit.reward[transitions.episode_start[1:] - 1].any()
    assert {agent.verdict for agent in credit.agents} == {UNTESTED}
    assert not credit.fallback
    assert credit.metrics["fit_r2"] < 1


@METHODS
def test_constants_are_shared_out_equally(small, method):
    transitions = small
    _, credit = split(transitions, method, SMALL[method])
    mean = credit.reward[transitions.transition_rows].mean(0)
    spread = credit.reward[transitions.transition_rows].std()
    assert (mean - mean.mean()).abs().max() < 0.05 * spread


@METHODS
def test_only_the_seed_decides(small, method):
    first, again, other = (split(small, method, SMALL[method], seed)[1].reward for seed in (3, 3, 4))
    assert first.equal(again)
    assert not first.equal(other)


@METHODS
def test_the_unit_of_the_reward_does_not_matter(small, method):
    transitions = small
    scaled = replace(transitions, row=transitions.row.clone())
    scaled.column("team_reward").mul_(4)
    plain, larger = (split(table, method, SMALL[method])[1].reward for table in (transitions, scaled))
    assert torch.allclose(larger, 4 * plain, rtol=1e-4, atol=1e-4)


@METHODS
def test_what_cannot_be_fitted_is_split_equally_with_the_reason(small, method):
    transitions = small
    few = transitions.episodes(range(5))
    _, credit = split(few, method, SMALL[method])
    assert credit.fallback
    assert "5 episodes are too few" in credit.reason
    rows = few.transition_rows
    assert torch.allclose(credit.reward[rows, 1], few.column("team_reward")[rows] / 3)
    constant = replace(transitions, row=transitions.row.clone())
    constant.column("team_reward").fill_(6.0)
    _, credit = split(constant, method, SMALL[method])
    assert "the team reward is constant" in credit.reason
    assert credit.reward[transitions.transition_rows].unique().tolist() == [2.0]
    sparse = replace(transitions, row=transitions.row.clone())
    sparse.column("team_reward")[split_episodes(transitions, 0.1, 10**9, seed=0)[2]] = 0
    _, credit = split(sparse, method, SMALL[method])
    assert credit.fallback
    assert "never varies where it was held out (transitions: 200)" in credit.reason


@METHODS
def test_choices_illegal_ones_and_the_dead(choosing, method):
    _, credit = split(choosing, method, SMALL[method])
    rows = choosing.transition_rows
    alive = choosing.column("alive")[rows]
    assert not credit.reward[rows][alive == 0].any()
    assert credit.reward[rows][alive == 1].any()
    assert torch.allclose(credit.reward[rows].sum(1), choosing.column("team_reward")[rows], atol=1e-4)


@METHODS
def test_settings_reach_the_methods(small, method):
    decomposer = make_decomposer(method, small.spec, {"heldout": 0.25, "exact_sum": False})
    assert decomposer.config.heldout == 0.25
    assert not decomposer.config.exact_sum


def test_additive_agents_look_at_their_own_and_at_nobodys_variables(small):
    transitions = small
    names = transitions.spec.state_names
    owner = {"global.x0": "agent_1"}
    decomposer, credit = split(transitions, "additive", replace(SMALL["additive"], owner=owner))
    assert isinstance(decomposer, Additive)
    seen = [{credit.input_names[k] for k in mask.nonzero().squeeze(1)} for mask in credit.masks]
    assert {name for name in names if name.startswith(("agent_0.", "global."))} - {"global.x0"} <= seen[0]
    assert not any(name.startswith(("agent_1", "next.agent_1")) for name in seen[0])
    assert "global.x0" in seen[1] - seen[0] - seen[2]


def test_shapley_values_are_those_of_the_definition(small):
    """All six orders of three agents against a stand-in: direct sums over coalitions of the model itself."""
    transitions = small
    decomposer, _ = split(transitions, "shapley", SMALL["shapley"])
    assert isinstance(decomposer, Shapley)
    rows = transitions.transition_rows[:5]
    inputs = decomposer.scale.inputs(transitions, rows)
    stand_in = decomposer.scale.inputs(transitions, transitions.transition_rows[77:78])
    orders = list(permutations(range(3)))
    decomposer.order = torch.tensor(orders)
    decomposer.absent = decomposer.model.contributions(stand_in, decomposer.own).expand(6, -1, -1)

    def value(coalition: tuple[int, ...]) -> Tensor:
        absent = torch.stack(
            [decomposer.own[i] for i in range(3) if i not in coalition] or [0 * decomposer.own[0]]
        )
        return decomposer.model(torch.where(absent.any(0), stand_in, inputs))

    expected = torch.zeros(5, 3)
    for order in orders:
        for place, agent in enumerate(order):
            expected[:, agent] += (value(order[: place + 1]) - value(order[:place])) / 6
    nobodys = value(())
    answer = decomposer.individual(transitions, rows)
    assert torch.allclose(answer, expected + nobodys[:, None] / 3, atol=1e-4)
    assert torch.allclose(answer.sum(1), decomposer.model(inputs), atol=1e-4)


def test_shapley_values_of_the_living_add_up_to_the_model(choosing):
    decomposer, _ = split(choosing, "shapley", SMALL["shapley"])
    assert isinstance(decomposer, Shapley)
    rows = choosing.transition_rows[::7]
    answer = decomposer.individual(choosing, rows)
    predicted = decomposer.model(decomposer.scale.inputs(choosing, rows))
    assert torch.allclose(answer.sum(1), predicted, atol=1e-4)
    assert not answer[living(choosing, rows) == 0].any()


def test_orders_come_with_their_reverse():
    transitions, _ = record("scm_a", 1_000, options={"agents": 3})
    decomposer, _ = split(transitions, "shapley", SMALL["shapley"])
    assert isinstance(decomposer, Shapley)
    assert decomposer.order[0].equal(decomposer.order[1].flip(0))
    assert decomposer.absent[2].equal(decomposer.absent[3])


def test_the_difference_is_the_teams_reward_less_the_prediction_without_the_action(small):
    transitions = small
    decomposer, _ = split(transitions, "difference", SMALL["difference"])
    assert isinstance(decomposer, Difference)
    rows = transitions.transition_rows[:50]
    average = decomposer.behaviour(transitions, rows)
    answer = decomposer.individual(transitions, rows)
    for agent in range(3):
        changed = replace(transitions, row=transitions.row.clone())
        changed.column("action")[rows, agent] = average[:, agent].detach()
        predicted = decomposer.model(decomposer.scale.inputs(changed, rows))
        expected = decomposer.scale.team_reward(transitions, rows) - predicted
        assert torch.allclose(answer[:, agent], expected, atol=1e-4)


def test_the_difference_averages_over_the_choices_of_the_behaviour(choosing):
    decomposer, _ = split(choosing, "difference", SMALL["difference"])
    assert isinstance(decomposer, Difference)
    rows = choosing.transition_rows[::11]
    probability = decomposer.behaviour(choosing, rows).detach()
    expected = decomposer.scale.team_reward(choosing, rows)
    for choice in range(3):
        changed = replace(choosing, row=choosing.row.clone())
        changed.column("action")[rows, 1] = choice
        predicted = decomposer.model(decomposer.scale.inputs(changed, rows))
        expected = expected - probability[:, 1, choice] * predicted
    assert torch.allclose(decomposer.individual(choosing, rows)[:, 1], expected, atol=1e-4)


def test_behaviour_is_that_of_the_data_and_legal(choosing):
    config = replace(SMALL["difference"], behaviour_steps=400, behaviour_learning_rate=5e-3)
    decomposer, _ = split(choosing, "difference", config)
    assert isinstance(decomposer, Difference)
    rows = choosing.transition_rows
    probability = decomposer.behaviour(choosing, rows)
    assert torch.allclose(probability.sum(2), torch.ones(len(rows), 3), atol=1e-5)
    legal = choosing.column("legal")[rows]
    assert not probability[legal == 0].any()
    share = actions(choosing, rows).mean(0)
    assert torch.allclose(probability.mean(0), share, atol=0.05)


def test_the_difference_does_not_see_what_the_action_led_to_unless_asked(small):
    transitions = small
    decomposer, _ = split(transitions, "difference", SMALL["difference"])
    assert isinstance(decomposer, Difference)
    names = [decomposer.layout.names[k] for k in decomposer.scale.varying]
    seen = {names[k].startswith("next.") for k in decomposer.model.visible}
    assert seen == {False}
    sighted, _ = split(transitions, "difference", replace(SMALL["difference"], next_state=True))
    assert len(sighted.model.visible) == len(names)
