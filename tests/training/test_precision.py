"""Which kernels multiply, and whether the exact ones are put back."""

import pytest
import torch

from offmarl.errors import UsageError
from offmarl.native.library import library, rounds
from offmarl.training import precision
from offmarl.training.precision import matmul_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "expected"), [(3e-7, "medium"), (1e-3, "highest"), (float("nan"), "highest")]
)
def test_auto_takes_fast_products_only_where_they_are_exact(monkeypatch, error, expected):
    monkeypatch.setattr(precision, "_error", lambda device: error)
    before = torch.get_float32_matmul_precision()
    with matmul_precision("auto", CPU) as chosen:
        assert chosen == expected == torch.get_float32_matmul_precision()
    assert torch.get_float32_matmul_precision() == before


def test_the_trial_tells_float32_from_bfloat16(monkeypatch):
    assert 0 < precision._error(CPU) < precision.LARGEST_ERROR  # with the default precision
    product = torch.bmm

    def rounded(rows, weight):
        if rows.dtype == torch.float32:
            rows, weight = rows.bfloat16().float(), weight.bfloat16().float()
        return product(rows, weight)

    monkeypatch.setattr(torch, "bmm", rounded)
    assert precision._error(CPU) > 100 * precision.LARGEST_ERROR


def test_a_named_precision_is_used_as_it_is_and_put_back_after_an_error():
    before = torch.get_float32_matmul_precision()
    used = []

    def interrupted():
        with matmul_precision("high", CPU) as chosen:
            used.extend([chosen, torch.get_float32_matmul_precision()])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert used == ["high", "high"]
    assert torch.get_float32_matmul_precision() == before


def test_bfloat16_leaves_pytorch_exact_and_is_for_cpus():
    available = getattr(library(), "bfloat16", False)
    if available:
        with matmul_precision("bfloat16", CPU) as chosen:
            assert chosen == "bfloat16"
            assert rounds()
            assert precision._error(CPU) < precision.LARGEST_ERROR
    else:
        with (
            pytest.raises(UsageError, match=r"bfloat16: .* leave it at auto"),
            matmul_precision("bfloat16", CPU),
        ):
            pass
    assert not rounds()
    with (
        pytest.raises(UsageError, match="bfloat16 is for CPUs; on cuda take medium"),
        matmul_precision("bfloat16", torch.device("cuda")),
    ):
        pass
