"""How far edits are from the pictures that the models were fitted to: an edit may be an object because it is a copy of one."""

from __future__ import annotations

import torch
from torch import Tensor

BACKGROUND = -1.0


def training_distance(images: Tensor, training: Tensor) -> Tensor:
    """Distance [n] of images [n, 1, H, W] to the nearest of training pictures [P, 1, H, W], in units of their foreground.

    min_j ‖y − x_j‖/‖y − background‖: 0 for a copy, 1 or more where no training picture is nearer than the blank. Of a blank
    image it is infinite, unless it is itself a training picture.
    """
    exact = "donot_use_mm_for_euclid_dist"  # the matrix product would not put a copy at 0
    nearest = torch.cdist(images.flatten(1), training.flatten(1), compute_mode=exact).min(dim=1).values
    foreground = (images - BACKGROUND).flatten(1).norm(dim=1)
    return torch.where(nearest == 0, 0.0, nearest / foreground)
