"""The rivals of mutual information as criteria of an edit: what an image's latents are read to be, against the target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from migvis.edits import Edits
from migvis.guidance import IMAGES_AT_ONCE, Objective
from migvis.latent_encoder import LatentEncoder, log_density


class Reader(Protocol):
    """Reads standardised latents off images; latent_mean and latent_scale are [G, D_g]."""

    latent_mean: Tensor
    latent_scale: Tensor

    def means(self, images: Tensor) -> Tensor:
        """Images [n, 1, H, W] -> the latents that are expected of them, standardised, [n, G, D_g]."""


class _ByReading(ABC):
    """A criterion that knows an image by a reading of it per group, so that pictures are read once, not once per edit."""

    @abstractmethod
    def _read(self, images: Tensor) -> Tensor:
        """Readings [n, G, K] of images [n, 1, H, W]."""

    @abstractmethod
    def _goal(self, edits: Edits) -> Tensor:
        """What a reading is compared with, [n, K′]."""

    @abstractmethod
    def _score(self, reading: Tensor, goal: Tensor) -> Tensor:
        """The criterion […] of readings […, K] and goals […, K′], which broadcast."""

    def objective(self, edits: Edits) -> Objective:
        """The score of each edit as a differentiable function of its x̂₀."""
        goal, rows = self._goal(edits), torch.arange(len(edits), device=edits.group.device)
        return lambda clean: self._score(self._read(clean)[rows, edits.group - 1], goal)

    @torch.no_grad()
    def at(self, edits: Edits, images: Tensor) -> Tensor:
        """The scores [n, P] of n edits at each of the training pictures images [P, 1, H, W]."""
        of_group = torch.cat([self._read(part) for part in images.split(IMAGES_AT_ONCE)]).transpose(0, 1)
        return self._score(of_group[edits.group - 1], self._goal(edits)[:, None])


@dataclass(frozen=True)
class Likelihood(_ByReading):
    """log q(z*_g | y) in nats, in the units of the VAE's latents: the ablation "w/o MI" of B."""

    encoder: LatentEncoder

    def _read(self, images: Tensor) -> Tensor:
        return torch.cat(self.encoder(images), dim=2)

    def _goal(self, edits: Edits) -> Tensor:
        scale = self.encoder.latent_scale[edits.group - 1]
        return torch.cat([_standardised(self.encoder, edits), scale.log()], dim=1)

    def _score(self, reading: Tensor, goal: Tensor) -> Tensor:
        z, log_scale = goal.chunk(2, dim=-1)
        return log_density(z, *reading.chunk(2, dim=-1)) - log_scale.sum(-1)


@dataclass(frozen=True)
class Activation(_ByReading):
    """⟨ẑ_g(y), z*_g⟩ of standardised latents: of first order in what is read, so it has no optimum at the target.

    With a LatentEncoder the ablation "w/o MI" of A, with a LatentRegression AP-LR. A stimulus whose target is the mean
    (z*_g = 0) is not moved.
    """

    reader: Reader

    def _read(self, images: Tensor) -> Tensor:
        return self.reader.means(images)

    def _goal(self, edits: Edits) -> Tensor:
        return _standardised(self.reader, edits)

    def _score(self, reading: Tensor, goal: Tensor) -> Tensor:
        return (reading * goal).sum(-1)


def _standardised(reader: Reader, edits: Edits) -> Tensor:
    """Targets [n, D_g] in units of the latents' mean and sd."""
    index = edits.group - 1
    return (edits.target - reader.latent_mean[index]) / reader.latent_scale[index]
