"""What the critic and its rivals share: a head per latent group on one image encoder, and what a training step shows them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from migvis.config import CriticConfig
from migvis.critic_batches import CriticBatches
from migvis.encoders import Encoder, is_frozen
from migvis.errors import InputError
from migvis.randomness import normal, uniform
from migvis.training import Shard

HIDDEN = 64


def head(inputs: int, width: int, bias: bool) -> nn.Sequential:
    """Inputs [n, inputs] -> [n, width] by one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, width, bias=bias))


def all_heads(heads: nn.ModuleList, inputs: Tensor) -> Tensor:
    """Each of G heads of `head` on its own inputs [G, n, …]: [G, n, width]."""
    first, bias, last, *rest = (torch.stack(same) for same in zip(*(head.parameters() for head in heads), strict=True))
    hidden = silu(torch.baddbmm(bias[:, None], inputs, first.transpose(1, 2)))
    product = torch.bmm(hidden, last.transpose(1, 2))
    return product + rest[0][:, None] if rest else product


def group_index(group: int, group_count: int) -> int:
    """Group 1…G as an index from 0. Raises InputError for a group that does not exist."""
    if not 1 <= group <= group_count:
        raise InputError(f"group: expected 1…{group_count}, got {group}")
    return group - 1


def latent_statistics(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd [D] of z ~ q(z|x) over stimuli, of posteriors with mean and log-variance [n, D]; the sd is at least 1e-6."""
    spread = (mean.var(dim=0, correction=0) + log_var.exp().mean(dim=0)).sqrt()
    return mean.mean(dim=0), spread.clamp_min(1e-6)


def step_count(config: CriticConfig) -> int:
    """Training steps: as many as show `images_seen` images in batches of B, and at least `minimum_steps`."""
    return max(config.minimum_steps, math.ceil(config.images_seen / config.infonce_batch))


def embedded_pairs(
    encoder: Encoder,
    clean: Tensor,
    pool: Tensor | None,
    mean: Tensor,
    log_var: Tensor,
    picture_row: Tensor,
    config: CriticConfig,
    embeddings: Tensor | None,
    *,
    seed: int,
    device: torch.device | str,
) -> Callable[[int, Shard], tuple[Tensor, Tensor]]:
    """(step, shard) -> embeddings [b, E] of this worker's images, with dropout, and z ~ q(z | x) [b, D] of their stimuli.

    The arguments are those of migvis.critic.fit_critic. Whatever is fitted on these pairs sees the same of them at one seed.
    """
    mean, deviation = mean.to(device), (0.5 * log_var).exp().to(device)
    use_pool = config.training_images == "pool"
    source = _embedding_source(encoder, clean, pool if use_pool else None, embeddings, device)
    draws = embeddings.shape[1] - 1 if embeddings is not None else 0 if pool is None else pool.shape[1]
    batches = CriticBatches(picture_row, 1 + draws if use_pool else 1, config.infonce_batch, seed)

    def pairs(step: int, shard: Shard) -> tuple[Tensor, Tensor]:
        batch = batches.draw(step, shard).to(device)
        noise = normal(seed, "critic latents", step, batch.pictures, (mean.shape[1],))
        z = mean[batch.stimuli] + deviation[batch.stimuli] * noise
        return _dropout(source(batch.pictures, batch.versions), config.embedding_dropout, seed, step, batch.pictures), z

    return pairs


def _embedding_source(
    encoder: Encoder, clean: Tensor, pool: Tensor | None, embeddings: Tensor | None, device: torch.device | str
) -> Callable[[Tensor, Tensor], Tensor]:
    """(pictures [b], versions [b]) -> embeddings [b, E], looked up or computed; version 0 is the clean image."""
    if embeddings is not None:
        known = embeddings.to(device)
        return lambda pictures, versions: known[pictures, versions]
    clean = clean.to(device)
    if pool is None:
        return lambda pictures, versions: encoder(clean[pictures])
    draws = pool.to(device)

    def embed(pictures: Tensor, versions: Tensor) -> Tensor:
        is_clean = (versions == 0).view(-1, 1, 1, 1)
        embedding: Tensor = encoder(torch.where(is_clean, clean[pictures], draws[pictures, (versions - 1).clamp_min(0)]))
        return embedding

    return embed


def _dropout(embedding: Tensor, share: float, seed: int, step: int, pictures: Tensor) -> Tensor:
    """Dropout of embeddings [b, E]. Without it a critic of a thousand pictures learns them by heart, and its bound on
    held-out ones falls below 0."""
    if share == 0:
        return embedding
    kept = uniform(seed, "critic dropout", step, pictures, embedding.shape[1]) > share
    return embedding * kept / (1 - share)


def own_tensors(model: nn.Module, encoder: Encoder) -> dict[str, Tensor]:
    """Tensors of a model by name, without those of its encoder if that is frozen: it is loaded from where it came."""
    frozen = is_frozen(encoder)
    return {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if not (frozen and name.startswith("encoder."))
    }


def copy_tensors(model: nn.Module, encoder: Encoder, tensors: dict[str, Tensor], what: str) -> None:
    """Gives a model what `own_tensors` returned. Raises InputError, which says of what, if one is missing or misshapen."""
    frozen = is_frozen(encoder)
    for name, value in model.state_dict().items():
        if frozen and name.startswith("encoder."):
            continue
        if name not in tensors or tensors[name].shape != value.shape:
            raise InputError(f"{what}: tensor {name} is missing or of another shape")
        value.copy_(tensors[name])
