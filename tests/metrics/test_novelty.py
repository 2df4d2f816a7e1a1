from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from migvis.metrics.novelty import training_distance


def pictures(*shape: int, seed: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


TRAINING = pictures(60, 1, 6, 6, seed=0)


def test_it_is_the_least_distance_of_a_naive_loop() -> None:
    images = pictures(5, 1, 6, 6, seed=1)
    for image, distance in zip(images, training_distance(images, TRAINING), strict=True):
        expected = min(math.dist(image.flatten().tolist(), known.flatten().tolist()) for known in TRAINING)
        foreground = math.sqrt(sum((value + 1) ** 2 for value in image.flatten().tolist()))
        assert float(distance) == pytest.approx(expected / foreground, rel=1e-4)


def test_a_copy_is_at_0_a_noisy_copy_near_it_and_a_stranger_far() -> None:
    noisy = TRAINING[2:3] + 0.1 * pictures(1, 1, 6, 6, seed=2)
    copy, near, far = training_distance(torch.cat([TRAINING[4:5], noisy, pictures(1, 1, 6, 6, seed=3)]), TRAINING).tolist()
    assert copy == 0
    assert 0.01 < near < 0.1
    assert far > 0.3


def test_a_blank_is_infinitely_far_unless_the_training_set_has_one() -> None:
    blank = torch.full((1, 1, 6, 6), -1.0)
    assert training_distance(blank, TRAINING).isinf().all()
    assert training_distance(blank, torch.cat([TRAINING, blank])).item() == 0
