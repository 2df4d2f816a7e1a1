"""What is edited to what: batches of edits, and the two protocols that make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from migvis.errors import InputError


@dataclass(frozen=True)
class Edits:
    """A batch of n edits, row by row.

    source [n]: row of the inverted stimuli; group [n] in 1…G; target [n, D_g]: the latent group it is guided to;
    scale [n]: γ; source_row, target_row [n]: stimuli that the bank must leave out (−1 for none).
    """

    source: Tensor
    group: Tensor
    target: Tensor
    scale: Tensor
    source_row: Tensor
    target_row: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, rows: Tensor) -> Edits:
        """The edits at `rows`."""
        return Edits(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def to(self, device: torch.device) -> Edits:
        """The same edits on a device."""
        return Edits(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @staticmethod
    def join(parts: Sequence[Edits]) -> Edits:
        """One batch of several."""
        return Edits(*(torch.cat([getattr(part, name) for part in parts]) for name in Edits.__dataclass_fields__))


def group_columns(latents: Tensor, group: int, group_rank: int) -> Tensor:
    """z_g [n, D_g] of latents [n, D], g = 1…G. Raises InputError for a group that does not exist."""
    if not 1 <= group <= latents.shape[1] // group_rank:
        raise InputError(f"group: expected 1…{latents.shape[1] // group_rank}, got {group}")
    return latents[:, (group - 1) * group_rank : group * group_rank]


def target_edits(
    source: Tensor, group: int, scale: float, target_latents: Tensor, group_rank: int, source_row: Tensor, target_row: Tensor
) -> Edits:
    """Protocol `target` (A): z_g of other stimuli, target_latents [n, D], one per source [n]."""
    return Edits(
        source,
        torch.full_like(source, group),
        group_columns(target_latents, group, group_rank),
        torch.full((len(source),), float(scale)),
        source_row,
        target_row,
    )


def shift_edits(
    source: Tensor,
    group: int,
    scale: float,
    own_latents: Tensor,
    shift: float | Tensor,
    latent_scale: Tensor,
    source_row: Tensor,
    dimensions: Sequence[int] | None = None,
) -> Edits:
    """Protocol `shift` (B): the stimuli's own z_g + Δ·sd, own_latents [n, D], latent_scale [G, D_g] the sd per dimension.

    `shift` is a number or one value per dimension of the group [D_g], in sd of the posterior means over training
    images; `dimensions` (1…D_g) restricts it, so that pairs such as (1, 4) probe inside a group.
    Raises InputError for a dimension outside the group or a shift of another length.
    """
    rank = _rank(own_latents, latent_scale, group, shift)
    delta = torch.as_tensor(shift, dtype=own_latents.dtype).expand(rank).clone()
    if dimensions is not None:
        if any(not 1 <= dimension <= rank for dimension in dimensions):
            raise InputError(f"dimensions: expected numbers in 1…{rank}, got {list(dimensions)}")
        keep = torch.zeros(rank)
        keep[torch.tensor(list(dimensions), dtype=torch.long) - 1] = 1
        delta = delta * keep
    scaled = delta * latent_scale[group - 1]
    return Edits(
        source,
        torch.full_like(source, group),
        group_columns(own_latents, group, rank) + scaled,
        torch.full((len(source),), float(scale)),
        source_row,
        torch.full_like(source_row, -1),
    )


def _rank(own_latents: Tensor, latent_scale: Tensor, group: int, shift: float | Tensor) -> int:
    groups, rank = latent_scale.shape
    if not 1 <= group <= groups:
        raise InputError(f"group: expected 1…{groups}, got {group}")
    if own_latents.ndim != 2 or own_latents.shape[1] != groups * rank:
        raise InputError(f"latents: expected shape [n, {groups * rank}], got {tuple(own_latents.shape)}")
    if isinstance(shift, Tensor) and shift.ndim and tuple(shift.shape) != (rank,):
        raise InputError(f"shift: expected a number or {rank} values, got shape {tuple(shift.shape)}")
    return rank
