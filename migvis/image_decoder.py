"""A decoder of latents to images, and its traversal: the rival SLT, standard latent traversal, without any diffusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss, silu

from migvis.config import CriticConfig
from migvis.critic_batches import CriticBatches
from migvis.edits import Edits
from migvis.encoders import GRID
from migvis.errors import InputError
from migvis.image_heads import latent_statistics, step_count
from migvis.randomness import derive_seed, normal
from migvis.synthesis import Editor
from migvis.training import WHOLE, FitResult, Progress, Shard, fit

WIDTH = 256
CHANNELS = (64, 64, 32, 16)
"""At 4, 8 and 16 px, and beyond."""


class ImageDecoder(nn.Module):
    """Latents of all groups to an image: a hidden layer, a 4 × 4 map, and a convolution after each doubling of it.

    At 32 px it has about as many weights as the critic's CNN with four heads. latent_mean, latent_scale [D] standardise z;
    what is fitted is the difference to pixel_mean [1, H, W], the mean training picture.
    """

    latent_mean: Tensor
    latent_scale: Tensor
    pixel_mean: Tensor

    def __init__(self, latent_count: int, image_size: int) -> None:
        super().__init__()
        self.latent_count, self.image_size = latent_count, image_size
        self.first = nn.Sequential(nn.Linear(latent_count, WIDTH), nn.SiLU(), nn.Linear(WIDTH, CHANNELS[0] * GRID**2))
        doublings = (image_size // GRID).bit_length() - 1
        widths = [CHANNELS[min(level, len(CHANNELS) - 1)] for level in range(doublings + 1)]
        self.convolutions = nn.ModuleList(nn.Conv2d(below, above, 3, padding=1) for below, above in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.register_buffer("latent_mean", torch.zeros(latent_count))
        self.register_buffer("latent_scale", torch.ones(latent_count))
        self.register_buffer("pixel_mean", torch.zeros(1, image_size, image_size))

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [n, D] in the units of the VAE -> images [n, 1, H, W], not clamped."""
        x = silu(self.first((latents - self.latent_mean) / self.latent_scale)).unflatten(1, (CHANNELS[0], GRID, GRID))
        for convolution in self.convolutions:
            x = silu(convolution(interpolate(x, scale_factor=2.0, mode="nearest")))
        difference: Tensor = self.last(x)
        if difference.shape[-1] != self.image_size:  # not a power of 2
            difference = interpolate(difference, size=self.image_size, mode="bilinear", align_corners=False)
        return self.pixel_mean + difference


@dataclass(frozen=True)
class DecodingEditor(Editor):
    """Edits that decode the stimulus' own latents, group g of them moved to (1 − γ)·own + γ·target.

    latents [S, D]: posterior means by stimulus row, to which `Edits.source_row` points. γ = 0 is the plain reconstruction,
    γ = 1 has the target's group. States are not looked at.
    """

    decoder: ImageDecoder
    latents: Tensor

    def sample(self, stimuli: Tensor, states: Tensor, edits: Edits, step: int) -> Tensor:
        """Decoded images [n, 1, H, W]. Raises InputError for an edit that does not say which stimulus it starts from."""
        if bool((edits.source_row < 0).any()):
            raise InputError("synthesis.method=decoder needs to know the stimulus of every edit (source_row), got -1")
        own = self.latents.to(edits.target.device)[edits.source_row]
        groups = own.unflatten(1, (-1, edits.target.shape[1])).clone()
        rows, index = torch.arange(len(edits), device=own.device), edits.group - 1
        groups[rows, index] = torch.lerp(groups[rows, index], edits.target, edits.scale.to(own.dtype)[:, None])
        images: Tensor = self.decoder(groups.flatten(1))
        return images


def fit_image_decoder(
    clean: Tensor,
    mean: Tensor,
    log_var: Tensor,
    picture_row: Tensor,
    config: CriticConfig,
    *,
    seed: int,
    shard: Shard = WHOLE,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> tuple[ImageDecoder, FitResult]:
    """Fits the decoder by Adam on the mean squared error of pixels, from z ~ q(z|x), in as many steps as the critic's.

    clean [P, 1, H, W]: the different training pictures; mean, log_var [n, D]: posteriors of the n training stimuli;
    picture_row [n] in 0…P − 1: the picture that each of them shows. Batches are the critic's. Raises FitError at a
    non-finite loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "image decoder weights"))
        decoder = ImageDecoder(mean.shape[1], clean.shape[-1])
    centre, spread = latent_statistics(mean, log_var)
    decoder.latent_mean.copy_(centre)
    decoder.latent_scale.copy_(spread)
    decoder.pixel_mean.copy_(clean.mean(dim=0))
    decoder = decoder.to(device, clean.dtype)
    mean, deviation, images = mean.to(device), (0.5 * log_var).exp().to(device), clean.to(device)
    batches = CriticBatches(picture_row, 1, min(config.infonce_batch, len(clean)), seed)

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batches.draw(step, shard).to(device)
        noise = normal(seed, "critic latents", step, batch.pictures, (mean.shape[1],))
        z = mean[batch.stimuli] + deviation[batch.stimuli] * noise
        target = images[batch.pictures]
        return shard.share(len(z), batches.size) * mse_loss(decoder(z).to(target.dtype), target), {}

    result = fit(
        decoder,
        step_loss,
        name="image decoder",
        steps=step_count(config),
        learning_rate=config.learning_rate,
        schedule="cosine",
        precision=precision,
        checkpoint=checkpoint,
        shard=shard,
        progress=progress,
    )
    return decoder, result


def image_decoder_state(decoder: ImageDecoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and a description for JSON."""
    return dict(decoder.state_dict()), {"latent_count": decoder.latent_count, "image_size": decoder.image_size}


def load_image_decoder(tensors: dict[str, Tensor], description: dict[str, Any]) -> ImageDecoder:
    """The decoder that image_decoder_state described, in evaluation mode."""
    decoder = ImageDecoder(description["latent_count"], description["image_size"])
    decoder.load_state_dict(tensors)
    return decoder.eval()
