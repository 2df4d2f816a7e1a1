from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from migvis.errors import InputError
from migvis.metrics import mig_details, mig_equal_width, mutual_information_gap, shuffled_mig
from migvis.metrics.arrays import quantile_codes

CONTINUOUS = [False, False]


def perfect(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    factors = generator.uniform(-1, 1, (n, 2))
    return np.column_stack([np.exp(factors), generator.standard_normal((n, 2))]), factors


def naive_mig(latents: np.ndarray, factors: np.ndarray, discrete: list[bool], bins: int) -> float:
    """Chen et al.'s gap with loops; columns without ties; MI from scikit-learn, then corrected."""
    n = len(latents)

    def cut(x: np.ndarray) -> list[int]:
        order = sorted(range(n), key=lambda i: x[i])
        codes = [0] * n
        for rank, i in enumerate(order):
            codes[i] = int((rank + 0.5) * bins / n)
        return codes

    gaps = []
    for k, is_class in enumerate(discrete):
        f = factors[:, k].astype(int).tolist() if is_class else cut(factors[:, k])
        entropy = mutual_info_score(f, f) + (len(set(f)) - 1) / (2 * n)
        values = []
        for d in range(latents.shape[1]):
            z = cut(latents[:, d])
            occupied = len(set(zip(z, f, strict=True)))
            bias = (len(set(z)) + len(set(f)) - occupied - 1) / (2 * n)
            values.append(max(0.0, mutual_info_score(z, f) + bias))
        top, second = sorted(values)[::-1][:2]
        gaps.append((top - second) / entropy)
    return float(np.mean(gaps))


@pytest.mark.parametrize("n", [150, 1000, 3000])
def test_a_perfect_code_scores_high_with_its_own_bins(n):
    latents, factors = perfect(n)
    assert mutual_information_gap(latents, factors, CONTINUOUS) >= 0.9


def test_equal_width_bins_are_biased_at_150_images():
    scores = [mig_equal_width(*perfect(150, seed), CONTINUOUS) for seed in range(5)]
    assert 0.34 < np.mean(scores) < 0.54


def test_a_duplicated_latent_leaves_no_gap():
    latents, factors = perfect(1500)
    assert mutual_information_gap(np.column_stack([latents, latents[:, :2]]), factors, CONTINUOUS) <= 0.1


@pytest.mark.parametrize("n", [150, 1000])
def test_independent_latents_and_shuffled_factors_score_near_zero(n):
    generator = np.random.default_rng(3)
    latents = generator.standard_normal((n, 8))
    factors = np.column_stack([generator.uniform(size=n), generator.integers(0, 8, n)])
    assert mutual_information_gap(latents, factors, [False, True]) < 0.04
    planted, truth = perfect(n)
    assert shuffled_mig(planted, truth, CONTINUOUS, seed=1) < 0.04


def test_constant_columns_are_skipped_and_said_so():
    latents, factors = perfect(1000)
    with pytest.warns(UserWarning, match=r"constant latents skipped: \[0\]"):
        padded = mutual_information_gap(np.column_stack([np.full(1000, 0.1), latents]), factors, CONTINUOUS)
    assert padded == mutual_information_gap(latents, factors, CONTINUOUS)
    with pytest.warns(UserWarning, match="constant latents"):
        assert mutual_information_gap(np.ones((1000, 3)), factors, CONTINUOUS) == 0.0
    details = mig_details(latents, np.column_stack([factors, np.zeros(1000)]), [False, False, True])
    assert details.skipped_factors == (2,)
    assert details.factors == (0, 1)
    assert len(details.gaps) == 2
    assert details.bins == 20
    with pytest.raises(InputError, match="constant"):
        mutual_information_gap(latents, np.zeros((1000, 1)), [True])


def test_a_single_latent_has_no_runner_up():
    latents, factors = perfect(1000)
    assert mutual_information_gap(latents[:, :1], factors[:, :1], [False]) == pytest.approx(1.0)


def test_against_a_naive_version():
    generator = np.random.default_rng(4)
    for n, bins in itertools.product((200, 1200), (6, 20)):
        category = generator.integers(0, 8, n)
        pose = generator.uniform(-1, 1, n)
        latents = np.column_stack([category + generator.standard_normal(n), pose + 0.3 * generator.standard_normal(n)])
        latents = np.column_stack([latents, generator.standard_normal((n, 3))])
        factors = np.column_stack([category, pose])
        expected = naive_mig(latents, factors, [True, False], bins)
        assert mutual_information_gap(latents, factors, [True, False], bins=bins) == pytest.approx(expected)


def test_order_and_increasing_transforms_do_not_matter():
    generator = np.random.default_rng(5)
    latents, factors = perfect(1200)
    latents[:, 0] += generator.standard_normal(1200)
    value = mutual_information_gap(latents, factors, CONTINUOUS)
    rows = generator.permutation(1200)
    assert mutual_information_gap(latents[:, [2, 0, 3, 1]], factors, CONTINUOUS) == pytest.approx(value)
    assert mutual_information_gap(latents[rows], factors[rows], CONTINUOUS) == pytest.approx(value)
    assert mutual_information_gap(np.arctan(latents) ** 3, np.exp(factors), CONTINUOUS) == pytest.approx(value)
    assert mutual_information_gap(-latents, factors, CONTINUOUS) == pytest.approx(value)


def test_ties_share_a_bin():
    values = np.concatenate([np.zeros(500), np.arange(1, 501)])
    codes = quantile_codes(values, 20)
    assert len(set(codes[:500])) == 1
    assert len(set(codes)) == 11
    assert quantile_codes(np.array([3.0, 1.0, 3.0, 7.0]), 20).tolist() == [1, 0, 1, 2]


def test_a_latent_of_few_values_that_is_the_category_is_perfect():
    generator = np.random.default_rng(6)
    category = generator.integers(0, 8, 1000).astype(float)
    latents = np.column_stack([(category * 3) % 8, generator.standard_normal(1000)])
    assert mutual_information_gap(latents, category[:, None], [True]) > 0.9


def test_bad_arguments_are_refused():
    latents, factors = perfect(100)
    for arguments, message in (
        ((latents, factors[:99], CONTINUOUS), "factors: expected 100 rows, got 99"),
        ((latents, factors[:, 0], CONTINUOUS), "factors: expected a non-empty matrix"),
        ((latents, factors, [False]), "discrete"),
        ((latents, factors, [0, 1]), "discrete"),
        ((latents * np.nan, factors, CONTINUOUS), "not finite"),
        ((latents, factors, CONTINUOUS, 1), "bins"),
    ):
        with pytest.raises(InputError, match=message):
            mutual_information_gap(*arguments)
