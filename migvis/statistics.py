"""Intervals for what is measured over a few seeds or over many stimuli.

Seeds are few (5): a percentile bootstrap over them covers far too little, since it takes their spread for the truth, so
intervals over seeds are Student's. Stimuli are many, and their scores are bounded and far from normal: there the
bootstrap is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from migvis.errors import InputError

RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean, its interval low…high (NaN where there is none, as of a single value), the sd and the number of values."""

    mean: float
    low: float
    high: float
    sd: float
    count: int

    @property
    def clear_of_zero(self) -> bool:
        """Whether 0 lies outside; false where there is no interval."""
        return self.low > 0 or self.high < 0


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise InputError(f"interval: expected a list of at least one value, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError("interval: a value is not finite")
    return array


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of n values: mean ± t_{n−1}·sd/√n, sd with n − 1 in the denominator.

    Raises InputError without values, or for one that is not finite.
    """
    array = _finite(values)
    mean, count = float(array.mean()), len(array)
    if count == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    sd = float(array.std(ddof=1))
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * sd / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, sd, count)


def paired_difference(values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of values − baseline, paired by seed. Raises InputError for unequal lengths."""
    if len(values) != len(baseline):
        raise InputError(f"paired difference: {len(values)} values against {len(baseline)}")
    return t_interval(_finite(values) - _finite(baseline), confidence)


def bootstrap_interval(values: Sequence[float], seed: int = 0, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap of the mean over stimuli: the middle share `confidence` of RESAMPLES means of n values drawn with
    replacement (fixed by `seed`). Raises InputError without values, or for one that is not finite."""
    array = _finite(values)
    mean, count = float(array.mean()), len(array)
    if count == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(array[drawn].mean(axis=1), [tail, 100 - tail])
    return Interval(mean, float(low), float(high), float(array.std(ddof=1)), count)
