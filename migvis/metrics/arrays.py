"""What every metric asks of its arguments: NumPy arrays or torch tensors of one length, finite numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from migvis.errors import InputError

Array = NDArray[np.float64]


def matrix(name: str, values: Any, rows: int | None = None) -> Array:
    """`values` (array or tensor [n, k]) as float64; raises InputError unless 2-D, non-empty, finite and `rows` long."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name}: expected a non-empty matrix [rows, columns], got shape {array.shape}")
    if rows is not None and len(array) != rows:
        raise InputError(f"{name}: expected {rows} rows, got {len(array)}")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: {int((~np.isfinite(array)).sum())} values are not finite")
    return array


def is_constant(column: Array) -> bool:
    """Whether a column holds one value up to the rounding noise of float32."""
    return bool(np.ptp(column) <= 1e-6 * np.abs(column).max())


def quantile_codes(values: Array, bins: int) -> NDArray[np.int64]:
    """Codes 0…K − 1 (K ≤ bins) of `values` [n] in bins of equal counts.

    Equal values always share a bin, the one in which their middle rank falls, so the codes do not depend on
    the order of the rows or on any increasing transform; with no more distinct values than bins each value
    is its own bin.
    """
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(distinct) <= bins:
        return inverse.astype(np.int64)
    middle_rank = np.cumsum(counts) - 0.5 * counts
    codes = np.floor(middle_rank[inverse] * bins / len(values)).astype(np.int64)
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def value_codes(values: Array) -> NDArray[np.int64]:
    """Codes 0…K − 1 of `values` [n], one for each distinct value."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
