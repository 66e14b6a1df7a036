"""The stacked recurrent unit against PyTorch's."""

import pytest
import torch

from offmarl.learners.recurrent import StackedGRU
from offmarl.streams import stream

G, T, M, OBS, H, K = 3, 7, 5, 4, 6, 2


def peer(network: StackedGRU, index: int) -> torch.nn.GRU:
    unit = torch.nn.GRU(network.sizes[-3], H)
    with torch.no_grad():
        unit.weight_ih_l0.copy_(network.weights[-3][index].T)
        unit.weight_hh_l0.copy_(network.weights[-2][index].T)
        unit.bias_ih_l0.copy_(network.biases[-3][index, 0])
        unit.bias_hh_l0.copy_(network.biases[-2][index, 0])
    return unit


@pytest.mark.parametrize("counts", [[M] * T, [5, 5, 4, 4, 2, 1, 1], [5, 3, 3, 2, 1, 0, 0]])
@pytest.mark.parametrize("hidden", [(H,), (8, H), (9, 8, H)])
def test_values_and_gradients_are_those_of_pytorch(hidden, counts):
    """PyTorch unrolls every row by itself, as far as its count of steps goes."""
    network = StackedGRU.initialised(
        (G,), 0, (OBS, *hidden, K), [stream(seed, "net") for seed in range(G)], torch.device("cpu")
    )
    rows = torch.randn(G, sum(counts), OBS, generator=stream(0), requires_grad=True)
    memory = torch.randn(G, M, H, generator=stream(1), requires_grad=True)
    outputs, after = network.unroll(rows, memory, counts)
    weight = torch.randn(outputs.shape, generator=stream(2))
    found = torch.autograd.grad((outputs * weight).sum(), [rows, memory, *network.parameters()])
    start = [sum(counts[:t]) for t in range(T)]
    for index in range(G):
        unit, front = peer(network, index), rows[index]
        views = [view.detach()[index].requires_grad_() for view in network.parameters()]
        for layer in range(len(hidden) - 1):
            front = torch.relu(front @ views[2 * layer] + views[2 * layer + 1])
        loss = torch.zeros(())
        for row in range(M):
            places = [start[t] + row for t in range(T) if row < counts[t]]
            states, last = unit(front[places], memory[index, row].unsqueeze(0))
            expected = states @ views[-2] + views[-1]
            torch.testing.assert_close(outputs[index, places], expected, atol=1e-5, rtol=1e-5)
            if row < counts[-1]:
                torch.testing.assert_close(after[index, row], last[0], atol=1e-5, rtol=1e-5)
            loss = loss + (expected * weight[index, places]).sum()
        own = [*views[: 2 * len(hidden) - 2], *views[-2:]]
        asked = [rows, memory, *own, *unit.parameters()]
        by_peer = torch.autograd.grad(loss, asked)
        mine = [gradient[index] for gradient in found]
        inside = mine[2 : 2 * len(hidden)] + mine[-2:]
        weight_ih, bias_ih, weight_hh, bias_hh = mine[2 * len(hidden) : -2]
        unit_gradients = [weight_ih.T, weight_hh.T, bias_ih[0], bias_hh[0]]
        for ours, theirs in zip(
            [mine[0], mine[1], *inside, *unit_gradients],
            [by_peer[0][index], by_peer[1][index], *by_peer[2:]],
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_unroll_in_two_parts_is_one_unroll():
    network = StackedGRU.initialised((1,), 0, (OBS, 8, H, K), [stream(0, "net")], torch.device("cpu"))
    rows = torch.randn(1, T * M, OBS)
    begin = torch.zeros(1, M, H)
    whole, last = network.unroll(rows, begin, [M] * T)
    first, memory = network.unroll(rows[:, : 3 * M], begin, [M] * 3)
    second, end = network.unroll(rows[:, 3 * M :], memory, [M] * (T - 3))
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)
    torch.testing.assert_close(network(rows, [M] * T), whole)
