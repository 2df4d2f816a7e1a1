"""What a denoiser remembers: training pictures, their mirror images and slightly warped copies, as an empirical prior.

A short fit learns textures before it learns objects. The posterior mean of y_0 under the pictures themselves, in closed
form, brings whole objects at the noise levels where an edit decides what it becomes; the U-Net corrects it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from migvis import randomness

ROTATION, SCALE, SHIFT = math.radians(25.0), 1.18, 0.125
"""Largest warp of a copy in the image plane: radians, factor, half image widths."""
_BASIS_PICTURES = 2048


class StimulusMemory(nn.Module):
    """The kernel posterior of y_0 given a state of noise level σ, over M remembered pictures x_i:

        m(ȳ, σ) = Σ_i w_i·Πx_i,   w_i ∝ exp(−‖Π(ȳ − x_i)‖²/(2·(σ² + h²))),   ȳ = y_t/√α_t

    Π keeps the mean picture and the `rank` leading principal components, which is where the pictures live; the bandwidth h
    fills the gaps between them, and keeps m smooth in ȳ at small σ. Each of P pictures is remembered 2·`copies` times: as it
    is, mirrored, and each of the two warped copies − 1 times (rotation, scale and position within ROTATION, SCALE, SHIFT).
    Stored is `pictures`, uint8 [P, H, W]; the rest follows from it.
    """

    pictures: Tensor
    mean: Tensor
    basis: Tensor
    keys: Tensor

    def __init__(self, copies: int, rank: int, bandwidth: float, image_size: int) -> None:
        super().__init__()
        self.copies, self.rank, self.bandwidth = copies, rank, bandwidth
        self.register_buffer("pictures", torch.zeros(0, image_size, image_size, dtype=torch.uint8))
        for name in ("mean", "basis", "keys"):
            self.register_buffer(name, torch.zeros(0), persistent=False)

    @torch.no_grad()
    def remember(self, images: Tensor) -> None:
        """Takes the pictures [P, 1, H, W] in [−1, 1], rounded to 256 levels, in place of any it had."""
        self.pictures = ((images[:, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        exact = self.images.to(images.dtype)
        both = torch.cat([exact, exact.flip(-1)])
        sample = torch.cat([both, _warped(both, 1)] if self.copies > 1 else [both]).flatten(1)
        self.mean = sample.mean(dim=0)
        sample = sample[:: math.ceil(len(sample) / _BASIS_PICTURES)] - self.mean
        _, _, directions = torch.linalg.svd(sample, full_matrices=False)
        self.basis = directions[: self.rank].T.contiguous()
        codes = torch.stack(
            [((both if copy == 0 else _warped(both, copy)).flatten(1) - self.mean) @ self.basis for copy in range(self.copies)], 1
        )
        # All copies of a picture side by side, so that a picture can be left out.
        codes = codes.unflatten(0, (2, len(images))).transpose(0, 1).flatten(0, 2)
        # With −‖x_i‖²/2 as a last component of x_i, one matrix product makes the logits.
        self.keys = torch.cat([codes, -codes.square().sum(1, keepdim=True) / 2], dim=1).T.contiguous()

    @property
    def images(self) -> Tensor:
        """The remembered pictures as they are, [P, 1, H, W] in [−1, 1]."""
        return self.pictures[:, None].float() / 127.5 - 1

    @property
    def codes(self) -> Tensor:
        """Codes of everything remembered, [M, rank]."""
        return self.keys[:-1].T

    @property
    def plain_codes(self) -> Tensor:
        """Codes of `images`, [P, rank], without those of mirror images and warped copies."""
        return self.codes[:: 2 * self.copies]

    def code(self, images: Tensor) -> Tensor:
        """Π of images [n, 1, H, W]: their principal components, [n, rank]."""
        return (images.flatten(1) - self.mean) @ self.basis

    def weights(self, scaled: Tensor, sigma: Tensor, own: Tensor | None = None) -> Tensor:
        """w [n, M] for ȳ [n, 1, H, W] and σ [n]; all copies of picture own [n] in 0…P − 1 are left out (−1: none is)."""
        code = functional.pad(self.code(scaled), (0, 1), value=1.0)
        logits = code / (sigma.square() + self.bandwidth**2)[:, None] @ self.keys
        if own is not None:
            rows = (own >= 0).nonzero()[:, 0]
            grouped = logits.unflatten(1, (len(self.pictures), 2 * self.copies))
            grouped[rows, own[rows]] = -torch.inf
            logits = grouped.flatten(1)
        return logits.softmax(dim=1)

    def forward(self, scaled: Tensor, sigma: Tensor, own: Tensor | None = None) -> Tensor:
        """m(ȳ, σ), [n, 1, H, W], for ȳ [n, 1, H, W] and σ [n]; see `weights` for `own`."""
        with torch.autocast(scaled.device.type, enabled=False):
            codes = self.weights(scaled.to(self.keys.dtype), sigma, own) @ self.codes
            return (codes @ self.basis.T + self.mean).view_as(scaled)


def _warped(images: Tensor, copy: int) -> Tensor:
    """Images [n, 1, H, W] turned, scaled and moved in the image plane, by draws that depend on (copy, row) alone."""
    rows = torch.arange(len(images), device=images.device)
    draws = 2 * randomness.uniform(0, "memory-warp", copy, rows, 4) - 1
    angle, scale = ROTATION * draws[:, 0], SCALE ** draws[:, 1]
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    first = torch.stack([cosine, -sine, SHIFT * draws[:, 2]], dim=1)
    second = torch.stack([sine, cosine, SHIFT * draws[:, 3]], dim=1)
    grid = functional.affine_grid(torch.stack([first, second], dim=1).to(images.dtype), list(images.shape), align_corners=False)
    # What comes in from outside is background, which is −1.
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1
