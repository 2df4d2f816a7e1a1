"""Classifier-free guidance (Ho and Salimans 2022), the rival AP-CFG (as in BrainACTIV, Cerdas et al. 2024).

One denoiser knows the latents: it is the fitted unconditional one, with the groups as a further input to its embedded time,
trained on with each group dropped out by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from migvis import randomness
from migvis.critic_batches import CriticBatches
from migvis.diffusion import Denoise, clip_clean, ddim_sample, denoising_loss, training_times
from migvis.edits import Edits
from migvis.image_heads import latent_statistics
from migvis.synthesis import Editor
from migvis.training import WHOLE, FitResult, Progress, Shard, StepLoss, fit
from migvis.unet import UNet


class ConditionalDenoiser(nn.Module):
    """ε(y_t, z, t): a U-Net to whose embedded time an embedding of the latents is added, which starts at zero.

    So before it is fitted this is the U-Net that it was given, whatever the latents. A dropped group is told from one at its
    mean by a mask that is an input, too. latent_mean, latent_scale [G, D_g] standardise z.
    """

    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(self, unet: UNet, group_count: int, group_rank: int) -> None:
        super().__init__()
        self.unet, self.group_count, self.group_rank = unet, group_count, group_rank
        width = 4 * unet.base_width
        last = nn.Linear(width, width, bias=False)
        nn.init.zeros_(last.weight)
        self.condition = nn.Sequential(nn.Linear(group_count * (group_rank + 1), width), nn.SiLU(), last)
        self.register_buffer("latent_mean", torch.zeros(group_count, group_rank))
        self.register_buffer("latent_scale", torch.ones(group_count, group_rank))

    def embed(self, latents: Tensor, given: Tensor) -> Tensor:
        """What is added to the embedded time, [n, 4·base_width], for latents [n, G, D_g] of which given [n, G] are told."""
        mask = given.to(latents.dtype)
        told = (latents - self.latent_mean) / self.latent_scale * mask[:, :, None]
        embedded: Tensor = self.condition(torch.cat([told.flatten(1), mask], dim=1))
        return embedded

    def of(self, latents: Tensor, given: Tensor) -> Denoise:
        """ε(·, z, ·) for the latents of one batch, as `embed` takes them."""
        return partial(self.unet, condition=self.embed(latents, given))


def classifier_free(conditional: ConditionalDenoiser, edits: Edits, alphas: Tensor) -> Denoise:
    """ε̂(y_t, t) = ε(y_t, ∅) + γ·(ε(y_t, z_g) − ε(y_t, ∅)), γ = scale [n]; in each but group g the latents are dropped.

    The x̂₀ of both is clipped, as that of every denoiser is before it is guided; ε̂ is not. Exactly ε(y_t, ∅) at γ = 0 and
    ε(y_t, z_g) at γ = 1.
    """
    n, groups = len(edits), conditional.group_count
    latents = edits.target[:, None].expand(n, groups, conditional.group_rank)
    own = nn.functional.one_hot(edits.group - 1, groups)
    told, untold = (clip_clean(conditional.of(latents, given), alphas) for given in (own, torch.zeros_like(own)))
    scale = edits.scale.float()[:, None, None, None]

    def guided(noisy: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(untold(noisy, t), told(noisy, t), scale)

    return guided


@dataclass(frozen=True)
class ClassifierFreeEditor(Editor):
    """Edits by DDIM with a conditional denoiser, from states to which the unconditional one inverted the stimuli."""

    conditional: ConditionalDenoiser

    def sample(self, stimuli: Tensor, states: Tensor, edits: Edits, step: int) -> Tensor:
        """DDIM by `classifier_free` from states [n, 1, H, W] at t′ = step."""
        return ddim_sample(classifier_free(self.conditional, edits, self.alphas), states, self.alphas, step)


def conditional_step(
    conditional: ConditionalDenoiser, images: Tensor, mean: Tensor, log_var: Tensor, picture_row: Tensor, seed: int, shard: Shard
) -> StepLoss:
    """The loss of a training step, as `fit` takes it; images and posteriors as in fit_conditional_denoiser.

    That of the unconditional denoiser (migvis.diffusion.denoiser_step), but for two things. The latents z ~ q(z|x) are those
    of one of a picture's own stimuli; each group is told in 1 of G draws, so that mostly one group is, as in edits, or none.
    And no picture is mirrored: its latents tell which way it faces.
    """
    unet, groups = conditional.unet, conditional.group_count
    config, device = unet.config, images.device
    mean, deviation = mean.to(device), (0.5 * log_var).exp().to(device)
    batches = CriticBatches(picture_row, 1, min(config.batch_size, len(images)), seed)

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        batch = batches.draw(step, shard).to(device)
        rows = batch.pictures
        draws = randomness.normal(seed, "conditional-latents", step, rows, (mean.shape[1],))
        z = (mean[batch.stimuli] + deviation[batch.stimuli] * draws).unflatten(1, (groups, -1))
        given = randomness.uniform(seed, "conditional-groups", step, rows, groups) <= 1 / groups
        t = training_times(randomness.uniform(seed, "denoiser-time", step, rows)[:, 0], config)
        noise = randomness.normal(seed, "denoiser-noise", step, rows, tuple(images.shape[1:])).to(images.dtype)
        recalled = randomness.uniform(seed, "denoiser-recall", step, rows)[:, 0] < config.memory_recall
        own = torch.where(recalled, -1, rows)
        loss = denoising_loss(unet, images[rows], noise, t, own, conditional.embed(z, given))
        return shard.share(len(rows), batches.size) * loss, {}

    return step_loss


def fit_conditional_denoiser(
    unet: UNet,
    images: Tensor,
    mean: Tensor,
    log_var: Tensor,
    picture_row: Tensor,
    group_count: int,
    *,
    steps: int,
    seed: int,
    shard: Shard = WHOLE,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> tuple[ConditionalDenoiser, FitResult]:
    """Trains a fitted `unet`, in place, on for `steps` steps with the latents; its own configuration says how.

    images [P, 1, H, W]: the different training pictures, which it may remember; mean, log_var [n, D]: posteriors of the n
    training stimuli; picture_row [n] in 0…P − 1: the picture that each of them shows. Returns the averaged (EMA) weights in
    evaluation mode. Raises FitError at a non-finite loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive_seed(seed, "conditional denoiser"))
        conditional = ConditionalDenoiser(unet, group_count, mean.shape[1] // group_count)
    centre, spread = latent_statistics(mean, log_var)
    conditional.latent_mean.copy_(centre.view_as(conditional.latent_mean))
    conditional.latent_scale.copy_(spread.view_as(conditional.latent_scale))
    conditional = conditional.to(device, images.dtype).requires_grad_(True).train()
    result = fit(
        conditional,
        conditional_step(conditional, images.to(device), mean, log_var, picture_row, seed, shard),
        name="conditional denoiser",
        steps=steps,
        learning_rate=unet.config.learning_rate,
        schedule="cosine",
        ema_decay=unet.config.ema_decay,
        precision=precision,
        checkpoint=checkpoint,
        shard=shard,
        progress=progress,
    )
    return conditional.eval().requires_grad_(False), result
