"""The gallery: edits of a few stimuli that are shown and not scored, for all groups and both protocols, as one stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from migvis.synthesis import Edits, shift_edits, target_edits
from migvis.weights import read_tensors, save_tensors
from tune.builders import edit_progress
from tune.editors import editor, latents_of
from tune.stage_data import dataset_at
from tune.stage_graph import StageContext

SHOWN_STIMULI = 3
_ALIKE = 1.25
"""Guidance scales by so much apart are not told apart by eye."""


@dataclass(frozen=True)
class Gallery:
    """Rows of edits of the same stimuli, those of the protocol `target` first, each protocol by group.

    images [rows, n, 1, H, W]; group [rows] in 1…G; scale [rows]: γ; shift [rows]: Δ in sd, 0 in the protocol `target`;
    source, target [n]: stimulus rows.
    """

    images: Tensor
    group: Tensor
    scale: Tensor
    shift: Tensor
    source: Tensor
    target: Tensor


def read_gallery(folder: Path) -> Gallery:
    """What build_gallery wrote. Raises InputError for a damaged file."""
    return Gallery(**read_tensors(folder / "gallery.safetensors"))


def shown_scales(sweep: Iterable[float], own: float) -> list[float]:
    """The configuration's own guidance scale, and those of the sweep that do not look like it."""
    return sorted({own, *(scale for scale in sweep if max(scale, own) > _ALIKE * min(scale, own))})


def build_gallery(data_path: Path, context: StageContext) -> None:
    """gallery.safetensors: the fields of Gallery."""
    dataset, count = dataset_at(data_path), context.stage.config["stimuli"]
    vae, latents = latents_of(context, dataset)
    made = editor(context, dataset, latents)
    config, stored = made.config, read_tensors(context.input("trajectory") / "states.safetensors")
    source, target = (stored[name][:count] for name in ("source", "target"))
    states = stored["states"][made.step()][:count]
    rank, every = vae.group_rank, torch.arange(len(source))
    groups = range(1, latents.shape[1] // rank + 1)
    scales = shown_scales(config.sweep_scales, config.guidance_scale)
    shifts = sorted({sign * size for size in config.shifts for sign in (-1.0, 1.0)})
    spread = read_tensors(context.input("vae") / "vae.safetensors")["latent_scale"].view(len(groups), rank)
    rows = [(group, scale, 0.0) for group in groups for scale in scales]
    edits = [target_edits(every, group, scale, latents[target], rank, source, target) for group, scale, _ in rows]
    shifted = [(group, config.guidance_scale, shift) for group in groups for shift in shifts]
    edits += [shift_edits(every, group, scale, latents[source], shift, spread, source) for group, scale, shift in shifted]
    stimuli = dataset.images(source.numpy())
    images = made.edit(stimuli, states, Edits.join(edits), progress=edit_progress(context, "showing edits"))
    group, scale, shift = torch.tensor(rows + shifted, dtype=torch.float64).unbind(1)
    tensors = {"group": group.long(), "scale": scale, "shift": shift, "source": source, "target": target}
    save_tensors(context.folder / "gallery.safetensors", {"images": images.view(len(group), *stimuli.shape), **tensors})
