"""Realism of images whose renderer is unknown: distances in a feature space that guidance never used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from migvis.errors import InputError
from migvis.metrics.arrays import Array, matrix
from migvis.pretrained import PretrainedEncoder, load_backbone

RESNET = "resnet18.a1_in1k"
RESNET_WIDTH = 512


def build_feature_encoder(weights: str | Path | None = None) -> PretrainedEncoder:
    """ImageNet ResNet-18 (512 pooled features), from a file or from timm's hub or cache; InputError if neither has it."""
    return PretrainedEncoder(load_backbone(RESNET, weights, "realism feature_weights"), RESNET_WIDTH)


def image_features(encoder: torch.nn.Module, images: Tensor, batch: int = 64) -> Array:
    """Features [n, E] of grey images [n,1,H,W] in [−1, 1], without gradient."""
    with torch.no_grad():
        parts = [encoder(part) for part in images.split(batch)]
    return torch.cat(parts).double().cpu().numpy()


def _squared_distances(a: Array, b: Array) -> Array:
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0.0)


def _pair(reference: Any, generated: Any) -> tuple[Array, Array]:
    real = matrix("reference", reference)
    made = matrix("generated", generated)
    if real.shape[1] != made.shape[1]:
        raise InputError(f"generated: expected {real.shape[1]} features as in reference, got {made.shape[1]}")
    return real, made


def on_manifold(reference: Any, generated: Any, k: int = 5) -> NDArray[np.bool_]:
    """Whether each generated image lies on the manifold of the reference images (Kynkäänniemi et al. 2019, Eq. 1).

    reference [m, E], generated [n, E] features. On it: within some reference image's distance to its k-th
    nearest other reference image. Raises InputError unless 1 ≤ k < m.
    """
    real, made = _pair(reference, generated)
    if not 1 <= k < len(real):
        raise InputError(f"k: expected 1…{len(real) - 1} for {len(real)} reference images, got {k}")
    between = _squared_distances(real, real)
    np.fill_diagonal(between, np.inf)
    radius = np.partition(between, k - 1, axis=1)[:, k - 1]
    return np.asarray((_squared_distances(made, real) <= radius).any(axis=1))


def knn_precision(reference: Any, generated: Any, k: int = 5) -> float:
    """The share of generated images on the manifold of the reference images, in [0, 1]."""
    return float(on_manifold(reference, generated, k).mean())


def kernel_distance(reference: Any, generated: Any) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y/E + 1)³ (Bińkowski et al. 2018).

    reference [m, E], generated [n, E] features, m, n ≥ 2. Near 0, negative values included, where both come
    from one distribution.
    """
    real, made = _pair(reference, generated)
    if min(len(real), len(made)) < 2:
        raise InputError(f"reference, generated: at least 2 images each, got {len(real)} and {len(made)}")

    def kernel(a: Array, b: Array) -> Array:
        product: Array = (a @ b.T / a.shape[1] + 1) ** 3
        return product

    def off_diagonal_mean(values: Array) -> float:
        return float((values.sum() - np.trace(values)) / (len(values) * (len(values) - 1)))

    cross = float(kernel(real, made).mean())
    return off_diagonal_mean(kernel(real, real)) + off_diagonal_mean(kernel(made, made)) - 2 * cross
