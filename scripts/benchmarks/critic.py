"""A fit of the critics of 4 groups in one pass over the images, against 4 separate fits.

Both have the same pictures, or the same cached embeddings of pool and clean pictures; a separate fit has an encoder of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._frame import Options, Result, Row, interleaved
from benchmarks._material import configuration, synthetic
from migvis.config import CriticConfig
from migvis.critic import fit_critic
from migvis.pretrained import PretrainedEncoder
from migvis.randomness import normal
from tune.stage_data import clean_pictures, device, training_pictures

GROUPS = 4
EMBEDDING_WIDTH = 384
"""Width of a DINO ViT-S/16's embedding; its values do not matter to the time."""


def run(options: Options) -> Result:
    """Rows: the quick preset's critic, whose encoder is fitted with it, and one on cached embeddings of a frozen encoder."""
    config = configuration(options.small)
    dataset = synthetic(config)
    rows, picture = training_pictures(dataset)
    clean, draws, rank = clean_pictures(dataset), config.critic.pool_draws, config.vae.group_rank
    mean = normal(0, "benchmark latents", 0, torch.arange(len(rows)), (GROUPS * rank,))
    embeddings = normal(0, "benchmark embeddings", 0, torch.arange(len(clean)), (1 + draws, EMBEDDING_WIDTH))
    steps = 1 if options.small else 100
    quick = config.critic.model_copy(update={"images_seen": steps * config.critic.infonce_batch, "minimum_steps": 1})

    def fit(critic: CriticConfig, latents: Tensor, groups: int, known: Tensor | None) -> None:
        encoder = None if known is None else PretrainedEncoder(torch.nn.Identity(), EMBEDDING_WIDTH)
        fit_critic(
            clean, None, latents, torch.full_like(latents, -2.0), torch.tensor(picture), critic, groups,
            embeddings=known, encoder=encoder, seed=0, device=device(),
        )  # fmt: skip

    def separately(critic: CriticConfig, known: Tensor | None) -> None:
        for part in mean.split(rank, dim=1):
            fit(critic, part, 1, known)

    cached = quick.model_copy(update={"encoder": "dino", "training_images": "pool"})
    result = []
    for name, critic, known in (("fitted encoder, clean pictures", quick, None), ("cached embeddings, pool", cached, embeddings)):
        ways = {
            "together": lambda _, critic=critic, known=known: fit(critic, mean, GROUPS, known),
            "separately": lambda _, critic=critic, known=known: separately(critic, known),
        }
        for way in ways.values():
            way(0)
        seconds = interleaved(ways, 1 if options.small else 5)
        result.append(Row(f"{GROUPS} groups, {name}", seconds["together"], seconds["separately"]))
    return Result(result)
