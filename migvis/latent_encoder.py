"""A probabilistic encoder of images q(z_g | y), a rival of the critic: its own choices are the critic's wherever they can be."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from migvis.config import CriticConfig
from migvis.critic_batches import ONE_WORKER, check_material
from migvis.encoders import Encoder, build_encoder, is_frozen
from migvis.errors import InputError
from migvis.image_heads import all_heads, copy_tensors, embedded_pairs, head, latent_statistics, own_tensors, step_count
from migvis.randomness import derive_seed
from migvis.training import FitResult, Progress, Shard, fit

LOG_VARIANCE_RANGE = (-8.0, 3.0)
"""Log-variances are held in here: an sd between 0.018 and 4.5 of that of the latents over all stimuli."""


def log_density(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, diag exp log_var) in nats, summed over the last axis; the shapes broadcast."""
    return -0.5 * ((z - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi)).sum(-1)


class LatentEncoder(nn.Module):
    """q(z_g | y) = N(μ_g(y), diag σ_g²(y)) for all groups, by a head each on one image encoder, as in the critic.

    Means and variances are those of standardised latents, (z − latent_mean)/latent_scale, both [G, D_g]: of z ~ q(z|x) over
    the training stimuli. encoder: one built beforehand; none: as `config` says.
    """

    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(
        self, config: CriticConfig, group_count: int, group_rank: int, image_size: int, encoder: Encoder | None = None
    ) -> None:
        super().__init__()
        self.config, self.group_count, self.group_rank, self.image_size = config, group_count, group_rank, image_size
        self.encoder = build_encoder(config, image_size) if encoder is None else encoder
        self.heads = nn.ModuleList(head(self.encoder.width, 2 * group_rank, bias=True) for _ in range(group_count))
        self.register_buffer("latent_mean", torch.zeros(group_count, group_rank))
        self.register_buffer("latent_scale", torch.ones(group_count, group_rank))

    def posterior(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [n, E] -> mean and log-variance [n, G, D_g] of the standardised latents."""
        outputs = all_heads(self.heads, embeddings.expand(self.group_count, *embeddings.shape))
        mean, log_var = outputs.transpose(0, 1).chunk(2, dim=2)
        return mean, log_var.clamp(*LOG_VARIANCE_RANGE)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n, 1, H, W] in [−1, 1] -> mean and log-variance [n, G, D_g] of the standardised latents."""
        return self.posterior(self.encoder(images))

    def means(self, images: Tensor) -> Tensor:
        """μ(y) [n, G, D_g] of images [n, 1, H, W]."""
        mean: Tensor = self(images)[0]
        return mean


def fit_latent_encoder(
    clean: Tensor,
    pool: Tensor | None,
    mean: Tensor,
    log_var: Tensor,
    picture_row: Tensor,
    config: CriticConfig,
    group_count: int,
    *,
    embeddings: Tensor | None = None,
    encoder: Encoder | None = None,
    seed: int,
    shard: Shard = ONE_WORKER,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> tuple[LatentEncoder, FitResult]:
    """Fits all groups together: Adam on −Σ_g log q(z_g | y) of z ~ q(z|x), the objective of B's ablation "w/o MI".

    The arguments are those of migvis.critic.fit_critic, and at one seed so are images and latents of each step. Raises
    InputError as it does, FitError at a non-finite loss.
    """
    check_material(clean, pool, mean, log_var, picture_row, config, group_count, embeddings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "latent encoder weights"))
        model = LatentEncoder(config, group_count, mean.shape[1] // group_count, clean.shape[-1], encoder).to(device, clean.dtype)
    if embeddings is not None and not is_frozen(model.encoder):
        raise InputError(f"critic.encoder={config.encoder} is fitted with its heads, so embeddings cannot stand in for it")
    with torch.no_grad():
        centre, spread = latent_statistics(mean, log_var)
        model.latent_mean.copy_(centre.view_as(model.latent_mean))
        model.latent_scale.copy_(spread.view_as(model.latent_scale))
    pairs = embedded_pairs(model.encoder, clean, pool, mean, log_var, picture_row, config, embeddings, seed=seed, device=device)

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        embedding, z = pairs(step, shard)
        standardised = (z.unflatten(1, (group_count, -1)) - model.latent_mean) / model.latent_scale
        of_group, spread_of_group = (part.to(z.dtype) for part in model.posterior(embedding))
        losses = -shard.share(len(z), config.infonce_batch) * log_density(standardised, of_group, spread_of_group).mean(0)
        return losses.sum(), {f"negative_log_likelihood_{g}": loss for g, loss in enumerate(losses, start=1)}

    result = fit(
        model,
        step_loss,
        name="latent encoder",
        steps=step_count(config),
        learning_rate=config.learning_rate,
        schedule="cosine",
        precision=precision,
        checkpoint=checkpoint,
        shard=shard,
        progress=progress,
    )
    return model, result


def latent_encoder_state(model: LatentEncoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, without those of a frozen encoder, and a description for JSON."""
    description = {
        "config": model.config.model_dump(mode="json"),
        "group_count": model.group_count,
        "group_rank": model.group_rank,
        "image_size": model.image_size,
    }
    return own_tensors(model, model.encoder), description


def load_latent_encoder(tensors: dict[str, Tensor], description: dict[str, Any], encoder: Encoder | None = None) -> LatentEncoder:
    """The model that latent_encoder_state described, in evaluation mode. Raises InputError for tensors that do not fit."""
    config = CriticConfig(**description["config"])
    model = LatentEncoder(config, description["group_count"], description["group_rank"], description["image_size"], encoder)
    copy_tensors(model, model.encoder, tensors, "latent encoder")
    return model.eval()
