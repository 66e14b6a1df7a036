import pytest
import torch

from offmarl.learners import networks
from offmarl.learners.networks import CompiledPass, StackedMLP, TorchPass, tiles
from offmarl.native import library as native
from offmarl.native import threads as threads_module
from offmarl.native.library import Library, bfloat16, kernels, library
from offmarl.streams import stream

pytestmark = pytest.mark.skipif(not isinstance(library(), Library), reason=str(library()))


units = pytest.mark.skipif(not getattr(library(), "bfloat16", False), reason="no bfloat16 units here")


def stacked(sizes, copies=6):
    generators = [stream(seed, "net") for seed in range(copies)]
    return StackedMLP.initialised((copies,), 0, sizes, generators, torch.device("cpu"))


def eighths(*shape):
    """Multiples of 1/8, which are added up without rounding.

    So no order of additions puts a number to the other side of a ReLU's bend, where it would have another slope.
    """
    return torch.randint(-3, 4, shape) / 8


def both(network, obs, action, gradient):
    """Output, dL/dparameters and dL/daction by either."""
    answers = []
    for choice, kind in (("torch", TorchPass), ("compiled", CompiledPass)):
        with kernels(choice):
            into = network.like(torch.zeros_like(network.flat))
            forward = network.forward(obs, action)
            assert type(forward) is kind
            shaped = gradient.view_as(forward.output)
            forward.backward(shaped, into)
            to_action = None if action is None else network.forward(obs, action).to_action(shaped)
            answers.append((forward.output, network.outputs(obs, action), into.flat, to_action))
    return answers


# States and actions around the 192 rows of a block, widths around the panel of 64 columns.
@pytest.mark.parametrize(("states", "actions"), [(1, None), (401, None), (193, 1), (50, 11), (3, 200)])
@pytest.mark.parametrize("hidden", [(16,), (64, 64), (48, 80, 32), (256, 144)])
@pytest.mark.parametrize("outputs", [1, 2, 15])
def test_compiled_perceptrons_equal_pytorchs(states, actions, hidden, outputs):
    network = stacked((7, *hidden, outputs), copies=2)
    network.flat.copy_(eighths(*network.flat.shape))
    obs = eighths(2, states, 7 if actions is None else 4)
    action = None if actions is None else eighths(2, states, actions, 3)
    gradient = eighths(2, states * (actions or 1) * outputs)
    plain, compiled = both(network, obs, action, gradient)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(other, one, atol=0, rtol=1e-6)


class Rounded(torch.autograd.Function):
    """Activations rounded to bfloat16, by whose rounding no gradient is lost."""

    @staticmethod
    def forward(ctx, values):
        return values.bfloat16().float()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class RoundedProduct(torch.autograd.Function):
    """A product whose factors, in either direction, are rounded to bfloat16."""

    @staticmethod
    def forward(ctx, rows, weight):
        rows, weight = rows.bfloat16().float(), weight.bfloat16().float()
        ctx.save_for_backward(rows, weight)
        return rows @ weight

    @staticmethod
    def backward(ctx, gradient):
        rows, weight = ctx.saved_tensors
        gradient = gradient.bfloat16().float()
        return gradient @ weight.mT, rows.mT @ gradient


@units
@pytest.mark.parametrize(("states", "actions"), [(1, None), (401, None), (193, 1), (50, 11), (3, 201)])
@pytest.mark.parametrize("hidden", [(16,), (64, 64), (48, 80, 32), (256, 144)])
def test_bfloat16_rounds_hidden_layers_and_what_is_multiplied_between_them(states, actions, hidden):
    network = stacked((7, *hidden, 2), copies=2)
    network.flat.copy_(eighths(*network.flat.shape))
    obs, action = eighths(2, states, 7 if actions is None else 4), None
    rows, gradient = obs, eighths(2, states * (actions or 1), 2)
    if actions is not None:
        action = eighths(2, states, actions, 3)
        rows = torch.cat([obs.repeat_interleave(actions, 1), action.flatten(1, 2)], 2)
    rows = rows.clone().requires_grad_()
    weights = [weight.detach().requires_grad_() for weight in network.weights]
    biases = [bias.detach().requires_grad_() for bias in network.biases]
    active = Rounded.apply((rows @ weights[0] + biases[0]).relu())
    for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
        active = Rounded.apply((RoundedProduct.apply(active, weight) + bias).relu())
    expected = active @ weights[-1] + biases[-1]
    expected.backward(gradient)
    with kernels("compiled"), bfloat16():
        into = network.like(torch.zeros_like(network.flat))
        forward = network.forward(obs, action)
        forward.backward(gradient.view_as(forward.output), into)
        alone = network.outputs(obs, action)
        if action is not None:
            to_action = network.forward(obs, action).to_action(gradient.view_as(forward.output))
            torch.testing.assert_close(to_action.flatten(1, 2), rows.grad[..., 4:], atol=0, rtol=1e-6)
    assert torch.equal(alone, forward.output)
    torch.testing.assert_close(forward.output.view_as(expected), expected, atol=0, rtol=1e-6)
    for found, part in zip(into.weights + into.biases, weights + biases, strict=True):
        torch.testing.assert_close(found, part.grad, atol=0, rtol=1e-6)


def test_threads_and_strided_tiles_change_nothing(threads, monkeypatch):
    network = stacked((24, 64, 64, 1))
    obs, action, gradient = torch.randn(6, 100, 22), torch.rand(6, 100, 11, 2), torch.randn(6, 100, 11, 1)
    monkeypatch.setattr(threads_module, "WORTH_A_THREAD", 0)
    answers = {}
    for count, size in ((1, 1 << 30), (1, 50_000), (2, 50_000), (4, 50_000), (7, 1 << 30)):
        threads(count)
        monkeypatch.setattr(networks, "COMPILED_TILE_BYTES", size)
        into, q = network.like(torch.zeros_like(network.flat)), torch.empty(6, 100, 11, 1)
        with kernels("compiled"):
            for tile in tiles(network, 100, 11):
                forward = network.part(tile[0]).forward(obs[tile], action[tile])
                q[tile] = forward.output
                forward.backward(gradient[tile], into.part(tile[0]))
        answers[count, size] = q, into.flat
    q, slopes = answers.pop((1, 1 << 30))
    for other_q, other_slopes in answers.values():
        assert torch.equal(other_q, q)  # a row does not depend on which others are near it
        torch.testing.assert_close(other_slopes, slopes, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("together", [1, 2, 6])
def test_tiles_cover_everything_once(threads, together, monkeypatch):
    network = stacked((5, 16, 1))
    threads(together)
    for size in (1, 500, 5_000, 50_000):
        monkeypatch.setattr(networks, "COMPILED_TILE_BYTES", size)
        seen = torch.zeros(6, 7)
        with kernels("compiled"):
            for tile in tiles(network, 7, 5):
                seen[tile] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize("rounding", [False, pytest.param(True, marks=units)])
@pytest.mark.parametrize("where", ["weight", "obs", "gradient"])
def test_a_nan_is_not_swallowed(where, rounding):
    network = stacked((5, 16, 16, 1), copies=1)
    obs, gradient = torch.randn(1, 8, 5), torch.ones(1, 8, 1)
    if where == "weight":
        network.weights[0].detach()[0, 0, 0] = torch.nan
    elif where == "obs":
        obs[0, 3, 2] = torch.nan
    else:
        gradient[0, 3] = torch.nan
    with kernels("compiled"), bfloat16(rounding):
        into = network.like(torch.zeros_like(network.flat))
        forward = network.forward(obs)
        forward.backward(gradient, into)
    assert into.flat.isnan().any()
    assert forward.output.isnan().any() == (where != "gradient")


def test_actions_may_lie_in_any_order():
    network, obs = stacked((7, 16, 16, 1)), torch.randn(6, 50, 4)
    action, gradient = torch.rand(6, 3, 11, 50).transpose(1, 3), torch.randn(6, 50, 11, 1)
    assert not action.is_contiguous()
    answers = []
    with kernels("compiled"):
        for given in (action, action.contiguous()):
            into = network.like(torch.zeros_like(network.flat))
            forward = network.forward(obs, given)
            forward.backward(gradient, into)
            answers.append((forward.output, into.flat, network.forward(obs, given).to_action(gradient)))
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)


def test_what_is_not_compiled_is_left_to_pytorch():
    with kernels("compiled"):
        for sizes in ((5, 17, 1), (5, 16, 16)):  # an odd width, a wide output
            assert type(stacked(sizes).forward(torch.randn(6, 3, 5))) is TorchPass
        double = stacked((5, 16, 1))
        double = double.like(double.flat.double())
        assert type(double.forward(torch.randn(6, 3, 5, dtype=torch.float64))) is TorchPass


def test_what_does_not_fit_is_refused_before_c_reads_it():
    network = stacked((7, 16, 1))
    obs, action = torch.randn(6, 5, 4), torch.rand(6, 5, 2, 3)
    with kernels("compiled"):
        for wrong in (
            (obs[:5], action[:5]),
            (obs[..., :3], action),
            (obs, action[:, :4]),
            (obs.double(), action),
            (obs, action.double()),
        ):
            with pytest.raises(ValueError, match=r"does not fit 6 float32 perceptrons of sizes \(7, 16, 1\)"):
                network.forward(*wrong)
        forward = network.forward(obs, action)
        with pytest.raises(ValueError, match="gradient"):
            forward.backward(torch.ones(6, 5, 1, 1), network.like(torch.zeros_like(network.flat)))


def test_the_choice_ends_with_its_block():
    with kernels("torch") as worker:
        assert worker == "PyTorch's operations"
        assert native.in_use() is None
        with kernels("compiled"):
            assert native.in_use() is library()
        assert native.in_use() is None
    assert native.in_use() is library()


@units
def test_rounding_is_asked_for_and_ends_with_its_block():
    network, obs = stacked((7, 64, 64, 1)), torch.randn(6, 50, 7)
    with kernels("compiled"):
        exact = network.outputs(obs)
        with bfloat16():
            rounded = network.outputs(obs)
            with bfloat16(False):
                assert torch.equal(network.outputs(obs), exact)
        assert torch.equal(network.outputs(obs), exact)
    assert 1e-5 < (rounded - exact).abs().max() / exact.abs().max() < 1e-2
