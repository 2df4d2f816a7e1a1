"""The edit grid: stimuli × groups × guidance scales × (target | ±shift), in one batch per diffusion step.

Inversion is done once per stimulus and reused for every edit that starts from it; edits of all groups share the
denoiser's and the image encoder's passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from migvis.config import SynthesisConfig
from migvis.diffusion import Denoise, clip_clean, ddim_invert, ddim_sample, dequantise, edit_step_index
from migvis.edits import Edits, group_columns, shift_edits, target_edits
from migvis.errors import InputError
from migvis.guidance import Criterion, LatentBank, guide
from migvis.memory import StimulusMemory
from migvis.randomness import permutation
from migvis.tilt import Tilt, tilted_sample

__all__ = ["CHUNK", "Editor", "Edits", "GuidedEditor", "group_columns", "make_bank", "shift_edits", "target_edits"]

CHUNK = 128
"""Edits per batch: enough to fill a machine, few enough to stay in its memory."""


@dataclass(frozen=True)
class Editor(ABC):
    """A denoiser to invert with, and a way to make edits from what it inverted: `sample`, which each method has its own of."""

    denoise: Denoise
    alphas: Tensor
    config: SynthesisConfig

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
        as `sample` does.
        """
        device, edited = self.alphas.device, torch.empty(len(edits), *states.shape[1:])
        images, states = images.to(device), states.to(device)
        for rows in torch.arange(len(edits)).split(CHUNK):
            part = edits.rows(rows).to(device)
            with torch.no_grad():
                sampled = self.sample(images[part.source], states[part.source], part, self.step(edit_step))
            edited[rows] = sampled.clamp(-1, 1).cpu()
            if progress is not None:
                progress(int(rows[-1]) + 1, len(edits))
        return edited

    @abstractmethod
    def sample(self, stimuli: Tensor, states: Tensor, edits: Edits, step: int) -> Tensor:
        """Edited images [n, 1, H, W], not clamped, of each edit's stimulus and its state at t′ = step, both [n, 1, H, W]."""


@dataclass(frozen=True)
class GuidedEditor(Editor):
    """Edits by diffusion towards what a criterion scores higher.

    `jacobian: bounded` needs `pixel_variance`, `guidance: memory` `memory`.
    """

    criterion: Criterion
    pixel_variance: float
    memory: StimulusMemory | None = None

    def sample(self, stimuli: Tensor, states: Tensor, edits: Edits, step: int) -> Tensor:
        """DDIM bent by the criterion's gradient, or tilted by its values. InputError: guidance=memory without a memory."""
        denoise, config = clip_clean(self.denoise, self.alphas), self.config
        if bool((edits.scale == 0).all()):
            return ddim_sample(denoise, states, self.alphas, step)
        objective = self.criterion.objective(edits)
        if config.guidance == "gradient":
            variance = self.pixel_variance
            denoise = guide(
                denoise, objective, edits.scale, self.alphas, form=config.form, jacobian=config.jacobian, pixel_variance=variance
            )
            return ddim_sample(denoise, states, self.alphas, step)
        if self.memory is None:
            raise InputError("synthesis.guidance=memory needs a denoiser with a memory (denoiser.memory_copies)")
        values = torch.cat([self.criterion.at(edits, self.memory.images), objective(stimuli)[:, None]], dim=1)
        return tilted_sample(denoise, states, self.alphas, step, Tilt(self.memory, stimuli, values, edits.scale))


def make_bank(latents: Tensor, rows: Tensor, pictures: Tensor, size: int, seed: int) -> LatentBank:
    """A fixed bank of `size` training latents, drawn once by seed.

    latents [n, D]: posterior means of the stimuli `rows` [n], which show the training pictures `pictures` [n].
    """
    chosen = permutation(seed, "latent-bank", 0, len(latents))[:size].sort().values
    return LatentBank(latents[chosen], rows[chosen], pictures[chosen])
