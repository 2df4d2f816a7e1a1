"""Leak-free splits: identical pictures are one group, and a group never straddles splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from migvis.errors import InputError

SPLITS = ("train", "validation", "test")


def picture_ids(image: np.ndarray) -> np.ndarray:
    """Numbers pictures [S, …] so that byte-identical ones share a number: int64 [S], from 0 in order of appearance."""
    numbers: dict[bytes, int] = {}
    digests = [hashlib.sha256(np.ascontiguousarray(picture).tobytes()).digest() for picture in image]
    return np.array([numbers.setdefault(digest, len(numbers)) for digest in digests], dtype=np.int64)


def grouped_split(
    picture_id: np.ndarray, fractions: Sequence[float], seed: int, strata: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Splits stimuli into train, validation and test so that equal pictures stay together.

    picture_id: int [S], equal for equal pictures. fractions: train, validation, test, of *distinct pictures*.
    strata: optional int [S] (such as the object shown); every stratum is split in these fractions. A picture belongs
    to the stratum of its first stimulus.

    Each stratum of n pictures gives split s either floor(f_s n) or ceil(f_s n) of them, and what rounding leaves over
    goes where the whole set is furthest behind, so strata of a single picture are shared out too. Only in sets too
    small for that, a split left empty takes one picture from the largest. The same seed gives the same split.

    Returns the sorted stimulus indices of each split, int64. Raises InputError for fractions that are not three
    positive numbers that sum to 1, strata of another length, or fewer than 3 distinct pictures.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise InputError(f"split: three positive fractions that sum to 1 are needed, got {tuple(fractions)}")
    _, first, picture = np.unique(picture_id, return_index=True, return_inverse=True)
    if len(first) < 3:
        raise InputError(f"split: at least 3 distinct pictures are needed for train, validation and test, got {len(first)}")
    if strata is not None and len(strata) != len(picture_id):
        raise InputError(f"split: strata have length {len(strata)}, the stimuli {len(picture_id)}")
    stratum = np.zeros(len(first), dtype=np.int64) if strata is None else np.asarray(strata)[first]

    generator = np.random.default_rng(seed)
    assigned = np.empty(len(first), dtype=np.int64)
    behind = np.zeros(3)
    for value in generator.permutation(np.unique(stratum)):
        members = generator.permutation(np.flatnonzero(stratum == value))
        wanted = shares * len(members)
        counts = np.floor(wanted + 1e-9).astype(np.int64)
        behind += wanted - counts
        left_over = len(members) - counts.sum()
        if left_over:
            order = np.argsort(-np.where(wanted - counts > 1e-9, behind, -np.inf), kind="stable")[:left_over]
            counts[order] += 1
            behind[order] -= 1
        assigned[members] = np.repeat(np.arange(3), counts)
    for empty in np.flatnonzero(np.bincount(assigned, minlength=3) == 0):
        largest = np.bincount(assigned, minlength=3).argmax()
        assigned[generator.choice(np.flatnonzero(assigned == largest))] = empty
    return {name: np.flatnonzero(assigned[picture] == number).astype(np.int64) for number, name in enumerate(SPLITS)}
