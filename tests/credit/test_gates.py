import pytest
import torch

from offmarl.credit.gates import mean_gates, open_probability, sample_gates
from offmarl.streams import stream


@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.0])
def test_sampled_gates_are_open_as_often_as_they_say(logit):
    logits = torch.full((1, 4, 5), logit)
    gates = sample_gates(logits, 2_000, stream(0, "gates"))
    assert gates.shape == (1, 2_000, 4, 5)
    assert gates.min() >= 0
    assert gates.max() <= 1
    share = (gates > 0).float().mean(1)
    assert torch.allclose(share, open_probability(logits), atol=2e-3)  # stratified: far below binomial noise


def test_gates_of_different_edges_are_independent():
    gates = sample_gates(torch.zeros(1, 1, 2), 8, stream(1, "gates"))
    pairs = torch.cat([sample_gates(torch.zeros(1, 1, 2), 8, stream(k, "g")) for k in range(500)], 1)[0, :, 0]
    assert gates.shape == (1, 8, 1, 2)
    assert abs(torch.corrcoef(pairs.T)[0, 1]) < 0.05


def test_gates_can_be_exactly_open_and_closed_and_pass_a_gradient():
    logits = torch.tensor([[[-8.0, 0.0, 8.0]]], requires_grad=True)
    assert mean_gates(logits).flatten().tolist() == [0.0, 0.5, 1.0]
    sample_gates(logits, 64, stream(0, "gates")).sum().backward()
    assert logits.grad[0, 0, 1] > 0
