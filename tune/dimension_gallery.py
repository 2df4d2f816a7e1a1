"""Edits along pairs of dimensions within one latent group (A Fig. 6, 7; B Fig. 6, 7A), as one stage, shown and not scored."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from migvis.data import Dataset
from migvis.errors import InputError
from migvis.figures import GridRow, edit_grid
from migvis.synthesis import Edits, shift_edits
from migvis.weights import read_tensors, save_tensors
from tune.builders import edit_progress
from tune.editors import editor, latents_of
from tune.pictures import names_of
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
    """The pairs of dimensions of a group, the first MOST_PAIRS of them; a group of one dimension has that one alone."""
    return list(combinations(range(1, group_rank + 1), 2))[:MOST_PAIRS] or [(1, 1)]


def build_dimension_gallery(data_path: Path, context: StageContext) -> None:
    """dimensions.safetensors: the fields of DimensionGallery. Raises InputError for a group that does not exist."""
    dataset, count, group = dataset_at(data_path), context.stage.config["stimuli"], context.stage.config["group"]
    vae, latents = latents_of(context, dataset)
    if not 1 <= group <= vae.group_count:
        raise InputError(f"group: expected 1…{vae.group_count}, got {group}")
    made = editor(context, dataset, latents)
    config, stored = made.config, read_tensors(context.input("trajectory") / "states.safetensors")
    source, every = stored["source"][:count], torch.arange(count)
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


def dimension_grid(dataset: Dataset, folder: Path, path: Path, title: str) -> Path:
    """Draws what build_dimension_gallery wrote as a PNG, a row per pair and shift; returns its path."""
    shown = DimensionGallery(**read_tensors(folder / "dimensions.safetensors"))
    rows = [GridRow("source", dataset.images(shown.source.numpy()), names_of(dataset, shown.source))]
    for pair, shift, images in zip(shown.pair.tolist(), shown.shift.tolist(), shown.images, strict=True):
        named = f"dimensions [{pair[0]}, {pair[1]}]" if pair[0] != pair[1] else f"dimension {pair[0]}"
        rows.append(GridRow(f"{named}\nΔ = {shift:+g}", images))
    return edit_grid(rows, path, title)
