from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tune.gaussian_process import Hyperparameters, fit_hyperparameters, negative_log_posterior, predict

PARAMETERS = Hyperparameters(np.array([-0.5, 0.7]), -2.0)


def matern(first: np.ndarray, second: np.ndarray, length: np.ndarray) -> float:
    """One value of the Matérn-5/2 kernel, from its definition."""
    r = math.sqrt(sum(((a - b) / s) ** 2 for a, b, s in zip(first, second, length, strict=True)))
    return (1 + math.sqrt(5) * r + 5 / 3 * r**2) * math.exp(-math.sqrt(5) * r)


def naive_covariance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    length = np.exp(PARAMETERS.length)
    return np.array([[matern(a, b, length) for b in second] for a in first])


def material() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = generator.random((9, 2))
    return inputs, np.sin(4 * inputs[:, 0]) + 0.1 * generator.standard_normal(9)


def test_predictions_are_the_textbook_formula() -> None:
    inputs, values = material()
    at = np.random.default_rng(1).random((5, 2))
    noise = math.exp(-2.0)
    inverse = np.linalg.inv(naive_covariance(inputs, inputs) + (noise + 1e-6) * np.eye(9))
    cross = naive_covariance(inputs, at)
    standard = (values - values.mean()) / values.std()
    mean = values.mean() + values.std() * cross.T @ inverse @ standard
    variance = 1 + noise - np.einsum("nc,nm,mc->c", cross, inverse, cross)
    predicted, sd = predict(inputs, values, PARAMETERS, at)
    np.testing.assert_allclose(predicted, mean, rtol=1e-8)
    np.testing.assert_allclose(sd, values.std() * np.sqrt(variance), rtol=1e-8)


def test_the_posterior_is_likelihood_times_prior() -> None:
    inputs, values = material()
    standard = (values - values.mean()) / values.std()

    def expected(parameters: Hyperparameters) -> float:
        covariance = np.array([[matern(a, b, np.exp(parameters.length)) for b in inputs] for a in inputs])
        covariance += (math.exp(parameters.noise) + 1e-6) * np.eye(9)
        prior = sum((one - math.sqrt(2) - 0.5 * math.log(2)) ** 2 / 6 for one in parameters.length)
        return prior + (parameters.noise + 3) ** 2 / 2 - multivariate_normal.logpdf(standard, cov=covariance)

    other = Hyperparameters(np.array([0.3, -1.0]), -4.0)
    told = [negative_log_posterior(inputs, standard, one)[0] for one in (PARAMETERS, other)]
    assert told[0] - told[1] == pytest.approx(expected(PARAMETERS) - expected(other), rel=1e-6)


def test_the_gradient_is_that_of_the_posterior() -> None:
    inputs, values = material()
    standard = (values - values.mean()) / values.std()

    def at(place: np.ndarray) -> tuple[float, np.ndarray]:
        return negative_log_posterior(inputs, standard, Hyperparameters(place[:2], float(place[2])))

    place = np.array([-0.5, 0.7, -2.0])
    steps = 1e-5 * np.eye(3)
    numerical = [(at(place + step)[0] - at(place - step)[0]) / 2e-5 for step in steps]
    np.testing.assert_allclose(at(place)[1], numerical, rtol=1e-6)


def test_an_input_that_does_not_matter_gets_a_long_scale() -> None:
    inputs = np.random.default_rng(2).random((40, 3))
    fitted = fit_hyperparameters(inputs, np.sin(7 * inputs[:, 1]))
    assert fitted.length[1] < min(fitted.length[0], fitted.length[2]) - 1
    at = np.random.default_rng(3).random((30, 3))
    mean, sd = predict(inputs, np.sin(7 * inputs[:, 1]), fitted, at)
    assert np.abs(mean - np.sin(7 * at[:, 1])).max() < 0.25
    assert sd.max() < 0.4


def test_one_value_and_equal_values_are_no_error() -> None:
    for inputs, values in ((np.array([[0.2, 0.4]]), np.array([0.7])), (np.random.default_rng(0).random((5, 2)), np.full(5, 0.3))):
        fitted = fit_hyperparameters(inputs, values)
        mean, sd = predict(inputs, values, fitted, inputs)
        np.testing.assert_allclose(mean, values)
        assert np.isfinite(sd).all()
