import tracemalloc
from functools import partial

import numpy as np
import pytest

from offmarl.evaluation.scores import COVERED, normalised_score
from offmarl.evaluation.statistics import (
    Bootstrap,
    advantage,
    bootstrap_band,
    bootstrap_interval,
    fixed,
    improvement,
    interquartile_mean,
    mean_of_tasks,
    median_of_tasks,
    optimality_gap,
    share_above,
)

# 5 seeds of 3 tasks, as `numpy.random.default_rng(0).normal(50, 10, (5, 3))` and then `normal(60, 10, (5, 3))` draw
# them; what rliable 1.2.0 says of them stands in the tests.
GENERATOR = np.random.default_rng(0)
A = list(GENERATOR.normal(50, 10, (5, 3)).T)
B = list(GENERATOR.normal(60, 10, (5, 3)).T)


def arrays(*tasks):
    return [np.array(task, dtype=np.float64) for task in tasks]


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = bootstrap_interval(generator.normal(3.0, 1.0, 40), "episodes", resamples=500)
        covered += interval.low <= 3.0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize(("seeds", "share"), COVERED.items())
def test_intervals_of_few_seeds_hold_the_mean_as_often_as_their_note_says(seeds, share):
    generator = np.random.default_rng(0)
    drawn = [bootstrap_interval(generator.normal(size=seeds), "seeds", resamples=500) for _ in range(400)]
    assert np.mean([one.low <= 0 <= one.high for one in drawn]) == pytest.approx(share, abs=0.05)


def test_very_many_episodes_fit_into_the_memory():
    values = np.random.default_rng(0).normal(3.0, 1.0, 20_000)
    tracemalloc.start()
    interval = bootstrap_interval(values, "episodes", resamples=2_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 27, "bytes; all resamples at once take 640 MB"
    assert interval.low < 3.0 < interval.high


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


def test_numbers_that_are_nearly_zero_have_no_sign():
    assert [fixed(-0.04, 1), fixed(-0.06, 1), fixed(3.14159, 2)] == ["0.0", "-0.1", "3.14"]


def test_the_interquartile_mean_cuts_a_quarter_off_at_either_end():
    # 8 values of two tasks pooled: the lowest two and the highest two go, (2 + 3 + 4 + 5) / 4 stay
    assert interquartile_mean(arrays([0, 5, 3, 100], [1, 2, 4, 90])) == pytest.approx(3.5)
    # of 5 values int(5 / 4) = 1 goes at either end, of 3 none
    assert interquartile_mean(arrays([9, 1, 2, 3, 4])) == pytest.approx(3.0)
    assert interquartile_mean(arrays([1, 2, 9])) == pytest.approx(4.0)


def test_the_other_aggregates():
    tasks = arrays([0, 10], [20, 40], [90, 130])  # means 5, 30, 110
    assert mean_of_tasks(tasks) == pytest.approx((5 + 30 + 110) / 3)
    assert median_of_tasks(tasks) == pytest.approx(30)
    # 130 counts as 100: what is missing to 100 is 95, 70 and 5
    assert optimality_gap(tasks, 100) == pytest.approx((95 + 70 + 5) / 3)
    # above 20 in the first task none, in the second one of two, in the third both
    assert share_above(tasks, 20) == pytest.approx((0 + 0.5 + 1) / 3)


def test_improvement_counts_pairs_and_ties_for_half():
    # first task: of 4 pairs (3 > 2, 3 = 3, 5 > 2, 5 > 3) three and a half; second task: none of 2
    assert improvement(arrays([3, 5], [1]), arrays([2, 3], [7, 8])) == pytest.approx((3.5 / 4 + 0) / 2)
    assert improvement(arrays([4, 4]), arrays([4])) == pytest.approx(0.5)


def test_it_agrees_with_rliable():
    assert interquartile_mean(A) == pytest.approx(48.24441753, abs=1e-8)
    assert median_of_tasks(A) == pytest.approx(48.187395, abs=1e-6)
    assert mean_of_tasks(A) == pytest.approx(47.65007749, abs=1e-8)
    assert optimality_gap(A, 100) == pytest.approx(52.34992251, abs=1e-8)
    assert improvement(B, A) == pytest.approx(0.88)
    assert share_above(A, 50) == pytest.approx(7 / 15)
    # its intervals, up to the noise of 2,000 draws
    for statistic, low, high in (
        (interquartile_mean, 43.43, 52.73),
        (median_of_tasks, 43.48, 52.76),
        (mean_of_tasks, 43.07, 52.04),
        (partial(optimality_gap, target=100.0), 47.96, 56.93),
    ):
        estimate = Bootstrap(A).estimate(statistic)
        assert estimate.low == pytest.approx(low, abs=0.5)
        assert estimate.high == pytest.approx(high, abs=0.5)
    chance = Bootstrap(B, "b").against(Bootstrap(A, "a"), improvement)
    assert (chance.low, chance.high) == (pytest.approx(0.72, abs=0.03), pytest.approx(1.0, abs=0.03))


def test_the_stratified_interval_covers_as_often_as_it_says():
    generator, covered = np.random.default_rng(1), 0
    for trial in range(
        200
    ):  # three tasks of different difficulty: strata keep their difference out of the interval
        tasks = [generator.normal(mean, 5.0, 12) for mean in (10.0, 50.0, 90.0)]
        interval = Bootstrap(tasks, str(trial), resamples=500).estimate(mean_of_tasks)
        covered += interval.low <= 50.0 <= interval.high
        assert interval.high - interval.low < 10  # drawn across tasks it would be about 20
    assert 0.88 <= covered / 200 <= 0.99


def test_intervals_are_the_same_every_time_and_independent_between_methods():
    again = Bootstrap(A, "a")
    assert Bootstrap(A, "a").estimate(mean_of_tasks) == again.estimate(mean_of_tasks)
    # a method against its twin: drawn alike their difference would always be 0
    assert again.against(Bootstrap(A, "twin"), advantage).low < -1
    assert again.against(again, advantage).high == 0


def test_a_task_with_one_seed_leaves_no_interval():
    estimate = Bootstrap(arrays([1, 2, 3], [5])).estimate(mean_of_tasks)
    assert (estimate.value, estimate.low, estimate.high) == (3.5, None, None)
    assert estimate.text() == "3.5"
    with pytest.raises(ValueError, match="no values"):
        Bootstrap([])


def test_the_band_of_a_curve_holds_its_mean_and_widens_with_the_spread():
    values = np.stack([np.full(6, 3.0), np.arange(6.0)])  # [P, S]: all seeds alike, then spread
    low, high = bootstrap_band(values)
    assert (low[0], high[0]) == (pytest.approx(3.0), pytest.approx(3.0))
    assert low[1] < 2.5 < high[1]
    assert bootstrap_band(values[:, :1]) is None
