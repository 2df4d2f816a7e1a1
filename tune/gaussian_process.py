"""Gaussian-process regression of one value on a few hyperparameters in the unit cube, of trials that share stages.

A Matérn-5/2 kernel with a length scale per input says what the hyperparameters do. What is left is not independent from trial
to trial: a fitted VAE or critic is better or worse than its neighbours by chance, and so are all trials that use it. So each
level of stages has a variance of its own, shared by the trials with the same stage of that level, and a single trial tells much
of a stage's own luck. All of it is fitted by maximum a posteriori under a narrow prior: a dozen trials do not determine nine
parameters, and what they seem to say of them misleads more than a fair guess does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    """Where trials are: inputs [n, inputs] in the unit cube, and which stage they use at each level, stages [n, levels]."""

    inputs: Values
    stages: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, first: int, end: int) -> Places:
        """Those from row `first` to before `end`."""
        return Places(self.inputs[first:end], self.stages[first:end])


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


def _factor(places: Places, parameters: Hyperparameters) -> Values:
    """Lower Cholesky factor of the covariance of what is measured, [n, n]."""
    kernel = _kernel(places, places, parameters.length)
    variance = np.exp(parameters.chance)
    shared = np.einsum("l,lnm->nm", variance[:-1], _same(places, places))
    return np.asarray(cholesky(_MEAN_VARIANCE + kernel + shared + (variance[-1] + _JITTER) * np.eye(len(places)), lower=True))


def _typical(places: Places) -> Values:
    """The prior's mode: logarithms of the length scales and of the variances by chance, [inputs + levels + 1]."""
    inputs, variances = places.inputs.shape[1], places.stages.shape[1] + 1
    return np.append(np.full(inputs, math.log(_LENGTH * inputs)), np.full(variances, _CHANCE_MEAN))


def negative_log_posterior(places: Places, values: Values, parameters: Hyperparameters) -> tuple[float, Values]:
    """− log p(values | places, parameters) − log p(parameters), up to a constant, and its gradient [inputs + levels + 1].

    values [n] are standardised. The gradient is that of Rasmussen and Williams' Eq. 5.9.
    """
    inputs = places.inputs.shape[1]
    factor = _factor(places, parameters)
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


def fit_hyperparameters(places: Places, values: Values, spread: float = SPREAD) -> Hyperparameters:
    """The most probable hyperparameters of what was measured, values [n], by L-BFGS from the prior's mode.

    spread: that of the values, a priori.
    """
    standard, inputs = _standardised(values, spread)[0], places.inputs.shape[1]

    def objective(point: Values) -> tuple[float, Values]:
        return negative_log_posterior(places, standard, Hyperparameters(point[:inputs], point[inputs:]))

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
    spread: float = SPREAD,
) -> tuple[Values, Values, float]:
    """Mean and standard deviation [c] of what would be measured at other places, given values [n] at `places`.

    And of that standard deviation the part that is a trial's own chance: what no other trial tells of. measured: how many of the
    values are; the rest are guesses, and do not change the scale (none: all are). spread: that of the values, a priori.
    """
    _, middle, scale = _standardised(values[:measured], spread)
    standard = (values - middle) / scale
    variance = np.exp(parameters.chance)
    factor = _factor(places, parameters)
    shared = np.einsum("l,lnm->nm", variance[:-1], _same(places, at))
    cross = _MEAN_VARIANCE + _kernel(places, at, parameters.length) + shared
    explained = (solve_triangular(factor, cross, lower=True) ** 2).sum(0)
    sd = np.sqrt(np.maximum(_MEAN_VARIANCE + 1 + variance.sum() - explained, 0.0))
    mean = cross.T @ cho_solve((factor, True), standard) * scale + middle
    return np.asarray(mean), np.asarray(sd * scale), float(np.sqrt(variance[-1]) * scale)


def _standardised(values: Values, spread: float) -> tuple[Values, float, float]:
    """Values [n] less their mean, by their standard deviation, to which `spread` is one value more; and both of these."""
    middle = float(values.mean())
    scale = math.sqrt((values.size * float(values.var()) + spread**2) / (values.size + 1))
    return (values - middle) / scale, middle, scale
