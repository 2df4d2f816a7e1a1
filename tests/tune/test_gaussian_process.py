from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tune.gaussian_process import SPREAD, Hyperparameters, Places, Prior, fit_hyperparameters, negative_log_posterior, predict

PARAMETERS = Hyperparameters(np.array([-0.5, 0.7]), np.array([-1.0, -2.0]))
STAGES = np.array([[0], [0], [1], [1], [2], [2], [2], [3], [0]])


def matern(first: np.ndarray, second: np.ndarray, length: np.ndarray) -> float:
    """One value of the Matérn-5/2 kernel, from its definition."""
    r = math.sqrt(sum(((a - b) / s) ** 2 for a, b, s in zip(first, second, length, strict=True)))
    return (1 + math.sqrt(5) * r + 5 / 3 * r**2) * math.exp(-math.sqrt(5) * r)


def naive_covariance(first: Places, second: Places, parameters: Hyperparameters) -> np.ndarray:
    """Of the values without a trial's own chance, entry by entry; the mean's own variance is 1."""
    length, shared = np.exp(parameters.length), math.exp(parameters.chance[0])
    return np.array(
        [
            [
                1 + matern(a, b, length) + shared * (same_a[0] == same_b[0])
                for b, same_b in zip(second.inputs, second.stages, strict=True)
            ]
            for a, same_a in zip(first.inputs, first.stages, strict=True)
        ]
    )


def material() -> tuple[Places, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = generator.random((9, 2))
    return Places(inputs, STAGES), np.sin(4 * inputs[:, 0]) + 0.1 * generator.standard_normal(9)


def without_stages(inputs: np.ndarray) -> Places:
    return Places(inputs, np.zeros((len(inputs), 0), dtype=np.int64))


def test_predictions_are_the_textbook_formula() -> None:
    places, values = material()
    at = Places(np.random.default_rng(1).random((5, 2)), np.array([[0], [1], [2], [7], [8]]))
    own = math.exp(-2.0)
    inverse = np.linalg.inv(naive_covariance(places, places, PARAMETERS) + (own + 1e-6) * np.eye(9))
    cross = naive_covariance(places, at, PARAMETERS)
    scale = math.sqrt((((values - values.mean()) ** 2).sum() + SPREAD**2) / 10)
    standard = (values - values.mean()) / scale
    mean = values.mean() + scale * cross.T @ inverse @ standard
    variance = 2 + math.exp(-1.0) + own - np.einsum("nc,nm,mc->c", cross, inverse, cross)
    predicted, sd, chance, *_ = predict(places, values, PARAMETERS, at)
    np.testing.assert_allclose(predicted, mean, rtol=1e-8)
    np.testing.assert_allclose(sd, scale * np.sqrt(variance), rtol=1e-8)
    assert chance == pytest.approx(scale * math.exp(-1.0))


def test_a_line_in_what_was_told_is_one_more_term_of_the_covariance() -> None:
    """value = slope · told + rest, slope ~ N(0.6, 0.3²): the rest is as before, the line adds 0.3² (told − c)(told′ − c)."""
    places, values = material()
    generator, prior = np.random.default_rng(1), Prior(spread=0.1, slope=0.6, slope_sd=0.3)
    told, told_at = generator.random(9), generator.random(5)
    at = Places(generator.random((5, 2)), np.array([[0], [1], [2], [7], [8]]), told_at)
    values = values + 0.9 * told
    rest, own = values - 0.6 * told, math.exp(-2.0)
    scale = math.sqrt((((rest - rest.mean()) ** 2).sum() + 0.1**2) / 10)
    line, line_at = (0.3 * (one - told.mean()) / scale for one in (told, told_at))
    inverse = np.linalg.inv(naive_covariance(places, places, PARAMETERS) + np.outer(line, line) + (own + 1e-6) * np.eye(9))
    cross = naive_covariance(places, at, PARAMETERS) + np.outer(line, line_at)
    mean = 0.6 * told_at + rest.mean() + cross.T @ inverse @ (rest - rest.mean())
    variance = 2 + math.exp(-1.0) + own + line_at**2 - np.einsum("nc,nm,mc->c", cross, inverse, cross)
    found = predict(Places(places.inputs, places.stages, told), values, PARAMETERS, at, prior=prior)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-8)
    np.testing.assert_allclose(found.sd, scale * np.sqrt(variance), rtol=1e-8)
    nudged = Places(at.inputs, at.stages, told_at + 1e-3)
    moved = predict(Places(places.inputs, places.stages, told), values, PARAMETERS, nudged, prior=prior).mean
    np.testing.assert_allclose((moved - found.mean) / 1e-3, found.slope, rtol=1e-6)
    of_slope = 0.3**2 * (1 - line @ inverse @ line)
    assert found.slope_sd == pytest.approx(math.sqrt(of_slope), rel=1e-6)


def test_the_slope_is_learnt() -> None:
    generator, prior = np.random.default_rng(0), Prior(spread=0.1, slope=0.6, slope_sd=0.3)
    inputs, told = generator.random((60, 2)), generator.random(60)
    for slope in (0.2, 1.0):
        places = Places(inputs, np.zeros((60, 0), dtype=np.int64), told)
        values = slope * told + 0.01 * generator.standard_normal(60)
        found = predict(places, values, fit_hyperparameters(places, values, prior), places, prior=prior)
        assert found.slope == pytest.approx(slope, abs=0.1)


def test_two_values_that_are_alike_say_little_of_all_others() -> None:
    """Two VAEs of one shape are alike: another shape may still be worth its seconds."""
    places = Places(np.array([[0.5, 0.5], [0.6, 0.5]]), np.array([[0], [1]]))
    elsewhere = Places(np.array([[0.5, 0.0]]), np.array([[2]]))
    parameters = Hyperparameters(np.log([0.3, 0.3]), np.array([-2.0, -2.0]))
    _, few, *_ = predict(places, np.array([0.464, 0.460]), parameters, elsewhere)
    assert 0.05 < float(few[0]) < 0.3
    generator = np.random.default_rng(3)
    many = Places(generator.random((60, 2)), np.arange(60)[:, None])
    _, known, *_ = predict(many, 0.46 + 0.002 * generator.standard_normal(60), parameters, elsewhere)
    assert float(known[0]) < 0.04, "but sixty do"


def test_the_posterior_is_likelihood_times_prior() -> None:
    places, values = material()
    standard = (values - values.mean()) / values.std()

    def expected(parameters: Hyperparameters) -> float:
        covariance = naive_covariance(places, places, parameters) + (math.exp(parameters.chance[1]) + 1e-6) * np.eye(9)
        prior = sum(((one + math.log(6) - math.log(2)) / 0.5) ** 2 / 2 for one in parameters.length)
        prior += sum(((one + 2.3) / 0.5) ** 2 / 2 for one in parameters.chance)
        return prior - multivariate_normal.logpdf(standard, cov=covariance)

    other = Hyperparameters(np.array([0.3, -1.0]), np.array([-3.0, -4.0]))
    told = [negative_log_posterior(places, standard, one)[0] for one in (PARAMETERS, other)]
    assert told[0] - told[1] == pytest.approx(expected(PARAMETERS) - expected(other), rel=1e-6)


def test_the_gradient_is_that_of_the_posterior() -> None:
    places, values = material()
    standard = (values - values.mean()) / values.std()

    line = np.random.default_rng(2).standard_normal(len(places))

    def at(point: np.ndarray) -> tuple[float, np.ndarray]:
        return negative_log_posterior(places, standard, Hyperparameters(point[:2], point[2:]), line)

    point = np.array([-0.5, 0.7, -1.0, -2.0])
    steps = 1e-5 * np.eye(4)
    numerical = [(at(point + step)[0] - at(point - step)[0]) / 2e-5 for step in steps]
    np.testing.assert_allclose(at(point)[1], numerical, rtol=1e-6)


def test_an_input_that_does_not_matter_gets_a_long_scale() -> None:
    inputs = np.random.default_rng(2).random((40, 3))
    fitted = fit_hyperparameters(without_stages(inputs), np.sin(7 * inputs[:, 1]))
    assert fitted.length[1] < min(fitted.length[0], fitted.length[2]) - 1
    at = np.random.default_rng(3).random((30, 3))
    mean, sd, *_ = predict(without_stages(inputs), np.sin(7 * inputs[:, 1]), fitted, without_stages(at))
    assert np.abs(mean - np.sin(7 * at[:, 1])).max() < 0.4
    assert sd.max() < 0.6


def test_the_mean_is_not_that_of_the_stage_that_was_tried_most() -> None:
    generator = np.random.default_rng(5)
    inputs = np.vstack([0.1 + 0.02 * generator.random((12, 2)), [[0.1, 0.9]]])
    places = Places(inputs, np.array([[0]] * 12 + [[1]]))
    values = np.array([1.0] * 12 + [0.0]) + 0.01 * generator.standard_normal(13)
    far = Places(np.array([[0.95, 0.5]]), np.array([[2]]))
    mean, *_ = predict(places, values, Hyperparameters(np.array([-1.5, -1.5]), np.array([-1.0, -2.0])), far)
    assert values.mean() > 0.9
    assert 0.4 < mean[0] < 0.7


def test_a_neighbour_of_the_good_is_expected_to_be_better_than_a_stranger() -> None:
    """From two stages, before anything could tell what matters."""
    places = Places(np.array([[0.2, 0.2, 0.5], [0.2, 0.2, 0.6], [0.8, 0.9, 0.5]]), np.array([[0], [0], [1]]))
    values = np.array([0.3, 0.28, 0.0])
    at = Places(np.array([[0.3, 0.2, 0.5], [0.8, 0.2, 0.5]]), np.array([[2], [3]]))
    mean, sd, *_ = predict(places, values, fit_hyperparameters(places, values), at)
    assert mean[0] > mean[1] + 0.03
    assert sd[0] < sd[1]


def test_luck_is_told_apart_into_that_of_a_stage_and_that_of_a_trial() -> None:
    generator = np.random.default_rng(4)
    stages = np.repeat(np.arange(20), 4)[:, None]
    inputs, luck = generator.random((80, 2)), generator.standard_normal(20)
    of_stages = Places(inputs, stages)
    for stage_sd, own_sd in ((1.0, 0.1), (0.1, 1.0)):
        values = stage_sd * luck[stages[:, 0]] + own_sd * generator.standard_normal(80)
        stage, own = fit_hyperparameters(of_stages, values).chance
        assert (stage > own + 1) == (stage_sd > own_sd), (stage, own)
        assert (own > stage + 1) == (own_sd > stage_sd), (stage, own)


def test_one_value_and_equal_values_are_no_error() -> None:
    for inputs, values in ((np.array([[0.2, 0.4]]), np.array([0.7])), (np.random.default_rng(0).random((5, 2)), np.full(5, 0.3))):
        places = without_stages(inputs)
        mean, sd, *_ = predict(places, values, fit_hyperparameters(places, values), places)
        np.testing.assert_allclose(mean, values)
        assert np.isfinite(sd).all()
