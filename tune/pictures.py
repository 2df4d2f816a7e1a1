"""The pictures of a trial and of the final stage, from the files of their stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from migvis.data import Dataset
from migvis.edit_grid import GridRow, edit_grid
from migvis.figures import selectivity_matrix
from migvis.metrics.selectivity import ATTRIBUTES
from migvis.weights import read_tensors
from tune.builders import SHOWN_PAIRS
from tune.dimension_gallery import read_dimension_gallery
from tune.gallery import read_gallery

IN_A_ROW = 16
"""Pictures beside each other, at most: a page shows no more of them large enough."""
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
    # of groups that are not scored, and without guidance, only the first pairs have edits
    shown = min(SHOWN_PAIRS, len(source))
    guided = slice(0, len(edits["group"]) - shown)
    for group in edits["group"][guided].unique().tolist():
        chosen = (edits["group"][guided] == group).nonzero()[:, 0]
        captions = None
        if "category" in readings and group <= 2:
            captions = reading_captions(dataset, readings, chosen)
        rows.append(GridRow(group_label(group, labelled), edits["images"][chosen], captions))
    rows.append(GridRow("no guidance", edits["images"][-shown:]))
    return edit_grid(_wrapped(rows), path, title)


def _wrapped(rows: list[GridRow]) -> list[GridRow]:
    """The rows with at most IN_A_ROW pictures each; the others follow below, under each other in the same order."""
    wrapped = []
    for start in range(0, max(len(row.images) for row in rows), IN_A_ROW):
        part = slice(start, start + IN_A_ROW)
        wrapped += [
            GridRow(row.label, row.images[part], None if row.captions is None else row.captions[part])
            for row in rows
            if len(row.images) > start
        ]
    return wrapped


def gallery_grids(dataset: Dataset, gallery: Path, folder: Path, subject: str, edit_step: float) -> dict[str, Path]:
    """Grids of all groups: target_SUBJECT, each guided to the target's state, and shift_SUBJECT, a block of columns per stimulus.

    edit_step: a fraction of T.
    """
    shown = read_gallery(gallery)
    labelled = dataset.stimuli.category_id is not None
    source, target = Column.of(dataset, "source", shown.source), Column.of(dataset, "target", shown.target)
    scales = sorted(set(shown.scale[shown.shift == 0].tolist()))
    shifts = sorted(set(shown.shift[shown.shift != 0].tolist()))
    swept, shifted = {}, {}
    for group in shown.group.unique().tolist():
        own, label = shown.group == group, group_label(group, labelled)
        doses = {scale: shown.images[own & (shown.shift == 0) & (shown.scale == scale)][0] for scale in scales}
        steps = {shift: shown.images[own & (shown.shift == shift)][0] for shift in shifts}
        swept[label] = [source, *(Column(f"γ = {scale:g}", images) for scale, images in doses.items()), target]
        shifted[label] = _shifted(source, steps)
    title = f"{subject}, edit step {edit_step:g} T: each group"
    return {
        f"target_{subject}": _blocks(swept, folder / f"target_{subject}.png", f"{title} guided to the target's"),
        f"shift_{subject}": _blocks(shifted, folder / f"shift_{subject}.png", f"{title} shifted by Δ sd"),
    }


@dataclass(frozen=True)
class Column:
    """Pictures [n, 1, H, W] of n stimuli that stand under one header, and their names."""

    header: str
    images: Tensor
    names: list[str] | None = None

    @classmethod
    def of(cls, dataset: Dataset, header: str, rows: Tensor) -> Column:
        return cls(header, dataset.images(rows.numpy()), names_of(dataset, rows))


def _shifted(source: Column, steps: dict[float, Tensor]) -> list[Column]:
    """The pictures by their shift Δ, from the most negative one through the source to the most positive one."""
    columns = [Column(f"Δ = {shift:+g}", images) for shift, images in sorted(steps.items())]
    negative = sum(shift < 0 for shift in steps)
    return [*columns[:negative], source, *columns[negative:]]


def _blocks(rows: dict[str, list[Column]], path: Path, title: str) -> Path:
    """A grid in which the columns of one stimulus stand side by side, then those of the next."""
    grid = []
    for label, columns in rows.items():
        count = len(columns[0].images)
        captions = [(column.names or [""] * count)[stimulus] for stimulus in range(count) for column in columns]
        images = torch.stack([column.images for column in columns], dim=1).flatten(0, 1)
        grid.append(GridRow(label, images, captions if any(captions) else None))
    headers = [column.header for column in columns]
    return edit_grid(grid, path, title, headers * count, block=len(headers))


def dimension_grid(dataset: Dataset, gallery: Path, path: Path, title: str) -> Path:
    """Draws what build_dimension_gallery wrote as a PNG, a row per pair and a block of columns per stimulus; returns its path."""
    shown = read_dimension_gallery(gallery)
    source = Column.of(dataset, "source", shown.source)
    steps: dict[str, dict[float, Tensor]] = {}
    for (first, second), shift, images in zip(shown.pair.tolist(), shown.shift.tolist(), shown.images, strict=True):
        label = f"dimensions [{first}, {second}]" if first != second else f"dimension {first}"
        steps.setdefault(label, {})[shift] = images
    return _blocks({label: _shifted(source, own) for label, own in steps.items()}, path, title)


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
