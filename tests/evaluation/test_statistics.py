import numpy as np
import pytest

from offmarl.evaluation.scores import normalised_score
from offmarl.evaluation.statistics import bootstrap_interval


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = bootstrap_interval(generator.normal(3.0, 1.0, 40), "episodes", resamples=500)
        covered += interval.low <= 3.0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_one_value_has_no_interval():
    interval = bootstrap_interval([5.0], "seeds")
    assert (interval.mean, interval.low, interval.high) == (5.0, None, None)
    assert interval.text() == "5.0"
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([], "seeds")


def test_normalised_scores():
    references = {"random": 160.0, "expert": 520.0}
    assert normalised_score(160.0, references) == 0
    assert normalised_score(520.0, references) == 100
    assert normalised_score(700.0, None) is None
