"""Selectivity on perfect, useless, leaking and invalid edits; pose distance against rotations worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from migvis.errors import InputError
from migvis.metrics.instrument import object_symmetries
from migvis.metrics.selectivity import Reading, Symmetries, pose_distance, select_pairs, selectivity

SOURCE = Reading(torch.tensor([0, 1, 2, 3]), torch.zeros(4, 3), torch.ones(4, dtype=torch.bool))
TARGET = Reading(
    torch.tensor([4, 5, 6, 7]),
    torch.tensor([[40.0, 0, 0], [0, 50.0, 0], [0, 0, 60.0], [45.0, 0, 0]]),
    torch.ones(4, dtype=torch.bool),
)
GROUPS = torch.tensor([1, 1, 2, 2])


def edits(category: torch.Tensor, angles: torch.Tensor, valid: list[bool] | None = None) -> Reading:
    return Reading(category, angles, torch.tensor([True] * 4 if valid is None else valid))


def test_perfect_edits_move_their_own_attribute_only() -> None:
    category = torch.where(GROUPS == 2, TARGET.category, SOURCE.category)
    angles = torch.where((GROUPS == 1)[:, None], TARGET.angles, SOURCE.angles)
    result = selectivity(edits(category, angles), SOURCE, TARGET, GROUPS)
    assert result.value == pytest.approx(1, abs=1e-6)
    assert torch.allclose(result.matrix, torch.eye(2, dtype=torch.float64), atol=1e-6)


def test_edits_that_change_nothing_or_everything_score_zero() -> None:
    assert selectivity(edits(SOURCE.category, SOURCE.angles), SOURCE, TARGET, GROUPS).value == pytest.approx(0, abs=1e-6)
    assert selectivity(edits(TARGET.category, TARGET.angles), SOURCE, TARGET, GROUPS).value == pytest.approx(0, abs=1e-6)


def test_edits_of_the_wrong_attribute_score_minus_one_and_any_other_category_leaks() -> None:
    category = torch.where(GROUPS == 1, TARGET.category, SOURCE.category)
    angles = torch.where((GROUPS == 2)[:, None], TARGET.angles, SOURCE.angles)
    assert selectivity(edits(category, angles), SOURCE, TARGET, GROUPS).value == pytest.approx(-1, abs=1e-6)
    elsewhere = edits(torch.full((4,), 9), TARGET.angles)  # pose reached, category of a third kind
    result = selectivity(elsewhere, SOURCE, TARGET, torch.tensor([1, 1, 1, 1]))
    assert result.value == pytest.approx(0, abs=1e-6)
    assert (result.leak[:, 1] == 1).all()


def test_invalid_edits_count_zero_whatever_they_seem_to_show() -> None:
    category = torch.where(GROUPS == 2, TARGET.category, SOURCE.category)
    angles = torch.where((GROUPS == 1)[:, None], TARGET.angles, SOURCE.angles)
    half = selectivity(edits(category, angles, [True, False, True, False]), SOURCE, TARGET, GROUPS)
    assert half.value == pytest.approx(0.5, abs=1e-6)
    assert selectivity(edits(category, angles, [False] * 4), SOURCE, TARGET, GROUPS).value == 0


def test_a_move_beyond_the_target_is_clipped_and_part_of_the_way_counts_in_part() -> None:
    angles = torch.tensor([[20.0, 0, 0], [0, 25.0, 0], [0, 0, 0], [0, 0, 0]])
    result = selectivity(edits(SOURCE.category, angles), SOURCE, TARGET, GROUPS)
    assert torch.allclose(result.move[:2, 0], torch.full((2,), 0.5, dtype=torch.float64), atol=1e-4)
    away = selectivity(edits(SOURCE.category, -4 * TARGET.angles), SOURCE, TARGET, GROUPS)
    assert float(away.move.min()) >= -1


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="groups 1 and 2"):
        selectivity(SOURCE, SOURCE, TARGET, torch.tensor([1, 2, 3, 1]))
    with pytest.raises(InputError, match="must differ"):
        selectivity(SOURCE, SOURCE, SOURCE, GROUPS)


def test_pose_distance_takes_the_least_angle_over_symmetries() -> None:
    a, b = torch.tensor([[10.0, 0.0, 0.0]]), torch.tensor([[100.0, 0.0, 0.0]])
    assert pose_distance(a, b, None, None, None).item() == pytest.approx(90, abs=1e-3)
    quarter = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, -1, 0], [1, 0, 0], [0, 0, 1]]], dtype=float)
    symmetries = Symmetries([np.eye(3)[None], quarter, np.eye(3)[None]], [False, False, True])
    zero, one, two = (torch.tensor([k]) for k in range(3))
    assert pose_distance(a, b, zero, zero, symmetries).item() == pytest.approx(90, abs=1e-3)
    assert pose_distance(a, b, one, zero, symmetries).item() == pytest.approx(0, abs=1e-3)
    assert pose_distance(b, a, zero, one, symmetries).item() == pytest.approx(0, abs=1e-3)
    assert pose_distance(a, b, two, zero, symmetries).item() == pytest.approx(0, abs=1e-3)
    tilted = torch.tensor([[0.0, 40.0, 0.0]])
    assert pose_distance(tilted, a, two, zero, symmetries).item() == pytest.approx(40, abs=1e-3)


def test_pairs_are_fixed_distinct_and_far_enough_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    objects = torch.randint(0, 64, (200,), generator=generator)
    labels = Reading(objects // 8, torch.rand(200, 3, generator=generator) * 90 - 45, torch.ones(200, dtype=torch.bool), objects)
    symmetries = object_symmetries()
    source, target = select_pairs(labels, np.arange(20, 180), 30, seed=1, symmetries=symmetries)
    assert len(set(source.tolist()) | set(target.tolist())) == 60
    assert (labels.category[source] != labels.category[target]).all()
    distance = pose_distance(labels.angles[source], labels.angles[target], objects[source], objects[target], symmetries)
    assert float(distance.min()) >= 30
    assert not any(symmetries.continuous[int(objects[row])] for row in torch.cat([source, target]))
    assert all(20 <= row < 180 for row in torch.cat([source, target]).tolist())
    again, _ = select_pairs(labels, np.arange(20, 180), 30, seed=1, symmetries=symmetries)
    assert torch.equal(source, again)
    with pytest.raises(InputError, match="30 pairs of other category"):
        select_pairs(labels, np.arange(10), 30, seed=1, symmetries=symmetries)
