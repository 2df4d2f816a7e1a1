"""Selectivity of edits: does an edit of group 1 turn the object and nothing else, one of group 2 change its category?

Judged on `target` edits over fixed pairs of stimuli that differ in category and by at least 30° of rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from migvis.errors import InputError
from migvis.randomness import permutation
from migvis.rotations import rotation_matrix

LEAST_ANGLE = 30.0
POSE, CATEGORY = 0, 1
ATTRIBUTES = ("pose", "category")


@dataclass(frozen=True)
class Reading:
    """What an instrument, or the labels, say of n images: category [n], angles [n, 3] in degrees, valid [n], object [n]."""

    category: Tensor
    angles: Tensor
    valid: Tensor
    object_id: Tensor | None = None


@dataclass(frozen=True)
class Symmetries:
    """Rotational symmetries by object: rotations [objects][k, 3, 3] about the vertical axis, and which are continuous."""

    rotations: Sequence[np.ndarray]
    continuous: Sequence[bool]


def pose_distance(
    angles_a: Tensor, angles_b: Tensor, object_a: Tensor | None, object_b: Tensor | None, symmetries: Symmetries | None
) -> Tensor:
    """Geodesic angle [n] in degrees between rotations, least over the symmetries of both objects.

    angles [n, 3] = (rxy, rxz, ryz). Where either object is a body of revolution, the angle between the vertical axes.
    """
    first, second = rotation_matrix(angles_a.double()), rotation_matrix(angles_b.double())
    if symmetries is None or object_a is None or object_b is None:
        return _angle(first.transpose(1, 2) @ second)
    distance = torch.empty(len(first), dtype=torch.float64)
    for row, (a, b) in enumerate(zip(object_a.tolist(), object_b.tolist(), strict=True)):
        if symmetries.continuous[a] or symmetries.continuous[b]:
            cosine = (first[row, :, 2] * second[row, :, 2]).sum().clamp(-1, 1)
            distance[row] = torch.rad2deg(torch.acos(cosine))
            continue
        left = first[row] @ torch.from_numpy(symmetries.rotations[a])
        right = second[row] @ torch.from_numpy(symmetries.rotations[b])
        relative = left.transpose(1, 2)[:, None] @ right[None]
        distance[row] = _angle(relative.flatten(0, 1)).min()
    return distance


def _angle(relative: Tensor) -> Tensor:
    trace = relative.diagonal(dim1=1, dim2=2).sum(1)
    return torch.rad2deg(torch.acos(((trace - 1) / 2).clamp(-1, 1)))


def select_pairs(
    labels: Reading, rows: np.ndarray, count: int, seed: int, symmetries: Symmetries | None
) -> tuple[Tensor, Tensor]:
    """`count` (source, target) rows among `rows`, fixed by seed: other category, rotated by at least 30°.

    No stimulus is a source or a target twice; objects with a continuous symmetry form no pairs. Raises InputError if
    there are not enough.
    """
    candidates = [int(row) for row in rows]
    if symmetries is not None and labels.object_id is not None:
        candidates = [row for row in candidates if not symmetries.continuous[int(labels.object_id[row])]]
    order = [candidates[index] for index in permutation(seed, "pairs", 0, len(candidates)).tolist()]
    sources: list[int] = []
    targets: list[int] = []
    free = list(order)
    for source in order:
        if len(sources) == count:
            break
        if source not in free:
            continue
        for target in free:
            if target == source or labels.category[source] == labels.category[target]:
                continue
            pick = torch.tensor([source]), torch.tensor([target])
            first, second = (None if labels.object_id is None else labels.object_id[row] for row in pick)
            if pose_distance(labels.angles[pick[0]], labels.angles[pick[1]], first, second, symmetries)[0] < LEAST_ANGLE:
                continue
            sources.append(source)
            targets.append(target)
            free.remove(source)
            free.remove(target)
            break
    if len(sources) < count:
        raise InputError(
            f"synthesis.trial_pairs/final_pairs: {count} pairs of other category and {LEAST_ANGLE:.0f}° apart are needed, "
            f"{len(sources)} found among {len(rows)} stimuli"
        )
    return torch.tensor(sources), torch.tensor(targets)


@dataclass(frozen=True)
class Selectivity:
    """Scores of edits: value = mean over groups 1 and 2 of move(own) − leak(other), an invalid edit counting 0.

    move, leak [n, 2] per edit over ATTRIBUTES; score [n] per edit; matrix [2, 2] mean move of (group 1, 2) ×
    (pose, category), invalid edits counting 0; valid [n].
    """

    value: float
    score: Tensor
    move: Tensor
    leak: Tensor
    matrix: Tensor
    valid: Tensor


def selectivity(
    edits: Reading, source: Reading, target: Reading, group: Tensor, symmetries: Symmetries | None = None
) -> Selectivity:
    """Selectivity of n `target` edits, row by row, of groups [n] in {1, 2}.

    move(a) = 1 − d_a(edit, target)/d_a(source, target), clipped to [−1, 1]; leak(b) = min(1, d_b(edit, source)/
    d_b(source, target)); d_category is 0 or 1, d_pose the geodesic angle. Raises InputError for other groups, or pairs
    that do not differ.
    """
    if not torch.isin(group, torch.tensor([1, 2])).all():
        raise InputError(f"group: selectivity is defined for groups 1 and 2, got {sorted(set(group.tolist()))}")

    def distances(a: Reading, b: Reading) -> Tensor:
        pose = pose_distance(a.angles, b.angles, a.object_id, b.object_id, symmetries)
        return torch.stack([pose, (a.category != b.category).double()], dim=1)

    between = distances(source, target)
    if bool((between <= 0).any()):
        raise InputError("pairs: source and target must differ in category and rotation")
    move = (1 - distances(edits, target) / between).clamp(-1, 1)
    leak = (distances(edits, source) / between).clamp(max=1)
    own = (group - 1).long()
    rows = torch.arange(len(group))
    score = torch.where(edits.valid, move[rows, own] - leak[rows, 1 - own], 0.0)
    counted = torch.where(edits.valid[:, None], move, 0.0)
    per_group = [score[group == g].mean() for g in (1, 2) if bool((group == g).any())]
    matrix = torch.stack(
        [counted[group == g].mean(0) if bool((group == g).any()) else torch.full((2,), float("nan")) for g in (1, 2)]
    )
    return Selectivity(float(torch.stack(per_group).mean()), score, move, leak, matrix, edits.valid)
