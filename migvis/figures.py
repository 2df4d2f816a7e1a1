"""Pictures for people: the edit grid, the selectivity matrix, training curves. Files are PNG, dark text on white.

matplotlib is imported where a picture is drawn, and without pyplot, so that nothing global is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from migvis.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
FEW_COLUMNS = 12
MARGIN, GAP, LINE = 14, 6, 14
"""Pixels around a grid, between its pictures, and per line of text."""

LABEL_POINTS, CAPTION_POINTS, TITLE_POINTS = 8.5, 7.5, 11


@dataclass(frozen=True)
class GridRow:
    """A row of an edit grid: images [k, 1, H, W] in [−1, 1], a label at its left, and a caption under each image or none.

    Labels and captions may have several lines.
    """

    label: str
    images: Tensor
    captions: Sequence[str] | None = None


def edit_grid(
    rows: Sequence[GridRow], path: Path, title: str = "", columns: Sequence[str] | None = None, block: int | None = None
) -> Path:
    """Draws rows of pictures under column headers (`columns`; none: no headers) as a PNG; returns its path.

    block: columns that belong together; a wider gap follows each block of them. Grey pictures are enlarged by a whole factor,
    so their pixels stay pixels, to 96 px or more (64 px beyond 12 columns). A row may hold fewer pictures than others.
    Raises InputError without pictures, for pictures of several sizes or with NaN, and for captions or headers of another number.
    """
    _check_rows(rows, columns)
    width = max([len(columns or ())] + [len(row.images) for row in rows])
    side = rows[0].images.shape[-1]
    factor = max(1, math.ceil((96 if width <= FEW_COLUMNS else 64) / side))
    cell_h, cell_w = (factor * size for size in rows[0].images.shape[-2:])

    figure, measure = _figure_and_ruler()
    texts = [text for row in rows for text in (row.captions or ())] + list(columns or ())
    step_w = max([cell_w] + [round(measure(text, CAPTION_POINTS)) for text in texts]) + GAP
    left = MARGIN + max(round(measure(row.label, LABEL_POINTS)) for row in rows) + 10
    places = [left + index * step_w + (index // block * MARGIN if block else 0) for index in range(width)]
    total_w = max(places[-1] + step_w + MARGIN, round(measure(title, TITLE_POINTS)) + 2 * MARGIN)
    header = MARGIN + (_lines(title) * (LINE + 4) + 6 if title else 0) + (max(map(_lines, columns)) * LINE + 2 if columns else 0)
    heights = [max(cell_h + max(map(_lines, row.captions or [""])) * LINE, _lines(row.label) * LINE) + GAP for row in rows]
    total_h = header + sum(heights) + MARGIN

    canvas = np.full((total_h, total_w), 255, np.uint8)
    figure.set_size_inches(total_w / DPI, total_h / DPI)

    def write(x: float, y: float, text: str, points: float, across: str, along: str, bold: bool = False) -> None:
        weight = "bold" if bold else "normal"
        figure.text(
            x / total_w, 1 - y / total_h, text, fontsize=points, ha=across, va=along, weight=weight, parse_math=False,
            linespacing=1.0, color="black",
        )  # fmt: skip

    if title:
        write(MARGIN, MARGIN, title, TITLE_POINTS, "left", "top", bold=True)
    for index, name in enumerate(columns or ()):
        write(places[index] + cell_w / 2, header - 3, name, CAPTION_POINTS, "center", "bottom", bold=True)
    top = header
    for row, height in zip(rows, heights, strict=True):
        write(left - 8, top + cell_h / 2, row.label, LABEL_POINTS, "right", "center")
        pictures = ((row.images[:, 0].detach().cpu().numpy().clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
        for index, (x, picture) in enumerate(zip(places, pictures, strict=False)):
            canvas[top : top + cell_h, x : x + cell_w] = picture.repeat(factor, 0).repeat(factor, 1)
            if row.captions:
                write(x + cell_w / 2, top + cell_h + 2, row.captions[index], CAPTION_POINTS, "center", "top")
        top += height
    figure.figimage(canvas, cmap="gray", vmin=0, vmax=255, origin="upper")
    return _save(figure, path)


def selectivity_matrix(
    values: np.ndarray | Tensor,
    group_names: Sequence[str],
    attribute_names: Sequence[str],
    path: Path,
    title: str = "How far edits of a group move an attribute towards the target",
) -> Path:
    """Draws values [groups, attributes] in [−1, 1] as an annotated heatmap (NaN: "–", not measured); returns its path.

    Raises InputError if the names do not fit the matrix.
    """
    matrix = np.asarray(values, dtype=float)
    if matrix.shape != (len(group_names), len(attribute_names)):
        raise InputError(f"selectivity matrix: shape {matrix.shape}, names {len(group_names)} × {len(attribute_names)}")
    figure, measure = _figure_and_ruler()
    label_width = max(measure(name, LABEL_POINTS) for name in group_names) / DPI
    columns = len(attribute_names) * max(0.9, max(measure(name, LABEL_POINTS) for name in attribute_names) / DPI + 0.15)
    title_width = measure(title, TITLE_POINTS) / DPI
    width, height = max(label_width + columns + 1.2, title_width + 0.4), 0.5 * len(group_names) + 1.1
    figure.set_size_inches(width, height)
    left, across = (label_width + 0.25) / width, min(columns / width, 1 - (label_width + 1.1) / width)
    axes = figure.add_axes((left, 0.45 / height, across, 0.5 * len(group_names) / height))
    picture = axes.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        text = "–" if math.isnan(value) else f"{value:+.2f}"
        axes.text(column, row, text, ha="center", va="center", color="white" if abs(value) > 0.6 else "black", fontsize=10)
    axes.set_xticks(range(len(attribute_names)), list(attribute_names), fontsize=LABEL_POINTS)
    axes.set_yticks(range(len(group_names)), list(group_names), fontsize=LABEL_POINTS)
    axes.tick_params(length=0)
    figure.text(0.2 / width, 1 - 0.12 / height, title, fontsize=TITLE_POINTS, va="top", weight="bold", parse_math=False)
    figure.colorbar(picture, ax=axes, ticks=[-1, 0, 1])
    return _save(figure, path)


def curves(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path, title: str = "") -> Path:
    """Draws small multiples of training curves, one per name, each a list of (step, value); returns the picture's path.

    A curve that is positive and spans two decades has a logarithmic axis. Raises InputError without any curve.
    """
    named = {name: points for name, points in curves.items() if len(points)}
    if not named:
        raise InputError("curves: there is none to draw")
    figure, _ = _figure_and_ruler()
    columns = min(4, len(named))
    rows = math.ceil(len(named) / columns)
    figure.set_size_inches(2.7 * columns, 2.0 * rows + (0.4 if title else 0.1))
    figure.set_layout_engine("constrained")
    for place, (name, points) in enumerate(named.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        steps, values = np.asarray([step for step, _ in points]), np.asarray([value for _, value in points], dtype=float)
        axes.plot(steps, values, color="black", linewidth=1, marker="." if len(points) < 3 else None)
        finite = values[np.isfinite(values)]
        if len(finite) and finite.min() > 0 and finite.max() > 100 * finite.min():
            axes.set_yscale("log")
        axes.set_title(name, fontsize=9, parse_math=False)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("step", fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=TITLE_POINTS, weight="bold", parse_math=False)
    return _save(figure, path)


def _check_rows(rows: Sequence[GridRow], columns: Sequence[str] | None) -> None:
    if not any(len(row.images) for row in rows):
        raise InputError("edit grid: there is no picture to draw")
    shape = tuple(rows[0].images.shape[1:])
    for row in rows:
        if row.images.ndim != 4 or row.images.shape[1] != 1 or tuple(row.images.shape[1:]) != shape:
            raise InputError(f"edit grid: row {row.label!r} has images {tuple(row.images.shape)}, expected [k, {shape}]")
        if not bool(row.images.isfinite().all()):
            raise InputError(f"edit grid: row {row.label!r} has pixels that are not finite")
        if row.captions is not None and len(row.captions) != len(row.images):
            raise InputError(f"edit grid: row {row.label!r} has {len(row.captions)} captions for {len(row.images)} images")
    if columns is not None and len(columns) < max(len(row.images) for row in rows):
        raise InputError(f"edit grid: {len(columns)} column headers for {max(len(row.images) for row in rows)} columns")


class _Ruler:
    """Width in pixels of a text (its longest line) of a size in points."""

    def __init__(self, figure: Figure) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self._renderer = FigureCanvasAgg(figure).get_renderer()

    def __call__(self, text: str, points: float) -> float:
        from matplotlib.font_manager import FontProperties

        font = FontProperties(size=points, weight="bold")
        return max(self._renderer.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n"))


def _figure_and_ruler() -> tuple[Figure, _Ruler]:
    from matplotlib.figure import Figure

    figure = Figure(dpi=DPI, facecolor="white")
    return figure, _Ruler(figure)


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)
    return path
