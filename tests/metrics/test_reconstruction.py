from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from migvis.errors import InputError
from migvis.metrics import explained_by_latents, neural_r2, neural_rmse


@pytest.fixture
def responses() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((60, 5)) * [1, 2, 3, 4, 5] + 7


def test_r2_of_perfect_mean_and_noisy_predictions(responses):
    noisy = responses + np.random.default_rng(1).standard_normal(responses.shape)
    assert neural_r2(responses, responses) == 1.0
    assert neural_r2(responses, np.broadcast_to(responses.mean(0), responses.shape)) == pytest.approx(0.0)
    assert neural_r2(responses, noisy) == pytest.approx(r2_score(responses, noisy))
    assert neural_r2(torch.from_numpy(responses), torch.from_numpy(noisy)) == pytest.approx(r2_score(responses, noisy))


def test_r2_averages_over_units_not_over_variance(responses):
    prediction = responses.copy()
    prediction[:, 0] = responses[:, 0].mean()
    assert neural_r2(responses, prediction) == pytest.approx(4 / 5)


def test_constant_units_are_left_out(responses):
    silent = np.column_stack([responses, np.full(60, 3.0)])
    assert neural_r2(silent, silent + 0.1) == pytest.approx(neural_r2(responses, responses + 0.1))
    with pytest.raises(InputError, match="constant"):
        neural_r2(np.ones((4, 2)), np.ones((4, 2)))


def test_rmse_is_a_mean_over_units_of_root_mean_squares():
    truth = np.zeros((4, 2))
    assert neural_rmse(truth, truth + np.array([1.0, 3.0])) == pytest.approx(2.0)


def test_shapes_and_values_are_checked(responses):
    with pytest.raises(InputError, match="prediction: expected 60 rows, got 59"):
        neural_r2(responses, responses[:59])
    with pytest.raises(InputError, match="expected 5 units"):
        neural_rmse(responses, responses[:, :4])
    with pytest.raises(InputError, match="not finite"):
        neural_r2(responses, np.where(responses > 8, np.nan, responses))


def test_explained_by_latents_is_the_ridge_refit_of_the_chosen_dimensions():
    generator = np.random.default_rng(2)
    z = generator.standard_normal((300, 6)) * [1, 2, 3, 4, 5, 6] + 1
    y = z @ generator.standard_normal((6, 8)) + 0.5 * generator.standard_normal((300, 8))
    train, held_out, used = slice(0, 200), slice(200, 300), [0, 3]
    mean, scale = z[train][:, used].mean(0), z[train][:, used].std(0)
    ridge = Ridge(alpha=1.0).fit((z[train][:, used] - mean) / scale, y[train])
    expected = r2_score(y[held_out], ridge.predict((z[held_out][:, used] - mean) / scale))
    assert explained_by_latents(z[train], y[train], z[held_out], y[held_out], used) == pytest.approx(expected)
    assert explained_by_latents(z[train], y[train], z[held_out], y[held_out]) > 0.9
    with pytest.raises(InputError, match="dimensions"):
        explained_by_latents(z[train], y[train], z[held_out], y[held_out], [6])
