"""Group-wise mutual information gap: is each factor read from one latent group, and from that group only?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from migvis.errors import InputError
from migvis.metrics.arrays import Array, is_constant, matrix, quantile_codes, value_codes
from migvis.metrics.logistic import cross_validated_cross_entropy

ROTATIONS = ("rxy", "rxz", "ryz")
FOLDS = 5
POSE_BINS = 10
STRENGTHS = (0.03, 0.3, 3.0)
"""Inverse L2 penalties tried; the best held-out one counts, so that a group of many dimensions is not scored
by how much its decoder overfits, nor one of few by how much it is shrunk."""


@dataclass(frozen=True)
class GroupInformation:
    """Result of group_mig; rows of the matrices are `factors`, columns latent groups 1…G."""

    value: float
    """Mean over factors of (largest − second largest informativeness), in [0, 1]."""
    shuffled: float
    """The same with rows of latents and factors paired at random."""
    factors: tuple[str, ...]
    informativeness: Array
    shuffled_informativeness: Array
    skipped: tuple[str, ...]
    """Factors left out because they are constant over these images."""

    def alignment(self) -> float | None:
        """How far groups 1 and 2 tell of their own attribute and not of the other's, in [−1, 1]; None without both attributes.

        ½ (I_1(pose) − I_1(category) + I_2(category) − I_2(pose)), I(pose) the mean over the rotations that vary. It is what
        selectivity asks of the edits, asked of the latents: own attribute less leak, over groups 1 and 2.
        """
        turned = [row for row, name in enumerate(self.factors) if name in ROTATIONS]
        if "category" not in self.factors or not turned:
            return None
        pose, category = self.informativeness[turned].mean(axis=0), self.informativeness[self.factors.index("category")]
        return float(pose[0] - category[0] + category[1] - pose[1]) / 2


def _gap(informativeness: Array) -> float:
    ordered = np.sort(informativeness, axis=1)
    return float((ordered[:, -1] - ordered[:, -2]).mean())


def _informativeness(
    groups: Array, codes: list[NDArray[np.int64]], picture: NDArray[np.int64], generator: np.random.Generator
) -> tuple[Array, Array]:
    """I [factors, groups] of the factors and of the same factors with shuffled rows; groups [G, n, D_g], picture [n]."""
    rows = groups.shape[1]
    order = generator.permutation(rows)
    # A picture that is held out has no copy among those that are learnt from.
    _, first, number = np.unique(picture, return_index=True, return_inverse=True)
    in_order = np.argsort(np.argsort(first))[number]
    folds = torch.from_numpy(generator.permutation(len(first))[in_order] % FOLDS)
    labels = np.stack(codes + [code[order] for code in codes])
    classes = labels.max(axis=1) + 1
    loss = cross_validated_cross_entropy(
        torch.from_numpy(groups).float(), torch.from_numpy(labels), torch.from_numpy(classes), folds, STRENGTHS
    )
    shares = [np.bincount(code) / rows for code in labels]
    entropy = np.array([-(p[p > 0] * np.log(p[p > 0])).sum() for p in shares])
    informativeness = np.maximum(0.0, 1 - loss.amin(0).double().numpy().T / entropy[:, None])
    return informativeness[: len(codes)], informativeness[len(codes) :]


def group_mig(
    latents: Any,
    group_count: int,
    category: Any = None,
    rotations: Any = None,
    *,
    seed: int,
    pose_rows: Any = None,
    picture: Any = None,
) -> GroupInformation:
    """Mean over factors of the gap between the two most informative latent groups.

    I_g = max(0, H(f) − CE_g) / H(f), with CE_g the 5-fold cross-validated cross-entropy of an L2 logistic
    regression on quadratic features of group g (standardised inside the fold; the best of STRENGTHS).
    Unlike a gap over single dimensions it does not reward groups of rank 1.

    latents [n, D] posterior means, D = group_count · D_g; category [n] labels or none; rotations [n, 3] in
    degrees or none, cut into 10 quantile bins; pose_rows [n] boolean: the images whose pose varies (V0 images
    are left out), none for all; picture [n] whole numbers, equal for rows of equal pictures, which are held out
    together (none: all differ); seed: folds and shuffling. Raises InputError for shapes that disagree, fewer
    than 2 groups, a group_count that does not divide D, fewer than 10 different images, or no factor that varies.
    """
    z = matrix("latents", latents)
    if group_count < 2 or z.shape[1] % group_count:
        raise InputError(f"group_count: expected at least 2, dividing the {z.shape[1]} latents, got {group_count}")
    shown = np.arange(len(z)) if picture is None else np.asarray(picture)
    if shown.shape != (len(z),):
        raise InputError(f"picture: expected {len(z)} whole numbers, got shape {shown.shape}")
    if len(np.unique(shown)) < 2 * FOLDS:
        raise InputError(f"latents: group_mig needs at least {2 * FOLDS} different images, got {len(np.unique(shown))}")
    groups = np.ascontiguousarray(z.reshape(len(z), group_count, -1).transpose(1, 0, 2))
    generator = np.random.default_rng(seed)
    names: list[str] = []
    skipped: list[str] = []
    rows: list[tuple[Array, Array]] = []
    if category is not None:
        labels = matrix("category", np.asarray(category).reshape(-1, 1), rows=len(z))[:, 0]
        if is_constant(labels):
            skipped.append("category")
        else:
            names.append("category")
            rows.append(_informativeness(groups, [value_codes(labels)], shown, generator))
    if rotations is not None:
        pose = matrix("rotations", rotations, rows=len(z))
        if pose.shape[1] != len(ROTATIONS):
            raise InputError(f"rotations: expected 3 columns (rxy, rxz, ryz), got {pose.shape[1]}")
        chosen = np.ones(len(z), dtype=bool) if pose_rows is None else np.asarray(pose_rows, dtype=bool)
        if chosen.shape != (len(z),):
            raise InputError(f"pose_rows: expected {len(z)} booleans, got shape {chosen.shape}")
        enough = len(np.unique(shown[chosen])) >= 2 * FOLDS
        varying = [k for k in range(3) if enough and not is_constant(pose[chosen, k])]
        skipped += [ROTATIONS[k] for k in range(3) if k not in varying]
        if varying:
            names += [ROTATIONS[k] for k in varying]
            codes = [quantile_codes(pose[chosen, k], POSE_BINS) for k in varying]
            rows.append(_informativeness(groups[:, chosen], codes, shown[chosen], generator))
    if not rows:
        raise InputError(f"factors: none varies over the {len(z)} images (skipped: {', '.join(skipped) or 'none given'})")
    informativeness = np.concatenate([row[0] for row in rows])
    shuffled = np.concatenate([row[1] for row in rows])
    return GroupInformation(
        value=_gap(informativeness),
        shuffled=_gap(shuffled),
        factors=tuple(names),
        informativeness=informativeness,
        shuffled_informativeness=shuffled,
        skipped=tuple(skipped),
    )
