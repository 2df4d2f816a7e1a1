"""Gaussian-process regression of one value on a few hyperparameters in the unit cube.

A Matérn-5/2 kernel with a length scale per input, fitted by maximum a posteriori: a dozen trials do not determine seven
parameters by their likelihood alone. The prior of the length scales grows with the number of inputs (Hvarfner, Hellsten and
Nardi, 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Values = NDArray[np.float64]

_LENGTH_SPREAD = math.sqrt(3)
_NOISE_MEAN, _NOISE_SPREAD = -3.0, 1.0
"""Of the logarithm of the noise's share of the variance: some 5 %, since a trial's few dozen edits leave its scores uncertain."""
_JITTER = 1e-6
_BOUNDS = {"length": (-4.0, 6.0), "noise": (-12.0, 2.0)}
_ITERATIONS = 60


@dataclass(frozen=True)
class Hyperparameters:
    """Logarithms of the length scales [inputs], and of the noise's variance; the signal's variance is 1."""

    length: Values
    noise: float


def _kernel(first: Values, second: Values, length: Values) -> tuple[Values, Values, Values]:
    """Matérn 5/2 [n, m], its slope (1 + r)/3 · e^(−r), and the squares of the scaled differences [n, m, inputs]."""
    squares = ((first[:, None] - second[None]) / np.exp(length)) ** 2
    r = np.sqrt(5 * squares.sum(-1))
    decay = np.exp(-r)
    return (1 + r + r**2 / 3) * decay, (1 + r) / 3 * decay, squares


def negative_log_posterior(inputs: Values, values: Values, parameters: Hyperparameters) -> tuple[float, Values]:
    """− log p(values | inputs, parameters) − log p(parameters), up to a constant, and its gradient [inputs + 1].

    values [n] are standardised. The gradient is that of Rasmussen and Williams' Eq. 5.9.
    """
    kernel, slope, squares = _kernel(inputs, inputs, parameters.length)
    noise = math.exp(parameters.noise)
    factor = cholesky(kernel + (noise + _JITTER) * np.eye(len(inputs)), lower=True)
    weights = cho_solve((factor, True), values)
    typical = math.sqrt(2) + 0.5 * math.log(inputs.shape[1])
    from_prior = np.append((parameters.length - typical) / _LENGTH_SPREAD, (parameters.noise - _NOISE_MEAN) / _NOISE_SPREAD)
    total = 0.5 * values @ weights + np.log(np.diag(factor)).sum() + 0.5 * (from_prior**2).sum()
    inner = cho_solve((factor, True), np.eye(len(inputs))) - np.outer(weights, weights)
    by_length = 0.5 * np.einsum("nm,nm,nmi->i", inner, 5 * slope, squares)
    by_noise = 0.5 * noise * np.trace(inner)
    spreads = np.append(np.full(inputs.shape[1], _LENGTH_SPREAD), _NOISE_SPREAD)
    return float(total), np.append(by_length, by_noise) + from_prior / spreads


def fit_hyperparameters(inputs: Values, values: Values) -> Hyperparameters:
    """The most probable hyperparameters of inputs [n, inputs] and values [n], by L-BFGS from half the range."""
    standard = _standardised(values)[0]

    def objective(place: Values) -> tuple[float, Values]:
        return negative_log_posterior(inputs, standard, Hyperparameters(place[:-1], float(place[-1])))

    start = np.append(np.full(inputs.shape[1], math.log(0.5)), _NOISE_MEAN)
    bounds = [_BOUNDS["length"]] * inputs.shape[1] + [_BOUNDS["noise"]]
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _ITERATIONS}).x
    return Hyperparameters(np.asarray(found[:-1]), float(found[-1]))


def predict(inputs: Values, values: Values, parameters: Hyperparameters, at: Values) -> tuple[Values, Values]:
    """Mean and standard deviation [c] of what would be measured at points [c, inputs], given inputs [n, inputs], values [n]."""
    standard, middle, scale = _standardised(values)
    noise = math.exp(parameters.noise)
    kernel, _, _ = _kernel(inputs, inputs, parameters.length)
    factor = cholesky(kernel + (noise + _JITTER) * np.eye(len(inputs)), lower=True)
    cross, _, _ = _kernel(inputs, at, parameters.length)
    explained = (solve_triangular(factor, cross, lower=True) ** 2).sum(0)
    spread = np.sqrt(np.maximum(1 - explained, 0.0) + noise)
    return np.asarray(cross.T @ cho_solve((factor, True), standard) * scale + middle), np.asarray(spread * scale)


def _standardised(values: Values) -> tuple[Values, float, float]:
    middle, scale = float(values.mean()), float(values.std())
    scale = scale if scale > 1e-9 else 1.0
    return (values - middle) / scale, middle, scale
