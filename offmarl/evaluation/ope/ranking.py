"""How well estimates rank candidates: against true returns, where somebody has measured them.

Shapes: C candidates, X resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from offmarl.evaluation.statistics import CONFIDENCE
from offmarl.streams import stream_seed

RESAMPLES = 2_000
FEWEST = 3  # candidates that can be said to be ranked
ROUNDING = 1e-9  # of the largest value: what lies closer together is equal


@dataclass(frozen=True)
class Candidate:
    """A trained policy, or the mean of a run's seeds, among which one is to be chosen."""

    name: str
    data: str  # candidates on the same data are ranked
    estimates: Mapping[str, float | None]  # estimator -> return; None where it could not tell
    true_return: float | None = None  # measured in the environment


@dataclass(frozen=True)
class Accuracy:
    """How well an estimator ranked the candidates on one dataset."""

    data: str
    estimator: str
    candidates: int  # with a true return
    answered: int  # of which the estimator could tell
    spearman: float | None  # rank correlation with the true returns; None where either is all alike
    low: float | None  # 95 % bootstrap interval over candidates
    high: float | None
    regret: float  # lost by taking the best-looking one, as a share of best - worst: 0 the best, 1 the worst
    chosen: str
    best: str
    error: float  # mean absolute difference to the true returns

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def accuracies(candidates: Sequence[Candidate], estimators: Sequence[str]) -> list[Accuracy]:
    """Judge every estimator on every dataset of which three candidates have true returns that differ."""
    found = []
    for data in dict.fromkeys(candidate.data for candidate in candidates):
        own = [one for one in candidates if one.data == data and one.true_return is not None]
        true = _tied(np.array([one.true_return for one in own], dtype=np.float64))
        if len(own) < FEWEST or true.max() == true.min():
            continue
        for name in estimators:
            said = [one.estimates.get(name) for one in own]
            told = np.array([value is not None for value in said])
            if told.sum() < FEWEST:
                continue
            estimated = _tied(np.array([np.nan if value is None else value for value in said]))
            low, high = _interval(estimated[told], true[told])
            best = int(np.flatnonzero(told)[np.argmax(estimated[told])])
            found.append(
                Accuracy(
                    data=data,
                    estimator=name,
                    candidates=len(own),
                    answered=int(told.sum()),
                    spearman=spearman(estimated[told], true[told]),
                    low=low,
                    high=high,
                    regret=regret(estimated, true),
                    chosen=own[best].name,
                    best=own[int(true.argmax())].name,
                    error=float(np.abs(estimated[told] - true[told]).mean()),
                )
            )
    return found


def _tied(values: np.ndarray) -> np.ndarray:
    """`values` [C], those that differ by rounding alone made the smallest of them; NaN stays."""
    if not values.size:
        return values
    order = values.argsort()
    ordered = values[order]
    close = np.diff(ordered, prepend=np.nan) <= ROUNDING * np.nanmax(np.abs(values))
    first = np.maximum.accumulate(np.where(close, 0, np.arange(len(values))))
    tied = np.empty_like(values)
    tied[order] = ordered[first]
    return tied


def spearman(estimated: np.ndarray, true: np.ndarray) -> float | None:
    """Rank correlation of [C] and [C], ties by their mean rank; None where either is all alike."""
    found = float(_spearman(estimated, true))
    return None if np.isnan(found) else found


def _spearman(estimated: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis; NaN where either is all alike."""
    from scipy.stats import rankdata

    first, second = (rankdata(values, axis=-1) for values in (estimated, true))
    first, second = (ranks - ranks.mean(-1, keepdims=True) for ranks in (first, second))
    size = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return np.asarray((first * second).sum(-1) / np.where(size > 0, size, np.nan))


def regret(estimated: np.ndarray, true: np.ndarray) -> float:
    """Regret@1 (Fu et al. 2021, "Benchmarks for deep off-policy evaluation"), as a share of best - worst.

    Of several that look equally good (of all of them, where the estimator always says the same) one is taken at
    random. Candidates of which the estimator could not tell are NaN, and never taken.
    """
    taken = estimated == np.nanmax(estimated)
    return float((true.max() - true[taken].mean()) / (true.max() - true.min()))


def _interval(estimated: np.ndarray, true: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % percentile-bootstrap interval of the rank correlation over candidates."""
    generator = np.random.default_rng(stream_seed(0, "bootstrap", "ranking"))
    drawn = generator.integers(len(true), size=(RESAMPLES, len(true)))
    values = _spearman(estimated[drawn], true[drawn])
    answered = values[~np.isnan(values)]
    if not len(answered):
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(answered, [tail, 1 - tail])
    return float(low), float(high)
