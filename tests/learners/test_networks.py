import pytest
import torch
from torch.nn import functional as F

from offmarl.learners import networks
from offmarl.learners.networks import StackedMLP, _NarrowLayer, tiles
from offmarl.learners.optimiser import StackedAdam
from offmarl.native.library import kernels
from offmarl.streams import stream


def stacked(copies=(2, 3), sizes=(5, 8, 8, 1), seed_axis=0, seeds=None):
    seeds = range(copies[seed_axis]) if seeds is None else seeds
    generators = [stream(seed, "net") for seed in seeds]
    return StackedMLP.initialised(copies, seed_axis, sizes, generators, torch.device("cpu"))


def plain(network, index, rows):
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        rows = F.linear(rows, weight[index].T, bias[index, 0])
        if layer < len(network.weights) - 1:
            rows = rows.relu()
    return rows


def test_a_stack_equals_its_networks_one_by_one():
    for outputs in (1, 4, 20):
        network = stacked(sizes=(5, 8, 8, outputs))
        rows = torch.randn(6, 7, 5)
        expected = torch.stack([plain(network, index, rows[index]) for index in range(6)])
        torch.testing.assert_close(network(rows), expected)


def test_gradients_equal_those_of_the_networks_one_by_one():
    network = stacked()
    rows = torch.randn(6, 7, 5)
    target = torch.randn(6, 7, 1)
    fast = torch.autograd.grad((network(rows) - target).square().sum(), network.parameters())
    slow_output = torch.stack([plain(network, index, rows[index]) for index in range(6)])
    slow = torch.autograd.grad((slow_output - target).square().sum(), network.parameters())
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other)


def test_narrow_layers_have_the_right_gradient():
    for outputs in (1, 3):
        inputs = (torch.randn(2, 5, 4), torch.randn(2, 4, outputs), torch.randn(2, 1, outputs))
        assert torch.autograd.gradcheck(
            _NarrowLayer.apply, tuple(value.double().requires_grad_() for value in inputs)
        )


def joined(obs, action):
    """[G, M, O], [G, M, K, A] -> [G, M*K, O+A]."""
    return torch.cat([obs.unsqueeze(2).expand(-1, -1, action.shape[2], -1), action], -1).flatten(1, 2)


@pytest.mark.parametrize("actions", [None, 1, 4])
@pytest.mark.parametrize("hidden", [(8,), (8, 7), (8, 7, 9)])
@pytest.mark.parametrize("outputs", [1, 3, 20])
@kernels("torch")
def test_the_gradient_derived_by_hand_equals_autograds(actions, hidden, outputs):
    network = stacked(sizes=(5, *hidden, outputs))
    if actions is None:
        obs, action = torch.randn(6, 7, 5), None
        rows = obs
    else:
        obs, action = torch.randn(6, 7, 3), torch.randn(6, 7, actions, 2, requires_grad=True)
        rows = joined(obs, action)
    plain_output = torch.stack([plain(network, index, rows[index]) for index in range(6)])
    gradient = torch.randn_like(plain_output)
    expected = torch.autograd.grad(
        plain_output, [*network.parameters(), *([] if action is None else [action])], gradient
    )
    found = network.like(torch.zeros_like(network.flat))
    forward = network.forward(obs, action)
    torch.testing.assert_close(forward.output.flatten(1, -2), plain_output)
    shaped = gradient.view_as(forward.output)
    forward.backward(shaped, found)
    for one, other in zip(found.parameters(), expected, strict=False):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    if action is not None:
        to_action = network.forward(obs, action).to_action(shaped)
        torch.testing.assert_close(to_action, expected[-1], atol=1e-5, rtol=1e-5)


def test_backward_adds_to_what_is_there():
    network, rows = stacked(), torch.randn(6, 7, 5)
    once = network.like(torch.zeros_like(network.flat))
    twice = network.like(torch.zeros_like(network.flat))
    for into in (once, twice, twice):
        network.forward(rows).backward(torch.ones(6, 7, 1), into)
    torch.testing.assert_close(twice.flat, 2 * once.flat)


@kernels("torch")
def test_tiles_cover_everything_once(monkeypatch):
    network = stacked((2, 3), (5, 8, 1))
    for size in (1, 32, 5 * 8 * 4, 1000, 10_000):
        monkeypatch.setattr(networks, "TILE_BYTES", size)
        seen = torch.zeros(6, 7)
        for tile in tiles(network, 7, 5):
            seen[tile] += 1
            assert seen[tile].numel() == 1 or seen[tile].numel() * 5 * 8 * 4 <= size
        assert (seen == 1).all()


def test_a_part_is_a_view_that_autograd_does_not_follow():
    network = stacked((2, 3), (5, 8, 1))
    part = network.part(slice(2, 4))
    network.flat.mul_(2)
    assert torch.equal(part.flat, network.flat[2:4])
    assert part is network.part(slice(2, 4))
    assert not part(torch.randn(2, 4, 5)).requires_grad


def test_initial_weights_depend_on_the_seed_alone():
    together = stacked((2, 3, 4), (5, 8, 1), seed_axis=1, seeds=(7, 8, 9))
    alone = stacked((2, 1, 4), (5, 8, 1), seed_axis=1, seeds=(8,))
    for name, tensor in together.tensors().items():
        assert torch.equal(tensor[:, 1], alone.tensors()[name][:, 0])
    assert not torch.equal(together.flat[0], together.flat[4])


def test_targets_follow_at_their_own_pace():
    network = stacked()
    target = network.target()
    before = target.flat.clone()
    network.flat.add_(1.0)
    assert torch.equal(target.flat, before)
    target.follow(network, 0.25)
    torch.testing.assert_close(target.weights[1], before[:, 48:112].view(6, 8, 8) + 0.25)


def test_the_first_twin_is_a_view_without_gradient():
    network = stacked((2, 3), (5, 8, 1), seed_axis=1)
    first = network.first()
    network.flat.mul_(2)
    assert torch.equal(first.flat, network.flat[:3])
    assert not first(torch.randn(3, 2, 5)).requires_grad


def test_one_networks_gradient_does_not_shrink_anothers():
    network = stacked((2, 1), (3, 4, 1))
    optimiser = StackedAdam(network, learning_rate=1e-3, gradient_clip=0.5)
    scale = torch.tensor([1e6, 1e-6]).view(2, 1, 1)
    norm = optimiser.minimise((network(torch.ones(2, 8, 3)) * scale).sum())
    assert norm[0] > 1e5
    assert norm[1] < 1e-3
    moment = optimiser.tensors()["exp_avg"].norm(dim=1) / 0.1
    torch.testing.assert_close(moment, torch.stack([torch.tensor(0.5), norm[1]]), rtol=1e-3, atol=0)


def test_parts_of_a_batch_add_up_to_the_batch():
    pair = [stacked(), stacked()]
    rows = torch.randn(6, 8, 5)
    whole, parts = (StackedAdam(network, 1e-2, 0.5) for network in pair)
    whole.minimise(pair[0](rows).square().mean((1, 2)).sum())
    for part in rows.split(3, dim=1):
        parts.accumulate(pair[1](part).square().mean((1, 2)).sum() * part.shape[1] / 8)
    parts.step()
    torch.testing.assert_close(pair[0].flat, pair[1].flat, atol=1e-6, rtol=1e-4)


def test_its_steps_are_those_of_pytorchs_adam():
    network = stacked((2, 1), (3, 4, 1))
    flat = network.flat.clone().requires_grad_()
    optimiser, adam = StackedAdam(network, 1e-2, None), torch.optim.Adam([flat], lr=1e-2)
    for _ in range(5):
        flat.grad = torch.randn_like(flat)
        optimiser.gradient.flat.copy_(flat.grad)
        optimiser.step()
        adam.step()
    assert float(optimiser.tensors()["step"]) == 5
    torch.testing.assert_close(network.flat, flat.detach(), atol=1e-6, rtol=1e-5)
