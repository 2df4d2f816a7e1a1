from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from migvis.metrics.logistic import SMOOTHING, cross_validated_cross_entropy, fit_logistic, quadratic_features

N = 120


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    labels = np.stack([generator.integers(0, 3, N), generator.integers(0, 5, N)])
    values = generator.standard_normal((2, N, 3)) + np.stack([np.eye(3)[labels[0]], 2 * np.eye(5)[labels[1]][:, :3]])
    return torch.from_numpy(values), torch.from_numpy(labels), torch.tensor([3, 5])


def scikit_features(values: np.ndarray, training: np.ndarray) -> np.ndarray:
    linear = StandardScaler().fit(values[training]).transform(values)
    products = PolynomialFeatures(2, include_bias=False).fit_transform(linear)
    return StandardScaler().fit(products[training]).transform(products)


def test_features_are_those_of_scikit_learn(problem):
    training = torch.arange(N) % 4 > 0
    features = quadratic_features(problem[0], training.expand(2, -1))
    for g in range(2):
        np.testing.assert_allclose(features[g, :, 1:], scikit_features(problem[0][g].numpy(), training.numpy()), atol=1e-10)


@pytest.mark.parametrize("strength", [0.03, 3.0])
def test_weights_are_those_of_scikit_learn(problem, strength):
    values, labels, classes = problem
    training = torch.arange(N) % 4 > 0
    features = quadratic_features(values, training.expand(2, -1))
    weights = fit_logistic(features, labels, classes, training.expand(2, -1), strength, tolerance=1e-9, max_steps=20_000)
    for g in range(2):
        for j, count in enumerate(classes.tolist()):
            design = features[g, :, 1:].numpy()
            model = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
            model.fit(design[training], labels[j, training].numpy())
            ours = (features[g] @ weights[g, j])[:, :count].softmax(-1)
            np.testing.assert_allclose(ours, model.predict_proba(design), atol=1e-5)


def test_cross_entropy_is_held_out_and_close_to_the_exact_optimum(problem):
    values, labels, classes = problem
    folds = torch.from_numpy(np.random.default_rng(1).permutation(N) % 5)
    ours = cross_validated_cross_entropy(values, labels, classes, folds, (0.3, 0.03))
    assert ours.shape == (2, 2, 2)
    for s, strength in enumerate((0.03, 0.3)):
        for g in range(2):
            for j, count in enumerate(classes.tolist()):
                losses = np.zeros(N)
                for fold in range(5):
                    held_out = folds.numpy() == fold
                    design, y = scikit_features(values[g].numpy(), ~held_out), labels[j].numpy()
                    model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(design[~held_out], y[~held_out])
                    p = (1 - SMOOTHING) * model.predict_proba(design[held_out]) + SMOOTHING / count
                    losses[held_out] = -np.log(p[np.arange(held_out.sum()), y[held_out]])
                assert float(ours[s, g, j]) == pytest.approx(losses.mean(), abs=2e-3)
