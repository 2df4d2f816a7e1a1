"""Similarity of groups: perfect, useless and degenerate codes, and the matching."""

from __future__ import annotations

import numpy as np
import pytest

from migvis.errors import InputError
from migvis.metrics.similarity import group_similarity, linear_cka, matched

RANDOM = np.random.default_rng(0)
LATENTS = RANDOM.normal(size=(3000, 6))


def naive_cka(x, y):
    """By the n × n Gram matrices, as the index is defined."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, m = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def test_it_is_the_index_of_gram_matrices() -> None:
    x, y = RANDOM.normal(size=(40, 3)), RANDOM.normal(size=(40, 2))
    y[:, 0] += x[:, 1]
    assert linear_cka(x, y) == pytest.approx(naive_cka(x, y), abs=1e-12)


def test_rotation_scale_and_offset_change_nothing_and_independence_is_nothing() -> None:
    rotation, _ = np.linalg.qr(RANDOM.normal(size=(6, 6)))
    assert linear_cka(LATENTS, 7 * LATENTS @ rotation + 3) == pytest.approx(1.0)
    assert linear_cka(LATENTS, RANDOM.normal(size=LATENTS.shape)) < 0.01
    assert linear_cka(LATENTS, np.ones((3000, 2))) == 0.0


def test_permuted_groups_are_found_again() -> None:
    shuffled = LATENTS[:, [4, 5, 0, 1, 2, 3]]
    similarity = group_similarity(LATENTS, shuffled, 3)
    columns, values = matched(similarity)
    assert columns.tolist() == [1, 2, 0]
    assert values == pytest.approx(np.ones(3))
    assert np.diagonal(similarity).max() < 0.01


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="rows"):
        linear_cka(np.ones((3, 1)), np.ones((4, 1)))
    with pytest.raises(InputError, match="at least 2"):
        linear_cka(np.ones((1, 1)), np.ones((1, 1)))
    with pytest.raises(InputError, match="multiple of 4"):
        group_similarity(LATENTS, LATENTS, 4)
