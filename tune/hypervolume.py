"""Hypervolume of a set of trials, and how much one more trial is expected to add to it.

All objectives are maximised and lie in [0, 1]; one that is negative counts as 0, as everywhere in the search. With up to three
objectives the region that a front leaves free is a grid of columns over the first two, each free from a height of its own
upwards. So both the volume and the expected improvement are sums over columns, exact and cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

Values = NDArray[np.float64]

REFERENCE = -0.1
"""Of every objective; below 0, so that a trial that is worth nothing in one of them still counts by the others."""
MOST_OBJECTIVES = 3


@dataclass(frozen=True)
class Columns:
    """Free columns over the front: edges of the first two objectives, ascending and closed by 1, and heights [i, j]."""

    first: Values
    second: Values
    height: Values


def columns(points: ArrayLike, reference: float = REFERENCE) -> Columns:
    """The columns over points [n, objectives], n ≥ 0. Raises ValueError for more than three objectives."""
    padded = np.clip(_padded(np.asarray(points, dtype=np.float64), 1.0), 0.0, 1.0)
    first, second = (np.unique([reference, *padded[:, axis], 1.0]) for axis in (0, 1))
    covers_first = padded[:, None, 0] >= first[None, 1:]
    covers_second = padded[:, None, 1] >= second[None, 1:]
    covered = np.where(covers_first[:, :, None] & covers_second[:, None, :], padded[:, None, None, 2], reference)
    return Columns(first, second, covered.max(axis=0, initial=reference))


def nondominated(points: ArrayLike) -> Values:
    """Those of points [n, objectives], n ≥ 1, that no other one is at least as good as in all objectives; each once."""
    distinct = np.unique(np.clip(np.asarray(points, dtype=np.float64), 0.0, 1.0), axis=0)
    covered = (distinct[None] >= distinct[:, None]).all(axis=2).sum(axis=1) > 1
    return np.asarray(distinct[~covered])


def hypervolume(points: ArrayLike, reference: float = REFERENCE) -> float:
    """Share of the box from the reference point to (1, …, 1) that points [n, objectives] dominate; 0 for none."""
    over = columns(points, reference)
    area = np.diff(over.first)[:, None] * np.diff(over.second)[None, :]
    return float((area * (over.height - reference)).sum() / (1 - reference) ** 3)


def expected_improvement(mean: ArrayLike, sd: ArrayLike, points: ArrayLike, reference: float = REFERENCE) -> Values:
    """Expected increase of `hypervolume` by one more trial each, [c], for independent normal objectives.

    mean, sd: [c, objectives], of the values before they are clipped to [0, 1]. points: [n, objectives] of the trials that exist.
    For up to three objectives; the formula is the integral of P(u ≤ y₁) P(v ≤ y₂) P(w ≤ y₃) over the free region.
    """
    over = columns(points, reference)
    centre, spread = _padded(np.asarray(mean, dtype=np.float64), 1.0), _padded(np.asarray(sd, dtype=np.float64), 0.0)
    tops = _excess(centre[:, 0], spread[:, 0], over.first)
    widths = tops[:, :-1] - tops[:, 1:]
    tops = _excess(centre[:, 1], spread[:, 1], over.second)
    depths = tops[:, :-1] - tops[:, 1:]
    heights, place = np.unique(over.height, return_inverse=True)
    free = _excess(centre[:, 2], spread[:, 2], heights) - _excess(centre[:, 2], spread[:, 2], np.array([1.0]))
    volume = np.einsum("ci,cj,cij->c", widths, depths, free[:, place.reshape(over.height.shape)])
    return np.asarray(np.maximum(volume, 0.0) / (1 - reference) ** 3)


def _excess(mean: Values, sd: Values, levels: Values) -> Values:
    """E[(max(y, 0) − level)⁺] of normal y, [c, levels]; sd may be 0."""
    level = np.maximum(levels, 0.0)[None, :]
    difference, spread = mean[:, None] - level, np.maximum(sd, 1e-12)[:, None]
    z = difference / spread
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return np.asarray(difference * ndtr(z) + spread * density + np.maximum(-levels, 0.0)[None, :])


def _padded(values: Values, constant: float) -> Values:
    """[n, 3]: missing objectives are constants, which change no share."""
    if values.size == 0:
        return np.empty((0, MOST_OBJECTIVES))
    if values.ndim != 2 or values.shape[1] > MOST_OBJECTIVES:
        raise ValueError(f"expected [n, 1 to {MOST_OBJECTIVES}] objectives, got shape {values.shape}")
    missing = MOST_OBJECTIVES - values.shape[1]
    return np.hstack([values, np.full((len(values), missing), constant)])
