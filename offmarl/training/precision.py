"""Which kernels multiply float32 matrices, and whether they are exact."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from offmarl.errors import UsageError
from offmarl.native.library import bfloat16
from offmarl.streams import stream

# PyTorch's "medium" allows oneDNN in place of MKL on CPUs with AVX-512, which on AMD's doubled the speed of
# products without loss; on those with bfloat16 units it may use these, and on GPUs tensor cores. Products of
# float32 are off by 1e-7 relative to their largest entry, of bfloat16 by 1e-3.
LARGEST_ERROR = 1e-6


@contextmanager
def matmul_precision(precision: str, device: torch.device) -> Iterator[str]:
    """Set the precision of float32 products for the duration of a block, and say which it is.

    "auto" is PyTorch's "medium" where a trial shows it to be as exact as float32, else its "highest". "bfloat16" is
    for CPUs: the same, and hidden layers of compiled perceptrons are of bfloat16. Raises `UsageError` where
    there are no units for that.
    """
    if precision == "bfloat16" and device.type != "cpu":
        raise UsageError(f"train.matmul_precision=bfloat16 is for CPUs; on {device} take medium")
    before = torch.get_float32_matmul_precision()
    with bfloat16() if precision == "bfloat16" else nullcontext():
        try:
            of_torch = precision
            if precision in ("auto", "bfloat16"):
                torch.set_float32_matmul_precision("medium")
                of_torch = "medium" if _error(device) < LARGEST_ERROR else "highest"
            torch.set_float32_matmul_precision(of_torch)
            yield of_torch if precision == "auto" else precision
        finally:
            torch.set_float32_matmul_precision(before)


def _error(device: torch.device) -> float:
    """Largest error of a product like those of the learners, relative to its largest entry."""
    generator = stream(0, "precision")
    rows, weight = torch.randn(2, 512, 64, generator=generator), torch.randn(2, 64, 64, generator=generator)
    product = torch.bmm(rows.to(device), weight.to(device)).cpu()
    exact = torch.bmm(rows.double(), weight.double())
    return float((product - exact).abs().max() / exact.abs().max())
