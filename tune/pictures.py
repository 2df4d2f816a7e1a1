"""The pictures of a trial and of the final stage, from the files of their stages."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from migvis.data import Dataset
from migvis.figures import GridRow, edit_grid, selectivity_matrix
from migvis.metrics.selectivity import ATTRIBUTES
from migvis.weights import read_tensors
from tune.builders import SHOWN_PAIRS
from tune.dimension_gallery import read_dimension_gallery
from tune.gallery import read_gallery

GROUP_NAMES = {1: "group 1\n(pose)", 2: "group 2\n(category)"}


def group_label(group: int, labelled: bool) -> str:
    """How a latent group is called in a picture."""
    return GROUP_NAMES.get(group, f"group {group}") if labelled else f"group {group}"


def scored_pictures(
    dataset: Dataset, synthesis: Path, evaluation: Path, folder: Path, subject: str, title: str
) -> dict[str, Path]:
    """Of the scored edits: the grid edits_SUBJECT and the matrix selectivity_SUBJECT, where it could be measured."""
    readings = read_tensors(evaluation / "readings.safetensors")
    pictures = {f"edits_{subject}": _scored_grid(dataset, synthesis, readings, folder / f"edits_{subject}.png", title)}
    if "matrix" in readings:
        names = [GROUP_NAMES[group].replace("\n", " ") for group in (1, 2)]
        path = folder / f"selectivity_{subject}.png"
        pictures[f"selectivity_{subject}"] = selectivity_matrix(readings["matrix"], names, list(ATTRIBUTES), path)
    return pictures


def _scored_grid(dataset: Dataset, synthesis: Path, readings: dict[str, Tensor], path: Path, title: str) -> Path:
    """Source, target, the edits of each group and the unguided return, for the pairs of a trial that have them."""
    edits = read_tensors(synthesis / "edits.safetensors")
    source, target = edits["source"], edits["target"]
    labelled = dataset.stimuli.category_id is not None
    rows = [
        GridRow("source", dataset.images(source.numpy()), names_of(dataset, source)),
        GridRow("target", dataset.images(target.numpy()), names_of(dataset, target)),
    ]
    shown = min(SHOWN_PAIRS, len(source))
    guided = slice(0, len(edits["group"]) - shown)
    for group in edits["group"][guided].unique().tolist():
        chosen = (edits["group"][guided] == group).nonzero()[:, 0]
        captions = None
        if "category" in readings and group <= 2:
            captions = reading_captions(dataset, readings, chosen)
        rows.append(GridRow(group_label(group, labelled), edits["images"][chosen], captions))
    rows.append(GridRow("no guidance", edits["images"][-shown:]))
    return edit_grid(rows, path, title)


def gallery_grids(dataset: Dataset, gallery: Path, folder: Path, subject: str, edit_step: float) -> dict[str, Path]:
    """Grids of all groups: target_SUBJECT, each guided to the target's state, and shift_SUBJECT. edit_step: a fraction of T."""
    shown = read_gallery(gallery)
    labelled = dataset.stimuli.category_id is not None
    title = f"{subject}, edit step {edit_step:g} T"
    sources = GridRow("source", dataset.images(shown.source.numpy()), names_of(dataset, shown.source))
    targets = GridRow("target", dataset.images(shown.target.numpy()), names_of(dataset, shown.target))
    swept, shifted = [sources, targets], [sources]
    for group, scale, shift, images in zip(
        shown.group.tolist(), shown.scale.tolist(), shown.shift.tolist(), shown.images, strict=True
    ):
        rows, detail = (shifted, f"Δ = {shift:+g}") if shift else (swept, f"γ = {scale:g}")
        rows.append(GridRow(f"{group_label(group, labelled)}\n{detail}", images))
    names = {f"target_{subject}": (swept, "guided to the target's"), f"shift_{subject}": (shifted, "shifted by Δ sd")}
    return {name: edit_grid(rows, folder / f"{name}.png", f"{title}: each group {how}") for name, (rows, how) in names.items()}


def dimension_grid(dataset: Dataset, gallery: Path, path: Path, title: str) -> Path:
    """Draws what build_dimension_gallery wrote as a PNG, a row per pair and shift; returns its path."""
    shown = read_dimension_gallery(gallery)
    rows = [GridRow("source", dataset.images(shown.source.numpy()), names_of(dataset, shown.source))]
    for pair, shift, images in zip(shown.pair.tolist(), shown.shift.tolist(), shown.images, strict=True):
        named = f"dimensions [{pair[0]}, {pair[1]}]" if pair[0] != pair[1] else f"dimension {pair[0]}"
        rows.append(GridRow(f"{named}\nΔ = {shift:+g}", images))
    return edit_grid(rows, path, title)


def names_of(dataset: Dataset, rows: Tensor) -> list[str] | None:
    """Category names under stimuli; none without labels."""
    if dataset.stimuli.category_id is None:
        return None
    return [dataset.stimuli.category_names[int(dataset.stimuli.category_id[row])] for row in rows.tolist()]


def reading_captions(dataset: Dataset, readings: dict[str, Tensor], chosen: Tensor) -> list[str]:
    """What the instrument says of each scored edit: its category, or that it shows no object, and its score."""
    captions = []
    for row in chosen.tolist():
        name = dataset.stimuli.category_names[int(readings["category"][row])]
        shown = name if bool(readings["valid"][row]) else "no object"
        captions.append(f"{shown}\n{float(readings['score'][row]):+.2f}")
    return captions
