"""Intervals: against closed forms, and as often right as they say they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from migvis.errors import InputError
from migvis.statistics import Interval, bootstrap_interval, paired_difference, t_interval

STUDIES = 1500


def coverage(make, seeds: int, truth: float, draw) -> float:
    random = np.random.default_rng(3)
    intervals: list[Interval] = [make(draw(random, seeds)) for _ in range(STUDIES)]
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def normal(random, count):
    return random.normal(2.0, 3.0, count)


def test_student_s_interval_is_the_one_sample_test_s() -> None:
    values = [0.3, 0.1, 0.4, 0.15, 0.9]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    interval = t_interval(values)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.sd == pytest.approx(np.std(values, ddof=1))
    assert interval.count == 5
    assert interval.clear_of_zero == (stats.ttest_1samp(values, 0.0).pvalue < 0.05)
    assert t_interval(values, confidence=0.5).low > interval.low


def test_a_paired_difference_is_the_paired_test_s_and_narrower_than_an_unpaired_one() -> None:
    random = np.random.default_rng(0)
    shared = random.normal(0, 10, 5)
    first, second = shared + random.normal(1, 0.1, 5), shared + random.normal(0, 0.1, 5)
    interval = paired_difference(first, second)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    unpaired = stats.ttest_ind(first, second).confidence_interval(0.95)
    assert interval.clear_of_zero
    assert not unpaired.low > 0


def test_five_seeds_student_covers_and_a_percentile_bootstrap_does_not() -> None:
    """The reason why intervals over seeds are Student's: 95 % of them hold the truth, of the bootstrap's some 83 %."""
    assert 0.935 < coverage(t_interval, 5, 2.0, normal) < 0.965
    assert coverage(lambda values: bootstrap_interval(values, seed=1), 5, 2.0, normal) < 0.88


def test_over_many_stimuli_the_bootstrap_covers_scores_that_are_not_normal() -> None:
    def scores(random, count):
        return np.where(random.random(count) < 0.3, 1.0, random.uniform(-1, 0, count))

    assert 0.92 < coverage(lambda values: bootstrap_interval(values, seed=1), 32, 0.3 - 0.35, scores) < 0.97


def test_the_bootstrap_is_fixed_by_its_seed_and_holds_its_mean() -> None:
    values = np.random.default_rng(0).normal(size=32)
    first, again, other = bootstrap_interval(values), bootstrap_interval(values), bootstrap_interval(values, seed=1)
    assert first == again
    assert first.low != other.low
    assert first.low < first.mean < first.high
    assert bootstrap_interval([0.5] * 8).low == bootstrap_interval([0.5] * 8).high == 0.5


@pytest.mark.parametrize("make", [t_interval, bootstrap_interval])
def test_a_single_value_has_no_interval(make) -> None:
    interval = make([0.4])
    assert interval.mean == 0.4
    assert math.isnan(interval.low)
    assert not interval.clear_of_zero


@pytest.mark.parametrize("make", [t_interval, bootstrap_interval])
@pytest.mark.parametrize(
    ("values", "message"), [([], "at least one"), ([1.0, math.nan], "not finite"), ([[1.0]], "at least one")]
)
def test_bad_values_are_refused(make, values, message) -> None:
    with pytest.raises(InputError, match=message):
        make(values)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="2 values against 1"):
        paired_difference([1.0, 2.0], [1.0])
