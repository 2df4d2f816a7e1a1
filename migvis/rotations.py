"""Rotations as HvM writes them: degrees in the xy, xz and yz planes."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_matrix(angles: Tensor) -> Tensor:
    """Rotations R = R_yz · R_xz · R_xy, [n, 3, 3], of angles [n, 3] = (rxy, rxz, ryz) in degrees."""
    cos, sin = torch.cos(torch.deg2rad(angles)), torch.sin(torch.deg2rad(angles))
    zero, one = torch.zeros_like(cos[:, 0]), torch.ones_like(cos[:, 0])

    def stack(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=1).reshape(-1, 3, 3)

    yaw = stack(cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0], zero, zero, zero, one)
    pitch = stack(cos[:, 1], zero, -sin[:, 1], zero, one, zero, sin[:, 1], zero, cos[:, 1])
    roll = stack(one, zero, zero, zero, cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2])
    return roll @ pitch @ yaw
