import pytest
import torch

from offmarl.learners.recurrent import StackedGRU
from offmarl.native import threads as threads_module
from offmarl.native.library import Library, kernels, library
from offmarl.native.recurrent import Gates, Recurrence
from offmarl.streams import stream

pytestmark = pytest.mark.skipif(not isinstance(library(), Library), reason=str(library()))


def unrolled(choice, memory_dim, counts, copies=2):
    """Outputs, the last memory, and the gradients of everything, from the same numbers by either."""
    generators = [stream(seed, "net") for seed in range(copies)]
    network = StackedGRU.initialised((copies,), 0, (5, 7, memory_dim, 3), generators, torch.device("cpu"))
    generator = stream(0, "rows")
    rows = torch.randn(copies, sum(counts), 5, generator=generator, requires_grad=True)
    memory = torch.randn(copies, counts[0], memory_dim, generator=generator, requires_grad=True)
    weight = torch.randn(copies, sum(counts), 3, generator=generator)
    with kernels(choice):
        outputs, last = network.unroll(rows, memory, counts)
        slopes = torch.autograd.grad((outputs * weight).sum(), [rows, memory, *network.parameters()])
    return outputs, last, *slopes


@pytest.mark.parametrize("memory_dim", [16, 64, 80])
@pytest.mark.parametrize("counts", [[1], [4, 4, 3, 1], [200, 200, 130, 97, 96, 95, 1], [97] * 30])
def test_compiled_units_equal_pytorchs(memory_dim, counts):
    plain, compiled = (unrolled(choice, memory_dim, counts) for choice in ("torch", "compiled"))
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(
            other, one, atol=1e-5 * max(1.0, float(one.detach().abs().max())), rtol=1e-5
        )


def test_threads_change_nothing(threads, monkeypatch):
    monkeypatch.setattr(threads_module, "WORTH_A_THREAD", 0)
    answers = []
    for count in (1, 2, 3, 16):
        threads(count)
        answers.append(unrolled("compiled", 32, [200, 200, 130, 97, 1], copies=3)[:4])
    for answer in answers[1:]:
        for one, other in zip(answers[0], answer, strict=True):
            torch.testing.assert_close(other, one)


def test_gates_saturate_and_a_nan_is_not_swallowed():
    def step(of_input):
        weight, bias = torch.zeros(1, 16, 48), torch.zeros(1, 1, 48)
        gates, hidden = Gates(*(of_input.clone() for _ in range(4))), torch.empty(1, 6, 16)
        with kernels("compiled"):
            Recurrence.of(weight, [6]).forward(bias, torch.zeros(1, 6, 16), gates, hidden)
        return gates, hidden

    extremes = torch.tensor([-1e30, -100.0, 0.0, 100.0, 1e30, torch.nan]).view(1, 6, 1).expand(1, 6, 16)
    gates, hidden = step(extremes.contiguous())
    torch.testing.assert_close(gates.reset, torch.sigmoid(extremes), equal_nan=True)
    torch.testing.assert_close(gates.new, torch.tanh(extremes), equal_nan=True)
    assert hidden[0, :5].isfinite().all()
    assert hidden[0, 5].isnan().all()


def test_sigmoid_and_tanh_are_accurate():
    inputs = torch.linspace(-20, 20, 16 * 4000).view(1, 4000, 16)
    gates = Gates(*(inputs.clone() for _ in range(4)))
    with kernels("compiled"):
        unit = Recurrence.of(torch.zeros(1, 16, 48), [4000])
        unit.forward(torch.zeros(1, 1, 48), torch.zeros(1, 4000, 16), gates, torch.empty(1, 4000, 16))
    exact = inputs.double()
    assert (gates.reset / torch.sigmoid(exact) - 1).abs().max() < 5e-7
    assert (gates.new - torch.tanh(exact)).abs().max() < 3e-7


def test_what_does_not_fit_is_refused_before_c_reads_it():
    def call(**wrong):
        given = {
            "bias": torch.zeros(1, 1, 48),
            "start": torch.zeros(1, 3, 16),
            "gates": Gates(*torch.zeros(4, 1, 5, 16)),
            "hidden": torch.zeros(1, 5, 16),
        }
        with kernels("compiled"):
            Recurrence.of(torch.zeros(1, 16, 48), [3, 2]).forward(**(given | wrong))

    call()
    for wrong in (
        {"start": torch.zeros(1, 2, 16)},
        {"hidden": torch.zeros(1, 4, 16)},
        {"hidden": torch.zeros(1, 5, 16, dtype=torch.float64)},
        {"start": torch.zeros(1, 16, 3).mT},
    ):
        with pytest.raises(ValueError, match=r"is not \[1, [35], 16\] of float32, in order"):
            call(**wrong)
    with kernels("compiled"):
        assert Recurrence.of(torch.zeros(1, 17, 51), [1]) is None
        assert Recurrence.of(torch.zeros(1, 16, 48).double(), [1]) is None
    with kernels("torch"):
        assert Recurrence.of(torch.zeros(1, 16, 48), [1]) is None
