from __future__ import annotations

import numpy as np
import pytest

from migvis.errors import InputError
from migvis.metrics import group_mig

N = 400


def code(rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Category in group 2 and pose in group 1, each spread over all dimensions of its group; two idle groups."""
    generator = np.random.default_rng(seed)
    category = generator.integers(0, 8, N)
    rotations = generator.uniform(-90, 90, (N, 3))
    z = generator.standard_normal((N, 4, rank))
    mixing = np.linalg.qr(generator.standard_normal((max(rank, 3), max(rank, 3))))[0][:3, :rank]
    z[:, 0] = rotations / 30 @ mixing + 0.1 * z[:, 0]
    z[:, 1] = 4 * generator.standard_normal((8, rank))[category] + 0.1 * z[:, 1]
    return z.reshape(N, -1), category, rotations


def test_a_code_with_each_factor_in_one_group_scores_high():
    latents, category, rotations = code(3)
    result = group_mig(latents, 4, category, rotations, seed=0)
    assert result.factors == ("category", "rxy", "rxz", "ryz")
    assert result.skipped == ()
    assert result.informativeness.argmax(1).tolist() == [1, 0, 0, 0]
    assert result.value > 0.5
    assert result.informativeness[0, 1] > 0.9
    assert result.shuffled < 0.02
    assert group_mig(latents, 4, category, rotations, seed=0).value == result.value


def test_rank_does_not_change_the_value_of_a_perfect_category_code():
    values = [group_mig(*code(rank)[:1], 4, code(rank)[1], seed=0).value for rank in (3, 6, 8)]
    assert min(values) > 0.9
    assert max(values) - min(values) < 0.06


def test_a_single_dimension_split_over_a_group_scores_the_same():
    generator = np.random.default_rng(1)
    pose = generator.uniform(-90, 90, (N, 3))
    one = np.column_stack([pose[:, 0], generator.standard_normal(N)])
    three = np.column_stack([pose[:, [0]] @ [[0.3, -0.5, 0.8]], generator.standard_normal((N, 3))])
    fixed = np.zeros((N, 3))
    fixed[:, 0] = pose[:, 0]
    narrow, wide = group_mig(one, 2, rotations=fixed, seed=0), group_mig(three, 2, rotations=fixed, seed=0)
    assert narrow.value > 0.4
    assert abs(narrow.value - wide.value) < 0.05


def test_useless_constant_and_duplicated_groups_score_near_zero():
    latents, category, rotations = code(3)
    noise = np.random.default_rng(2).standard_normal((N, 12))
    assert group_mig(noise, 4, category, rotations, seed=0).value < 0.02
    assert group_mig(np.zeros((N, 12)), 4, category, rotations, seed=0).value < 0.01
    assert group_mig(np.concatenate([latents, latents], axis=1), 8, category, rotations, seed=0).value < 0.02


def test_information_that_is_only_quadratic_is_seen():
    generator = np.random.default_rng(3)
    z = generator.standard_normal((N, 2))
    assert group_mig(z, 2, (np.abs(z[:, 0]) > 0.67).astype(int), seed=0).value > 0.6


def test_pose_rows_leave_images_of_constant_pose_out():
    latents, category, rotations = code(3)
    rotations[:100] = 0.0
    still = np.arange(N) >= 100
    masked = group_mig(latents, 4, category, rotations, seed=0, pose_rows=still)
    alone = group_mig(latents[still], 4, None, rotations[still], seed=0)
    np.testing.assert_allclose(masked.informativeness[1:].max(1), alone.informativeness.max(1), atol=0.06)
    no_pose = group_mig(latents, 4, category, np.zeros((N, 3)), seed=0)
    assert no_pose.skipped == ("rxy", "rxz", "ryz")
    assert no_pose.factors == ("category",)


def test_copies_of_a_picture_are_held_out_together():
    """Latents that say which picture is shown, and nothing of its category: with rows held out singly the copies give it away."""
    generator = np.random.default_rng(4)
    picture = np.repeat(np.arange(40), 10)
    latents = generator.standard_normal((40, 4))[picture] + 0.05 * generator.standard_normal((N, 4))
    category = generator.integers(0, 4, 40)[picture]
    assert group_mig(latents, 2, category, seed=0).informativeness.max() > 0.1
    assert group_mig(latents, 2, category, seed=0, picture=picture).informativeness.max() < 0.01


def test_pictures_that_all_differ_change_nothing():
    latents, category, rotations = code(3)
    names = np.random.default_rng(5).permutation(N)
    plain, named = (group_mig(latents, 4, category, rotations, seed=0, picture=one) for one in (None, names))
    np.testing.assert_array_equal(plain.informativeness, named.informativeness)


def test_a_class_seen_once_does_not_break_it():
    latents, category, _ = code(3)
    category[0] = 8
    assert 0.8 < group_mig(latents, 4, category, seed=0).value <= 1


def test_bad_arguments_are_refused():
    latents, category, rotations = code(3)
    for keywords, message in (
        ({"group_count": 1, "category": category}, "group_count"),
        ({"group_count": 5, "category": category}, "group_count"),
        ({"group_count": 4, "category": category[:9]}, "category: expected 400 rows"),
        ({"group_count": 4, "rotations": rotations[:, :2]}, "rotations"),
        ({"group_count": 4, "rotations": rotations, "pose_rows": np.ones(3, bool)}, "pose_rows"),
        ({"group_count": 4, "category": category, "picture": np.arange(9)}, "picture: expected 400"),
        ({"group_count": 4, "category": category, "picture": np.arange(N) % 9}, "10 different images, got 9"),
        ({"group_count": 4}, "none varies"),
        ({"group_count": 4, "category": np.zeros(N)}, "none varies"),
    ):
        with pytest.raises(InputError, match=message):
            group_mig(latents, seed=0, **keywords)


def test_alignment_of_a_perfect_a_swapped_a_useless_and_an_unlabelled_code():
    latents, category, rotations = code(3)
    perfect = group_mig(latents, 4, category, rotations, seed=0)
    pose, kind = perfect.informativeness[1:].mean(0), perfect.informativeness[0]
    assert perfect.alignment() == pytest.approx((pose[0] - kind[0] + kind[1] - pose[1]) / 2)
    assert perfect.alignment() > 0.6
    swapped = latents.reshape(N, 4, 3)[:, [1, 0, 2, 3]].reshape(N, -1)
    assert group_mig(swapped, 4, category, rotations, seed=0).alignment() < -0.6
    both = np.concatenate([latents[:, :6], latents[:, :6]], axis=1)
    assert abs(group_mig(both, 2, category, rotations, seed=0).alignment()) < 0.02, "each group tells of both"
    noise = np.random.default_rng(2).standard_normal((N, 12))
    assert abs(group_mig(noise, 4, category, rotations, seed=0).alignment()) < 0.02
    assert group_mig(latents, 4, category, seed=0).alignment() is None
    assert group_mig(latents, 4, rotations=rotations, seed=0).alignment() is None
