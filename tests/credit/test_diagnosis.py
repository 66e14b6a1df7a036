import pytest
import torch

from offmarl.credit.diagnosis import (
    Diagnosis,
    agreement_with_truth,
    ambiguity,
    expected_skill,
    reproducibility,
)
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
    assert ambiguity(1.1 * point, 0.9 * point, point).tolist() == pytest.approx([0.2] * 3, rel=1e-3)


def test_expected_skill_foresees_the_real_one(truth):
    estimate = truth + 0.4 * torch.randn(truth.shape, generator=stream(2, "error"))
    team_reward = truth.sum(1)
    exact = estimate + (team_reward - estimate.sum(1))[:, None] / 3
    real = agreement_with_truth(exact, truth, team_reward)["skill"]
    assert expected_skill(estimate.T, team_reward) == pytest.approx(real, abs=0.05)


def _diagnosis(**values) -> Diagnosis:
    good = {
        "fit_r2": 0.98,
        "expected_skill": 0.95,
        "ambiguity": (0.1, 0.2),
        "reproducibility": (0.99, 0.98),
    }
    return Diagnosis(**(good | values))


def test_a_good_fit_stands():
    diagnosis = _diagnosis()
    assert diagnosis.reason_to_fall_back(("a", "b")) == ""
    assert diagnosis.verdict(0) == "identified"


def test_doubts_are_named():
    assert "b 0.50" in _diagnosis(reproducibility=(0.99, 0.5)).reason_to_fall_back(("a", "b"))
    assert "R² 0.27" in _diagnosis(fit_r2=0.27, expected_skill=-1.0).reason_to_fall_back(("a", "b"))
    assert _diagnosis(expected_skill=0.5).reason_to_fall_back(("a", "b")) == ""
    assert "needs 0.6" in _diagnosis(expected_skill=0.5, ambiguity=(0.8, 1.0)).reason_to_fall_back(("a", "b"))
    assert _diagnosis(ambiguity=(0.1, 0.9)).verdict(1) == "identified up to a shared term"
