"""The edit grid: stimuli × groups × guidance scales × (target | ±shift), in one batch per diffusion step.

Inversion is done once per stimulus and reused for every edit that starts from it; edits of all groups share the
denoiser's and the critic encoder's passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from migvis.config import SynthesisConfig
from migvis.critic import Critic
from migvis.diffusion import Denoise, clip_clean, ddim_invert, ddim_sample, dequantise, edit_step_index
from migvis.errors import InputError
from migvis.guidance import LatentBank, guide, information_at, mutual_information
from migvis.memory import StimulusMemory
from migvis.randomness import permutation
from migvis.tilt import Tilt, tilted_sample

CHUNK = 128
"""Edits per batch: enough to fill a machine, few enough to stay in its memory."""


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


@dataclass(frozen=True)
class Editor:
    """Denoiser, critic and bank, ready to edit. `jacobian: bounded` needs `pixel_variance`, `guidance: memory` `memory`."""

    denoise: Denoise
    alphas: Tensor
    critic: Critic
    bank: LatentBank
    config: SynthesisConfig
    pixel_variance: float
    memory: StimulusMemory | None = None

    def invert(self, images: Tensor, trajectory: bool = False, edit_step: float | None = None) -> Tensor:
        """DDIM inversion of images [n, 1, H, W], dequantised, to t′, by the clipped denoiser that sampling uses too."""
        step, denoise = self.step(edit_step), clip_clean(self.denoise, self.alphas)
        with torch.no_grad():
            start = dequantise(images.to(self.alphas.device), self.alphas, self.config.dequantisation)
            return ddim_invert(denoise, start, self.alphas, step, trajectory, self.config.inversion_corrections)

    def step(self, edit_step: float | None = None) -> int:
        """t′ as an integer step."""
        return edit_step_index(self.config.edit_step if edit_step is None else edit_step, len(self.alphas) - 1)

    def edit(
        self,
        images: Tensor,
        states: Tensor,
        edits: Edits,
        edit_step: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Edited images [n, 1, H, W] in [−1, 1] of images [m, 1, H, W] and their states at t′, to which `edits.source` points.

        Works on the device of `alphas`, wherever images, states and edits are; the edits are on the CPU. Raises InputError
        where `guidance: memory` meets a denoiser without one.
        """
        device, edited = self.alphas.device, torch.empty(len(edits), *states.shape[1:])
        images, states, bank = images.to(device), states.to(device), self.bank.to(device)
        for rows in torch.arange(len(edits)).split(CHUNK):
            part = edits.rows(rows).to(device)
            with torch.no_grad():
                edited[rows] = self._sample(images, states[part.source], part, bank, self.step(edit_step)).clamp(-1, 1).cpu()
            if progress is not None:
                progress(int(rows[-1]) + 1, len(edits))
        return edited

    def _sample(self, images: Tensor, states: Tensor, edits: Edits, bank: LatentBank, step: int) -> Tensor:
        denoise = clip_clean(self.denoise, self.alphas)
        if bool((edits.scale == 0).all()):
            return ddim_sample(denoise, states, self.alphas, step)
        allowed = bank.allowed(edits.source_row, edits.target_row)
        objective = mutual_information(self.critic, edits.group, edits.target, bank, allowed)
        config = self.config
        if config.guidance == "gradient":
            variance = self.pixel_variance
            denoise = guide(
                denoise, objective, edits.scale, self.alphas, form=config.form, jacobian=config.jacobian, pixel_variance=variance
            )
            return ddim_sample(denoise, states, self.alphas, step)
        if self.memory is None:
            raise InputError("synthesis.guidance=memory needs a denoiser with a memory (denoiser.memory_copies)")
        stimuli = images[edits.source]
        remembered = information_at(self.critic, edits.group, edits.target, bank, allowed, self.memory.images)
        values = torch.cat([remembered, objective(stimuli)[:, None]], dim=1)
        return tilted_sample(denoise, states, self.alphas, step, Tilt(self.memory, stimuli, values, edits.scale))


def make_bank(latents: Tensor, rows: Tensor, pictures: Tensor, size: int, seed: int) -> LatentBank:
    """A fixed bank of `size` training latents, drawn once by seed.

    latents [n, D]: posterior means of the stimuli `rows` [n], which show the training pictures `pictures` [n].
    """
    chosen = permutation(seed, "latent-bank", 0, len(latents))[:size].sort().values
    return LatentBank(latents[chosen], rows[chosen], pictures[chosen])
