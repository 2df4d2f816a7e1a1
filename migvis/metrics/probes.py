"""Probes of category and rotation, the instrument of selectivity on recordings, where there is no renderer to fit.

Edits are made by a denoiser and a critic, so a probe that shares the critic's architecture, or that has seen
clean pictures only, could be fooled with it. These are residual networks with a pooled output, fitted on
clean, noised and denoised pictures; their accuracy on held-out pictures decides whether they decide anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from migvis.errors import InputError
from migvis.metrics.reconstruction import neural_r2
from migvis.randomness import derive_seed, epoch_batch, integers, normal, uniform
from migvis.training import FitResult, Progress, fit

WIDTHS = (32, 64, 96)
STRONGEST_NOISE = 0.5
"""Largest standard deviation of the noise added to pictures in [−1, 1]."""
LEAST_CATEGORY_ACCURACY, LEAST_ROTATION_R2 = 0.6, 0.5


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 3, stride, 1),
            nn.GroupNorm(8, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1),
        )
        self.skip = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        total: Tensor = self.skip(features) + self.body(features)
        return total


class Probes(nn.Module):
    """One residual network with a read-out for the category and one for the rotations; either may be absent."""

    rotation_mean: Tensor
    rotation_scale: Tensor

    def __init__(self, category_count: int, rotation_count: int, image_size: int) -> None:
        super().__init__()
        self.category_count, self.rotation_count = category_count, rotation_count
        stride = max(1, image_size // 32)
        blocks: list[nn.Module] = [nn.Conv2d(1, WIDTHS[0], 2 * stride + 1, stride, stride)]
        for inputs, outputs in zip((WIDTHS[0], *WIDTHS[:-1]), WIDTHS, strict=True):
            blocks.append(_ResidualBlock(inputs, outputs, stride=2))
        self.trunk = nn.Sequential(*blocks, nn.GroupNorm(8, WIDTHS[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.readout = nn.Linear(4 * WIDTHS[-1], category_count + rotation_count)
        self.register_buffer("rotation_mean", torch.zeros(rotation_count))
        self.register_buffer("rotation_scale", torch.ones(rotation_count))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Category logits [n, C] and z-scored rotations [n, R] of images [n,1,H,W] in [−1, 1]."""
        category, rotations = self.readout(self.trunk(images)).split([self.category_count, self.rotation_count], dim=1)
        return category, rotations

    @torch.no_grad()
    def predict(self, images: Tensor, batch: int = 256) -> tuple[Tensor | None, Tensor | None]:
        """Category [n] int64 and rotations [n, R] in degrees; None where that label was not fitted."""
        outputs = [self(part) for part in images.split(batch)]
        category = torch.cat([logits for logits, _ in outputs]).argmax(1) if self.category_count else None
        rotations = torch.cat([z for _, z in outputs]) * self.rotation_scale + self.rotation_mean if self.rotation_count else None
        return category, rotations


@dataclass(frozen=True)
class ProbeAccuracy:
    """How well probes do on held-out pictures; None for a label that was not fitted."""

    category: float | None
    """Share of pictures whose category is right."""
    rotation_r2: float | None
    """Coefficient of determination, averaged over the rotations."""

    @property
    def decides_category(self) -> bool:
        return self.category is not None and self.category >= LEAST_CATEGORY_ACCURACY

    @property
    def decides_rotation(self) -> bool:
        return self.rotation_r2 is not None and self.rotation_r2 >= LEAST_ROTATION_R2


def fit_probes(
    clean: Tensor,
    pool: Tensor | None,
    category: Tensor | None,
    rotations: Tensor | None,
    *,
    category_count: int = 0,
    pose_rows: Tensor | None = None,
    steps: int = 1500,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Probes, FitResult]:
    """Fit category by cross-entropy and z-scored rotations by squared error, together, on training pictures.

    clean [P,1,H,W] in [−1, 1] and pool [P,draws,1,H,W] of their denoised versions, or none; category [P] in
    0…category_count − 1 or none; rotations [P, 3] in degrees or none; pose_rows [P] boolean, the pictures whose
    rotation counts (none: all). Each picture is shown clean, with Gaussian noise of a random strength, or
    denoised, equally often. Raises InputError without labels and for shapes that disagree.
    """
    pictures = len(clean)
    if category is None and rotations is None:
        raise InputError("probes: neither category nor rotations are given")
    if category is not None and (len(category) != pictures or bool(((category < 0) | (category >= category_count)).any())):
        raise InputError(f"probes: expected {pictures} categories in 0…{category_count - 1}, got shape {tuple(category.shape)}")
    if rotations is not None and (rotations.ndim != 2 or len(rotations) != pictures):
        raise InputError(f"probes: expected rotations [{pictures}, 3], got shape {tuple(rotations.shape)}")
    if pool is not None and (pool.ndim != 5 or pool.shape[0] != pictures or pool.shape[2:] != clean.shape[1:]):
        raise InputError(f"probes: expected pool [{pictures},draws,1,H,W] of the clean pictures, got {tuple(pool.shape)}")
    counted = torch.ones(pictures, dtype=torch.bool) if pose_rows is None else pose_rows
    rotation_count = 0 if rotations is None else rotations.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "probe weights"))
        probes = Probes(category_count if category is not None else 0, rotation_count, clean.shape[-1]).to(device)
    scaled = torch.zeros(pictures, rotation_count)
    if rotations is not None:
        probes.rotation_mean.copy_(rotations[counted].mean(0))
        probes.rotation_scale.copy_(rotations[counted].std(0, correction=0).clamp_min(1e-6))
        scaled = (rotations - probes.rotation_mean.cpu()) / probes.rotation_scale.cpu()
    kinds = 2 if pool is None else 3

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = epoch_batch(seed, "probe pictures", step, pictures, batch_size)
        kind = integers(seed, "probe kinds", step, chosen, 0, kinds - 1)
        images = clean[chosen]
        if pool is not None:
            draw = integers(seed, "probe draws", step, chosen, 0, pool.shape[1] - 1)
            images = torch.where((kind == 2).view(-1, 1, 1, 1), pool[chosen, draw], images)
        strength = STRONGEST_NOISE * uniform(seed, "probe strengths", step, chosen)[:, 0] * (kind == 1)
        images = images + strength.view(-1, 1, 1, 1) * normal(seed, "probe noise", step, chosen, tuple(clean.shape[1:]))
        logits, predicted = probes(images.to(device))
        terms: dict[str, Tensor] = {}
        if category is not None:
            terms["category"] = cross_entropy(logits, category[chosen].to(device))
        if rotations is not None:
            weight = counted[chosen].to(device, predicted.dtype)
            error = ((predicted - scaled[chosen].to(device)) ** 2).mean(1)
            terms["rotation"] = (error * weight).sum() / weight.sum().clamp_min(1)
        return torch.stack(list(terms.values())).sum(), terms

    result = fit(
        probes, step_loss, name="probes", steps=steps, learning_rate=learning_rate, checkpoint=checkpoint, progress=progress
    )
    return probes, result


def probe_accuracy(
    probes: Probes, images: Tensor, category: Tensor | None, rotations: Tensor | None, pose_rows: Tensor | None = None
) -> ProbeAccuracy:
    """Accuracy on held-out pictures [n,1,H,W]; arguments as in fit_probes, labels that are not given are not judged."""
    predicted_category, predicted_rotations = probes.predict(images)
    share = None
    if category is not None and predicted_category is not None:
        share = float((predicted_category.cpu() == category).double().mean())
    explained = None
    if rotations is not None and predicted_rotations is not None:
        counted = torch.ones(len(images), dtype=torch.bool) if pose_rows is None else pose_rows
        explained = neural_r2(rotations[counted], predicted_rotations.cpu()[counted])
    return ProbeAccuracy(share, explained)
