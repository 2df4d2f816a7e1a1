"""Gaussian-process regression of one value on a few hyperparameters in the unit cube, of trials that share stages.

A Matérn-5/2 kernel with a length scale per input says what the hyperparameters do. What is left is not independent from trial
to trial: a fitted VAE or critic is better or worse than its neighbours by chance, and so are all trials that use it. So each
level of stages has a variance of its own, shared by the trials with the same stage of that level, and a single trial tells much
of a stage's own luck. Where an earlier stage tells something of the value, the value is linear in that besides, with a normal
prior of the slope. All of it is fitted by maximum a posteriori under a narrow prior: a dozen trials do not determine nine
parameters, and what they seem to say of them misleads more than a fair guess does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

Values = NDArray[np.float64]

_LENGTH, _LENGTH_SPREAD = 1 / 6, 0.5
"""Median of the length scales over the number of inputs, in units of their range, and the spread of their logarithms: the more
inputs, the less each of them bends. (It grows with the root of their number in Hvarfner, Hellsten and Nardi, 2024, from a
longer guess: with it all that the first dozen trials tell is put down to chance.)"""
_MEAN_VARIANCE = 1.0
"""Of the mean, in units of the hyperparameters' own: the mean of what was measured is not fair, as the best are tried most."""
_CHANCE_MEAN, _CHANCE_SPREAD = -2.3, 0.5
"""Of the logarithms of the variances by chance, in units of the hyperparameters' own: of each about a tenth, give or take a half.

A trial's few dozen edits leave its scores uncertain by some 0.05, and its hyperparameters move them by some 0.1.
"""
SPREAD = 0.18
"""Of an objective between 0 and 1, a priori. The first two VAEs are often alike, and by their own spread all others would be,
too, so that none would be worth its seconds."""
_JITTER = 1e-6
_BOUNDS = {"length": (-4.0, 6.0), "chance": (-12.0, 2.0)}
_ITERATIONS = 60


@dataclass(frozen=True)
class Hyperparameters:
    """Logarithms of the length scales [inputs], and of the variances by chance [levels + 1]: of each level's stages, then of a
    trial itself. The hyperparameters' own variance is 1."""

    length: Values
    chance: Values


@dataclass(frozen=True)
class Places:
    """Where trials are: inputs [n, inputs] in the unit cube, and which stage they use at each level, stages [n, levels].

    told [n]: what an earlier stage tells of the value (none: nothing).
    """

    inputs: Values
    stages: NDArray[np.int64]
    told: Values | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, first: int, end: int) -> Places:
        """Those from row `first` to before `end`."""
        told = None if self.told is None else self.told[first:end]
        return Places(self.inputs[first:end], self.stages[first:end], told)


@dataclass(frozen=True)
class Prior:
    """Of a value that is measured: the spread of what `told` does not tell, and the slope of its line in `told`."""

    spread: float = SPREAD
    slope: float = 0.0
    slope_sd: float = 0.0


_PRIOR = Prior()


class Prediction(NamedTuple):
    """Mean and standard deviation [c] of what would be measured; own: the part of the latter that no other trial tells of, a
    trial's own chance; slope, slope_sd: of the line in what was told."""

    mean: Values
    sd: Values
    own: float
    slope: float
    slope_sd: float


def _distance(first: Places, second: Places, length: Values) -> Values:
    """√5 times the distance in units of the length scales, [n, m]."""
    scale = np.exp(length)
    return np.sqrt(5 * np.asarray(cdist(first.inputs / scale, second.inputs / scale, "sqeuclidean")))


def _kernel(first: Places, second: Places, length: Values) -> Values:
    """Matérn 5/2, [n, m]."""
    r = _distance(first, second, length)
    return np.asarray((1 + r + r**2 / 3) * np.exp(-r))


def _same(first: Places, second: Places) -> Values:
    """Whether two trials share the stage of each level, as 0 or 1, [levels, n, m]."""
    return np.asarray(first.stages.T[:, :, None] == second.stages.T[:, None, :], dtype=np.float64)


def _factor(places: Places, parameters: Hyperparameters, line: Values) -> Values:
    """Lower Cholesky factor of the covariance of what is measured, [n, n]; line [n]: told, times the sd of its slope."""
    kernel = _kernel(places, places, parameters.length)
    variance = np.exp(parameters.chance)
    shared = np.einsum("l,lnm->nm", variance[:-1], _same(places, places))
    own = (variance[-1] + _JITTER) * np.eye(len(places))
    return np.asarray(cholesky(_MEAN_VARIANCE + kernel + shared + np.outer(line, line) + own, lower=True))


def _typical(places: Places) -> Values:
    """The prior's mode: logarithms of the length scales and of the variances by chance, [inputs + levels + 1]."""
    inputs, variances = places.inputs.shape[1], places.stages.shape[1] + 1
    return np.append(np.full(inputs, math.log(_LENGTH * inputs)), np.full(variances, _CHANCE_MEAN))


def negative_log_posterior(
    places: Places, values: Values, parameters: Hyperparameters, line: Values | None = None
) -> tuple[float, Values]:
    """− log p(values | places, parameters) − log p(parameters), up to a constant, and its gradient [inputs + levels + 1].

    values [n] are standardised; line [n]: what was told, times the standard deviation of its slope (none: nothing was).
    The gradient is that of Rasmussen and Williams' Eq. 5.9.
    """
    inputs = places.inputs.shape[1]
    factor = _factor(places, parameters, np.zeros(len(places)) if line is None else line)
    weights = cho_solve((factor, True), values)
    spread = np.append(np.full(inputs, _LENGTH_SPREAD), np.full(len(parameters.chance), _CHANCE_SPREAD))
    off = (np.append(parameters.length, parameters.chance) - _typical(places)) / spread
    total = 0.5 * values @ weights + np.log(np.diag(factor)).sum() + 0.5 * (off**2).sum()
    inner = cho_solve((factor, True), np.eye(len(places))) - np.outer(weights, weights)
    r = _distance(places, places, parameters.length)
    slope = (1 + r) / 3 * np.exp(-r)
    squares = ((places.inputs[:, None] - places.inputs[None]) / np.exp(parameters.length)) ** 2
    by_length = 0.5 * np.einsum("nm,nm,nmi->i", inner, 5 * slope, squares)
    shared = np.einsum("nm,lnm->l", inner, _same(places, places))
    by_chance = 0.5 * np.exp(parameters.chance) * np.append(shared, np.trace(inner))
    return float(total), np.append(by_length, by_chance) + off / spread


def fit_hyperparameters(places: Places, values: Values, prior: Prior = _PRIOR) -> Hyperparameters:
    """The most probable hyperparameters of what was measured, values [n], by L-BFGS from the prior's mode."""
    standard, inputs = _standardised(places, values, prior), places.inputs.shape[1]

    def objective(point: Values) -> tuple[float, Values]:
        return negative_log_posterior(places, standard.values, Hyperparameters(point[:inputs], point[inputs:]), standard.line)

    start = _typical(places)
    bounds = [_BOUNDS["length"]] * inputs + [_BOUNDS["chance"]] * (len(start) - inputs)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _ITERATIONS}).x
    return Hyperparameters(np.asarray(found[:inputs]), np.asarray(found[inputs:]))


def predict(
    places: Places,
    values: Values,
    parameters: Hyperparameters,
    at: Places,
    *,
    measured: int | None = None,
    prior: Prior = _PRIOR,
) -> Prediction:
    """What would be measured at other places, given values [n] at `places`.

    measured: how many of the values are; the rest are guesses, and do not change the scale (none: all are).
    """
    known = len(places) if measured is None else measured
    standard = _standardised(places.rows(0, known), values[:known], prior)
    line, line_at = standard.line_of(places, prior), standard.line_of(at, prior)
    rest = values - prior.slope * _told(places)
    variance = np.exp(parameters.chance)
    factor = _factor(places, parameters, line)
    shared = np.einsum("l,lnm->nm", variance[:-1], _same(places, at))
    cross = _MEAN_VARIANCE + _kernel(places, at, parameters.length) + shared + np.outer(line, line_at)
    explained = (solve_triangular(factor, cross, lower=True) ** 2).sum(0)
    sd = np.sqrt(np.maximum(_MEAN_VARIANCE + 1 + variance.sum() + line_at**2 - explained, 0.0))
    weights = cho_solve((factor, True), (rest - standard.middle) / standard.scale)
    mean = cross.T @ weights * standard.scale + standard.middle + prior.slope * _told(at)
    own = float(np.sqrt(variance[-1]) * standard.scale)
    slope = prior.slope + prior.slope_sd * float(line @ weights)
    left = 1.0 - float((solve_triangular(factor, line, lower=True) ** 2).sum())
    return Prediction(np.asarray(mean), np.asarray(sd * standard.scale), own, slope, prior.slope_sd * math.sqrt(max(left, 0.0)))


def _told(places: Places) -> Values:
    """What was told [n]: nothing is 0."""
    return np.zeros(len(places)) if places.told is None else places.told


@dataclass(frozen=True)
class _Standardised:
    """Values less their line, then less their mean `middle`, by their standard deviation `scale`; line [n] as in _factor."""

    values: Values
    middle: float
    scale: float
    told: float
    line: Values

    def line_of(self, places: Places, prior: Prior) -> Values:
        """The line of other places, from the same centre."""
        return (_told(places) - self.told) * prior.slope_sd / self.scale


def _standardised(places: Places, values: Values, prior: Prior) -> _Standardised:
    """The prior's spread is one value more to the standard deviation."""
    told = _told(places)
    rest = values - prior.slope * told
    middle, centre = float(rest.mean()), float(told.mean())
    scale = math.sqrt((rest.size * float(rest.var()) + prior.spread**2) / (rest.size + 1))
    return _Standardised((rest - middle) / scale, middle, scale, centre, (told - centre) * prior.slope_sd / scale)
