"""Whether the latent groups of two fits mean the same: similarity of groups, and which group of one is which of the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from migvis.errors import InputError
from migvis.metrics.arrays import Array, matrix


def linear_cka(first: Any, second: Any) -> float:
    """Linear centred kernel alignment of [n, p] and [n, q], rows the same stimuli: ‖XᵀY‖² / (‖XᵀX‖·‖YᵀY‖), in [0, 1].

    Kornblith et al. 2019, Eq. 5: unchanged by rotations within a group and by its scale, which mean nothing here. 0 where one
    of them is constant. Raises InputError for another number of rows, or fewer than 2.
    """
    x = matrix("first latents", first)
    y = matrix("second latents", second, rows=len(x))
    if len(x) < 2:
        raise InputError(f"similarity: at least 2 stimuli are needed, got {len(x)}")
    x, y = x - x.mean(0), y - y.mean(0)
    norm = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / norm) if norm > 0 else 0.0


def group_similarity(first: Any, second: Any, group_count: int) -> Array:
    """Similarities [G, G] of the groups of two fits' latents [n, D] of the same stimuli.

    Raises InputError where D is no multiple of G.
    """
    x, y = matrix("first latents", first), matrix("second latents", second)
    if x.shape[1] % group_count or y.shape != x.shape:
        raise InputError(f"similarity: expected [n, D] twice, D a multiple of {group_count}, got {x.shape} and {y.shape}")
    own, other = np.split(x, group_count, axis=1), np.split(y, group_count, axis=1)
    return np.array([[linear_cka(a, b) for b in other] for a in own])


def matched(similarity: Any) -> tuple[Array, Array]:
    """Which group of the second fit each group of the first is, [G] from 0, and how similar they are, [G]: the one-to-one
    assignment with the largest sum of `similarity` [G, G]."""
    values = matrix("similarity", similarity)
    rows, columns = linear_sum_assignment(values, maximize=True)
    return columns, values[rows, columns]
