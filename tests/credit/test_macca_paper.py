"""The published formulation: its losses, its masks, and what it does with disjoint causes."""

from dataclasses import replace

import pytest
import torch
from recording import agreement, record

from offmarl.credit.macca_paper import MaccaPaper, MaccaPaperConfig
from offmarl.credit.regression import UNTESTED
from offmarl.data.table import Transitions
from offmarl.errors import UsageError
from offmarl.settings import configure

HASTY = MaccaPaperConfig(reward_width=32, mask_width=16, steps=60)


def fitted(transitions: Transitions, config: MaccaPaperConfig, seed: int = 0) -> MaccaPaper:
    decomposer = MaccaPaper(transitions.spec, config, seed)
    decomposer.fit(transitions)
    return decomposer


def test_it_finds_the_causes_and_fits_well_but_pays_the_wrong_agents(scm):
    """What the sum leaves open stays open: whose a cause is."""
    transitions, truth = scm
    config = MaccaPaperConfig(
        reward_width=64, reward_depth=2, steps=1_000, batch_size=128, learning_rate=3e-3
    )
    credit = fitted(transitions, config).assign(transitions)
    found = agreement(credit, transitions, truth)
    used = {credit.input_names[k] for k in credit.masks.any(0).nonzero().squeeze(1)}
    assert {name for causes in transitions.spec.causes for name in causes} <= used
    assert len(used) <= 15
    assert credit.metrics["fit_r2"] > 0.65
    assert found["f1"] < 0.7
    assert found["skill"] < 0.3
    assert found["hijack"] > 0
    assert {agent.verdict for agent in credit.agents} == {UNTESTED}


@pytest.mark.parametrize("masks", ["static", "dynamic"])
def test_masks_weigh_every_variable_of_every_agent(scm, masks):
    decomposer = fitted(scm[0], replace(HASTY, masks=masks))
    rows = scm[0].transition_rows[:6]
    inputs = decomposer.scale.inputs(scm[0], rows)
    mask = decomposer.mask_weights(inputs)
    assert mask.shape == (1 if masks == "static" else 6, 3, inputs.shape[1])
    if masks == "dynamic":
        assert mask.min() >= 0
        assert mask.max() <= 1
        assert not mask[0].equal(mask[1])
        assert not mask[0, 0].equal(mask[0, 1])
    credit = decomposer.assign(scm[0])
    assert credit.masks.shape == credit.edge_probability.shape == (3, len(credit.input_names))
    assert credit.edge_probability.min() >= 0
    assert credit.edge_probability.max() <= 1


def test_the_loss_is_that_of_the_paper(scm):
    decomposer = fitted(scm[0], replace(HASTY, state_sparsity=0.5, action_sparsity=0.25, next_state=False))
    reward = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 4.0]])
    assert decomposer.reconstruction(reward, torch.tensor([2.0, 5.0])) == pytest.approx((1 + 4) / 2)
    mask = torch.zeros(1, 3, len(decomposer.visible))
    state = (decomposer.visible & ~decomposer.action).nonzero().squeeze(1)
    action = decomposer.action.nonzero().squeeze(1)
    assert len(action) == 3 * 2
    mask[0, 0, state[:2]], mask[0, 2, action[0]] = -1.0, 3.0
    assert decomposer.sparsity(mask) == pytest.approx(0.5 * 2 + 0.25 * 3)
    decomposer.config.sparsity_norm = "mean"
    assert decomposer.sparsity(mask) == pytest.approx(0.5 * 2 / len(state) + 0.25 * 3 / len(action))


def test_weights_below_the_threshold_are_cut_at_inference(scm):
    decomposer = fitted(scm[0], HASTY)
    rows = scm[0].transition_rows[:200]
    before = decomposer.individual(scm[0], rows)
    assert before.std(0).min() > 0
    decomposer.config = replace(HASTY, threshold=100.0)
    assert decomposer.individual(scm[0], rows).std(0).max() < 1e-5


@pytest.mark.parametrize("masks", ["static", "dynamic"])
def test_without_the_next_state_it_is_not_looked_at(scm, masks):
    transitions, _ = scm
    decomposer = fitted(transitions, replace(HASTY, masks=masks, next_state=False, threshold=0.0))
    names = [decomposer.layout.names[k] for k in decomposer.scale.varying]
    successor = torch.tensor([name.startswith("next.") for name in names])
    credit = decomposer.assign(transitions)
    assert not credit.masks[:, torch.tensor([name.startswith("next.") for name in credit.input_names])].any()
    inputs = decomposer.scale.inputs(transitions, transitions.transition_rows[:4])
    other = torch.where(successor, torch.randn(inputs.shape), inputs)
    rewards = [decomposer.rewards(x, decomposer.mask_weights(x)) for x in (inputs, other)]
    assert torch.allclose(*rewards, atol=1e-6)


def test_an_unknown_kind_of_mask_is_refused():
    with pytest.raises(UsageError, match="masks"):
        configure(MaccaPaperConfig, {"masks": "soft"}, "credit")


@pytest.mark.slow
def test_full_size_it_fits_the_team_and_not_the_agents():
    transitions, truth = record("scm_a", 50_000)
    credit = fitted(transitions, MaccaPaperConfig()).assign(transitions)
    found = agreement(credit, transitions, truth)
    assert credit.metrics["fit_r2"] > 0.9
    assert found["skill"] < 0.3
    assert found["hijack"] >= 0.25
