"""Means with confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap confidence interval, and over how many of what it was taken."""

    mean: float
    low: float | None  # None where a single value leaves nothing to resample
    high: float | None
    count: int
    over: str  # "seeds" or "episodes"

    def text(self, digits: int = 1) -> str:
        """For a table: `98.2 [95.0, 101.3]`."""
        if self.low is None or self.high is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap_interval(values: Sequence[float] | np.ndarray, over: str, resamples: int = 5_000) -> Interval:
    """The mean of `values` with a 95 % percentile-bootstrap interval (Efron 1979), reproducible.

    Raises `ValueError` where there is nothing to average.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("no values to average")
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, None, None, 1, over)
    from scipy.stats import bootstrap

    answer = bootstrap(
        (sample,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Interval(mean, float(answer.low), float(answer.high), int(sample.size), over)
