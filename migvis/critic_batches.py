"""What a step of the critic's fit sees: different pictures, for each one of its stimuli and one of its versions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from migvis.config import CriticConfig
from migvis.errors import InputError
from migvis.randomness import epoch_batch, integers, uniform
from migvis.training import Shard

ONE_WORKER = Shard()


@dataclass(frozen=True)
class CriticBatch:
    """One worker's part of a batch, int64 [b] each: pictures 0…P − 1, stimuli (rows of the posteriors), versions."""

    pictures: Tensor
    stimuli: Tensor
    versions: Tensor

    def to(self, device: torch.device | str) -> CriticBatch:
        return CriticBatch(self.pictures.to(device), self.stimuli.to(device), self.versions.to(device))


class CriticBatches:
    """Batches of `size` different pictures, drawn per (seed, step, picture) whatever the number of workers.

    picture_row [n]: the picture that each stimulus shows; versions: how many images there are of each picture
    (the clean one, version 0, and its pool). The same picture twice in a batch would be a false negative.
    """

    def __init__(self, picture_row: Tensor, versions: int, size: int, seed: int) -> None:
        picture_row = picture_row.cpu()
        self.versions, self.size, self.seed = versions, size, seed
        self.stimulus_count = picture_row.bincount()
        order = picture_row.argsort(stable=True)
        first = self.stimulus_count.cumsum(0) - self.stimulus_count
        place = torch.arange(len(order)) - first[picture_row[order]]
        self.stimuli_of = torch.zeros(len(first), int(self.stimulus_count.max()), dtype=torch.int64)
        self.stimuli_of[picture_row[order], place] = order

    def draw(self, step: int, shard: Shard = ONE_WORKER) -> CriticBatch:
        """This worker's part of the batch of `step`, on the CPU."""
        pictures = shard.take(epoch_batch(self.seed, "critic pictures", step, len(self.stimulus_count), self.size))
        count = self.stimulus_count[pictures]
        turn = (uniform(self.seed, "critic stimuli", step, pictures)[:, 0] * count).long()
        version = integers(self.seed, "critic versions", step, pictures, 0, self.versions - 1)
        return CriticBatch(pictures, self.stimuli_of[pictures, turn.minimum(count - 1)], version)


def check_material(
    clean: Tensor,
    pool: Tensor | None,
    mean: Tensor,
    log_var: Tensor,
    picture_row: Tensor,
    config: CriticConfig,
    group_count: int,
    embeddings: Tensor | None,
) -> None:
    """Raise InputError unless the arguments of fit_critic, described there, fit together."""
    pictures = len(clean)
    if clean.ndim != 4 or clean.shape[1] != 1:
        raise InputError(f"clean: expected images [P,1,H,W], got shape {tuple(clean.shape)}")
    if pool is not None and (pool.ndim != 5 or pool.shape[0] != pictures or pool.shape[2:] != clean.shape[1:]):
        raise InputError(f"pool: expected [{pictures},draws,{','.join(map(str, clean.shape[1:]))}], got {tuple(pool.shape)}")
    if pool is None and embeddings is None and config.training_images == "pool":
        raise InputError("critic.training_images=pool needs a pool of denoised images, and none is given")
    if embeddings is not None and (embeddings.ndim != 3 or len(embeddings) != pictures):
        raise InputError(f"embeddings: expected [{pictures}, 1 + draws, E], got shape {tuple(embeddings.shape)}")
    if mean.ndim != 2 or mean.shape != log_var.shape or mean.shape[1] % group_count:
        got = f"{tuple(mean.shape)} and {tuple(log_var.shape)}"
        raise InputError(f"mean, log_var: expected equal shapes [n, {group_count} groups × rank], got {got}")
    if picture_row.shape != mean.shape[:1]:
        raise InputError(f"picture_row: expected {len(mean)} rows, got shape {tuple(picture_row.shape)}")
    if not torch.equal(picture_row.unique().cpu(), torch.arange(pictures)):
        raise InputError(f"picture_row: expected every picture 0…{pictures - 1} to be shown, and no other")
    if config.infonce_batch > pictures:
        raise InputError(f"critic.infonce_batch: {config.infonce_batch} exceeds the {pictures} different training pictures")
