"""Edits along pairs of dimensions within one latent group (A Fig. 6, 7; B Fig. 6, 7A), as one stage, shown and not scored."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from migvis.errors import InputError
from migvis.synthesis import Edits, shift_edits
from migvis.weights import read_tensors, save_tensors
from tune.builders import edit_progress
from tune.editors import editor, latents_of
from tune.stage_data import dataset_at
from tune.stage_graph import StageContext

MOST_PAIRS = 6


@dataclass(frozen=True)
class DimensionGallery:
    """Rows of edits of the same stimuli: images [rows, n, 1, H, W], pair [rows, 2] of dimensions from 1, shift [rows] in sd;
    source [n]: stimulus rows."""

    images: Tensor
    pair: Tensor
    shift: Tensor
    source: Tensor


def pairs_of(group_rank: int) -> list[tuple[int, int]]:
    """The pairs of dimensions of a group, of many MOST_PAIRS spread evenly over them; one dimension stands alone."""
    pairs = list(combinations(range(1, group_rank + 1), 2)) or [(1, 1)]
    step = (len(pairs) - 1) / max(1, MOST_PAIRS - 1)
    return pairs if len(pairs) <= MOST_PAIRS else [pairs[round(place * step)] for place in range(MOST_PAIRS)]


def read_dimension_gallery(folder: Path) -> DimensionGallery:
    """What build_dimension_gallery wrote. Raises InputError for a damaged file."""
    return DimensionGallery(**read_tensors(folder / "dimensions.safetensors"))


def build_dimension_gallery(data_path: Path, context: StageContext) -> None:
    """dimensions.safetensors: the fields of DimensionGallery. Raises InputError for a group that does not exist."""
    dataset, count, group = dataset_at(data_path), context.stage.config["stimuli"], context.stage.config["group"]
    vae, latents = latents_of(context, dataset)
    if not 1 <= group <= vae.group_count:
        raise InputError(f"group: expected 1…{vae.group_count}, got {group}")
    made = editor(context, dataset, latents)
    config, stored = made.config, read_tensors(context.input("trajectory") / "states.safetensors")
    source = stored["source"][:count]
    every = torch.arange(len(source))
    spread = vae.latent_scale.view(vae.group_count, vae.group_rank)
    shifts = sorted({sign * size for size in config.shifts for sign in (-1.0, 1.0)})
    rows = [(pair, shift) for pair in pairs_of(vae.group_rank) for shift in shifts]
    edits = [
        shift_edits(every, group, config.guidance_scale, latents[source], shift, spread, source, dimensions=pair)
        for pair, shift in rows
    ]
    stimuli, states = dataset.images(source.numpy()), stored["states"][made.step()][:count]
    images = made.edit(stimuli, states, Edits.join(edits), progress=edit_progress(context, "dimensions"))
    tensors = {
        "images": images.view(len(rows), *stimuli.shape),
        "pair": torch.tensor([pair for pair, _ in rows]),
        "shift": torch.tensor([shift for _, shift in rows], dtype=torch.float64),
        "source": source,
    }
    save_tensors(context.folder / "dimensions.safetensors", tensors)
