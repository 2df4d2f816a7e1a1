"""The critic s_φ(z_g, y): an InfoNCE density-ratio estimator with one image encoder and a head per latent group.

Scores are separable: s(z, y) = k_image(y) · k_latent(z) / √K, K the width of the keys, so that all pairs of a
batch, or of images with a bank of latents, are one matrix product. A constant part of k_image makes room for
a term in z alone, which the softmax over latents needs; a term in y alone drops out of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from migvis.config import CriticConfig
from migvis.critic_batches import ONE_WORKER, check_material
from migvis.encoders import Encoder, build_encoder, is_frozen
from migvis.errors import InputError
from migvis.image_heads import (
    all_heads,
    copy_tensors,
    embedded_pairs,
    group_index,
    head,
    latent_statistics,
    own_tensors,
    step_count,
)
from migvis.randomness import derive_seed, permutation
from migvis.training import FitResult, Progress, Shard, fit, gather

EVALUATION_ORDERS = 4
"""Random orders of the images from which mi_bound cuts its candidate sets."""


def info_nce(scores: Tensor) -> Tensor:
    """InfoNCE loss in nats: −mean_i log softmax_j(scores[i, j]) at j = i (A Eq. 5); a scalar, or [G] of as many groups.

    scores [B, B] or [G, B, B]: scores[i, j] = s_φ(z_g of j, image i). Rows are images, the softmax is over latents, positives
    are on the diagonal; transposed it bounds the same information, but it is another loss, and its gradient is
    not that of log p(z_g | y). log B − loss is a lower bound of MI(z_g, y). Raises InputError unless square.
    """
    count = scores.shape[-1] if scores.ndim else 0
    if scores.ndim not in (2, 3) or scores.shape[-2] != count or count == 0:
        raise InputError(f"scores: expected a square matrix [images, latents], or one per group, got shape {tuple(scores.shape)}")
    own = torch.arange(count, device=scores.device).expand(scores.shape[:-1])
    losses = cross_entropy(scores.flatten(0, -2), own.flatten(), reduction="none")
    return losses.view(own.shape).mean(dim=-1)


class Critic(nn.Module):
    """Density-ratio scores of images and latent groups; `group` runs from 1 to G in every method.

    encoder: one built beforehand (a frozen one can be shared by many critics); none: as `config` says.
    """

    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(
        self, config: CriticConfig, group_count: int, group_rank: int, image_size: int, encoder: Encoder | None = None
    ) -> None:
        super().__init__()
        self.config, self.group_count, self.group_rank, self.image_size = config, group_count, group_rank, image_size
        self.encoder = build_encoder(config, image_size) if encoder is None else encoder
        width = config.embedding_width
        self.image_heads = nn.ModuleList(head(self.encoder.width, width, bias=True) for _ in range(group_count))
        # A constant part of the latent keys would be the term in the image alone that drops out of the softmax.
        self.latent_heads = nn.ModuleList(head(group_rank, width, bias=False) for _ in range(group_count))
        self.register_buffer("latent_mean", torch.zeros(group_count, group_rank))
        self.register_buffer("latent_scale", torch.ones(group_count, group_rank))

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings [n, E] of images [n,1,H,W] in [−1, 1], shared by all groups."""
        embeddings: Tensor = self.encoder(images)
        return embeddings

    def image_keys(self, embeddings: Tensor, group: int) -> Tensor:
        """Keys [n, K] of embeddings [n, E]."""
        keys: Tensor = self.image_heads[self._index(group)](embeddings)
        return keys

    def latent_keys(self, latents: Tensor, group: int) -> Tensor:
        """Keys [m, K] of one group's latents [m, D_g], in the units of the VAE."""
        index = self._index(group)
        keys: Tensor = self.latent_heads[index]((latents - self.latent_mean[index]) / self.latent_scale[index])
        return keys

    def all_keys(self, embeddings: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of all groups at once, [G, n, K] of embeddings [n, E] and [G, m, K] of latents [m, D], as if one by one.

        A few large matrix products in place of G small ones: a small critic's fit is bound by their number.
        """
        z = (latents.unflatten(1, (self.group_count, self.group_rank)) - self.latent_mean) / self.latent_scale
        shared = embeddings.expand(self.group_count, *embeddings.shape)
        return all_heads(self.image_heads, shared), all_heads(self.latent_heads, z.transpose(0, 1))

    def scores(self, keys_image: Tensor, keys_latent: Tensor) -> Tensor:
        """Scores [n, m] of keys [n, K] and [m, K]: rows images, columns latents; or [G, n, m] of all groups at once."""
        return keys_image @ keys_latent.mT / math.sqrt(keys_image.shape[-1])

    def _index(self, group: int) -> int:
        return group_index(group, self.group_count)


def embed_pool(encoder: Encoder, clean: Tensor, pool: Tensor | None, batch: int = 256) -> Tensor:
    """Embeddings [P, 1 + draws, E] of clean images [P,1,H,W] and, if given, of their pool [P,draws,1,H,W].

    Entry 0 of the second axis is the clean image. Computed without gradient, in batches.
    """
    images = clean[:, None] if pool is None else torch.cat([clean[:, None], pool.to(clean)], dim=1)
    with torch.no_grad():
        parts = [encoder(part) for part in images.flatten(0, 1).split(batch)]
    return torch.cat(parts).unflatten(0, images.shape[:2])


def mi_bound(critic: Critic, images: Tensor, z: Tensor, candidates: int, seed: int) -> dict[int, tuple[float, float]]:
    """Lower bounds of MI(z_g, y) in nats with their standard errors, {group: (log candidates − loss, error)}.

    images [n,1,H,W] of n different pictures, or their embeddings [n, E]; z [n, D] their latents, row by row.
    Each image is compared with its own latent and `candidates` − 1 others, in fixed sets cut from random
    orders of the images, each image at least EVALUATION_ORDERS times. The standard error is over images.
    `candidates` is capped at n, with a warning, since the bound saturates at log candidates and bounds of
    different caps do not compare. Raises InputError for lengths that disagree or fewer than 2 candidates.
    """
    n = len(images)
    if z.shape != (n, critic.group_count * critic.group_rank):
        raise InputError(f"z: expected shape {(n, critic.group_count * critic.group_rank)}, got {tuple(z.shape)}")
    if min(candidates, n) < 2:
        raise InputError(f"critic.evaluation_candidates: at least 2 are needed, got {candidates} of {n} images")
    if candidates > n:
        warnings.warn(f"mi_bound: {candidates} candidates asked for, {n} images are there; using {n}", stacklevel=2)
        candidates = n
    cuts = math.ceil(n / candidates)
    starts = [round(cut * (n - candidates) / max(1, cuts - 1)) for cut in range(cuts)]
    orders = [permutation(seed, "mi bound", order, n) for order in range(EVALUATION_ORDERS)]
    sets = [order[start : start + candidates].to(images.device) for order in orders for start in starts]
    bounds: dict[int, tuple[float, float]] = {}
    with torch.no_grad():
        embeddings = images if images.ndim == 2 else torch.cat([critic.embed(part) for part in images.split(256)])
        latents = z.to(embeddings).unflatten(1, (critic.group_count, critic.group_rank))
        for group in range(1, critic.group_count + 1):
            image_keys = critic.image_keys(embeddings, group)
            latent_keys = critic.latent_keys(latents[:, group - 1], group)
            total, count = image_keys.new_zeros(n), image_keys.new_zeros(n)
            for chosen in sets:
                scores = critic.scores(image_keys[chosen], latent_keys[chosen])
                total[chosen] += scores.diagonal() - scores.logsumexp(1)
                count[chosen] += 1
            gain = (math.log(candidates) + total / count).double()
            bounds[group] = (float(gain.mean()), float(gain.std() / math.sqrt(n)))
    return bounds


def fit_critic(
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
    checkpoint_every: int = 500,
    progress: Callable[[Progress], None] | None = None,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> tuple[Critic, FitResult]:
    """Fit all groups' critics together: Adam on Σ_g InfoNCE_g (A Eq. 5), max(minimum_steps, ⌈images_seen / B⌉) steps.

    clean [P,1,H,W] and pool [P,draws,1,H,W] (x̂₀ of noised pictures; none with training_images="clean"): the P
    different training pictures. mean, log_var [n, D]: posteriors of the n training stimuli; picture_row [n] in
    0…P − 1: the picture each of them shows. A step draws B different pictures (the same picture twice would be
    a false negative), for each one of its stimuli, its clean image or one of its draws, all equally likely, and
    z ~ q(z | x). No picture is ever flipped or cropped, since that changes its pose. embeddings
    [P, 1 + draws, E] (embed_pool) stand in for a frozen encoder's work.

    Raises InputError for shapes that disagree, and if B exceeds the number of pictures.
    """
    check_material(clean, pool, mean, log_var, picture_row, config, group_count, embeddings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "critic weights"))
        critic = Critic(config, group_count, mean.shape[1] // group_count, clean.shape[-1], encoder).to(device, clean.dtype)
    if embeddings is not None and not is_frozen(critic.encoder):
        raise InputError(f"critic.encoder={config.encoder} is fitted with the critic, so embeddings cannot stand in for it")
    with torch.no_grad():
        centre, spread = latent_statistics(mean, log_var)
        critic.latent_mean.copy_(centre.view_as(critic.latent_mean))
        critic.latent_scale.copy_(spread.view_as(critic.latent_scale))

    pairs = embedded_pairs(critic.encoder, clean, pool, mean, log_var, picture_row, config, embeddings, seed=seed, device=device)
    groups = range(1, group_count + 1)

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        embedding, z = pairs(step, shard)
        # Negatives come from all workers, and every worker computes the whole loss.
        keys = torch.stack(critic.all_keys(embedding, z)).to(z.dtype).permute(2, 0, 1, 3)
        keys = gather(keys, shard, config.infonce_batch)
        losses = info_nce(critic.scores(*keys.permute(1, 2, 0, 3)))
        return losses.sum(), {f"info_nce_{g}": loss for g, loss in zip(groups, losses, strict=True)}

    result = fit(
        critic,
        step_loss,
        name="critic",
        steps=step_count(config),
        learning_rate=config.learning_rate,
        schedule="cosine",
        precision=precision,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        shard=shard,
        progress=progress,
    )
    return critic, result


def critic_state(critic: Critic) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and a description for JSON, from which load_critic makes the critic again.

    A frozen encoder is left out: it is the same for every critic and is loaded from where it came.
    """
    description = {
        "config": critic.config.model_dump(mode="json"),
        "group_count": critic.group_count,
        "group_rank": critic.group_rank,
        "image_size": critic.image_size,
    }
    return own_tensors(critic, critic.encoder), description


def load_critic(tensors: dict[str, Tensor], description: dict[str, Any], encoder: Encoder | None = None) -> Critic:
    """The critic that critic_state described, in evaluation mode; `encoder` stands in for building a frozen one.

    Raises InputError if tensors are missing or of another shape.
    """
    config = CriticConfig(**description["config"])
    critic = Critic(config, description["group_count"], description["group_rank"], description["image_size"], encoder)
    copy_tensors(critic, critic.encoder, tensors, "critic")
    return critic.eval()
