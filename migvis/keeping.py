"""Guidance that keeps the other groups: an edit of z_g is to change what z_g says of the stimulus, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from migvis.edits import Edits
from migvis.errors import InputError
from migvis.guidance import Criterion, Objective


@dataclass(frozen=True)
class KeepingOthers:
    """C_g(z*_g, y) + w·Σ_{h≠g} C_h(z_h, y), z the stimulus' own latents: an intervention on group g alone.

    The papers guide by the first term only (A Eq. 4) and leave it to the inverted state to keep the rest. But pictures that
    fit z*_g are of any kind otherwise, so an edit of the pose changed the object, too. own: edits -> the latents [n, D] of the
    stimuli that they start from.
    """

    criterion: Criterion
    weight: float
    group_rank: int
    own: Callable[[Edits], Tensor]

    def _kept(self, edits: Edits) -> tuple[Edits, Tensor]:
        """For every edit one to each of its stimulus' other groups, and which edit each belongs to, [n·(G − 1)]."""
        latents = self.own(edits).unflatten(1, (-1, self.group_rank))
        groups = torch.arange(1, latents.shape[1] + 1, device=edits.group.device)
        rows, index = (edits.group[:, None] != groups).nonzero(as_tuple=True)
        one = edits.rows(rows)
        kept = Edits(one.source, groups[index], latents[rows, index], one.scale, one.source_row, one.source_row)
        return kept, rows

    def objective(self, edits: Edits) -> Objective:
        """The sum as a differentiable function of x̂₀."""
        kept, rows = self._kept(edits)
        guided, others = self.criterion.objective(edits), self.criterion.objective(kept)
        return lambda clean: guided(clean).index_add(0, rows, self.weight * others(clean[rows]))

    def at(self, edits: Edits, images: Tensor) -> Tensor:
        """The sums [n, P] of n edits at each of the training pictures images [P, 1, H, W]."""
        kept, rows = self._kept(edits)
        values = self.criterion.at(Edits.join([edits, kept]), images)
        return values[: len(edits)].index_add(0, rows, self.weight * values[len(edits) :])


def own_latents(latents: Tensor) -> Callable[[Edits], Tensor]:
    """How edits of stimuli whose rows are known find their own latents among those of all stimuli, [S, D].

    Raises InputError, when it is called, for an edit that does not say which stimulus it starts from.
    """

    def own(edits: Edits) -> Tensor:
        if bool((edits.source_row < 0).any()):
            raise InputError("synthesis.keep_weight: every edit has to say from which stimulus it starts (source_row), got -1")
        return latents.to(edits.target)[edits.source_row]

    return own
