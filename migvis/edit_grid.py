"""The edit grid: pictures in rows and columns with their labels, as a PNG. Their pixels stay pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from migvis.errors import InputError

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

FEW_COLUMNS = 12
MARGIN, GAP, LINE = 14, 6, 14
"""Pixels around a grid, between its pictures, and per line of text."""

LABEL, CAPTION, TITLE = 12.0, 10.5, 15.5
"""Sizes of the texts in pixels."""


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

    from PIL import Image, ImageDraw

    label, caption, bold, large = _font(LABEL), _font(CAPTION), _font(CAPTION, bold=True), _font(TITLE, bold=True)
    headers, captions = list(columns or ()), [text for row in rows for text in row.captions or ()]
    widest = max(_width(captions, caption), _width(headers, bold))
    step_w = max(cell_w, widest) + GAP
    left = MARGIN + _width([row.label for row in rows], label) + 10
    places = [left + index * step_w + (index // block * MARGIN if block else 0) for index in range(width)]
    total_w = max(places[-1] + step_w + MARGIN, _width([title], large) + 2 * MARGIN)
    header = MARGIN + (_lines(title) * (LINE + 4) + 6 if title else 0) + (max(map(_lines, headers)) * LINE + 2 if headers else 0)
    heights = [max(cell_h + max(map(_lines, row.captions or [""])) * LINE, _lines(row.label) * LINE) + GAP for row in rows]

    canvas = Image.new("L", (total_w, header + sum(heights) + MARGIN), 255)
    draw = ImageDraw.Draw(canvas)

    def write(x: float, y: float, text: str, font: FreeTypeFont, anchor: str, pitch: int = LINE) -> None:
        """y: of the first line's middle."""
        for number, line in enumerate(text.split("\n")):
            draw.text((x, y + number * pitch), line, fill=0, font=font, anchor=f"{anchor}m")

    if title:
        write(MARGIN, MARGIN + LINE / 2, title, large, "l", LINE + 4)
    for x, name in zip(places, headers, strict=False):
        write(x + cell_w / 2, header - 3 - (_lines(name) - 0.5) * LINE, name, bold, "m")
    top = header
    for row, height in zip(rows, heights, strict=True):
        write(left - 8, top + cell_h / 2 - (_lines(row.label) - 1) * LINE / 2, row.label, label, "r")
        pictures = ((row.images[:, 0].detach().cpu().numpy().clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
        for index, (x, picture) in enumerate(zip(places, pictures, strict=False)):
            canvas.paste(Image.fromarray(picture.repeat(factor, 0).repeat(factor, 1)), (x, top))
            if row.captions:
                write(x + cell_w / 2, top + cell_h + 1 + LINE / 2, row.captions[index], caption, "m")
        top += height
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, format="PNG")
    return path


@lru_cache
def _font(pixels: float, bold: bool = False) -> FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: it has the Greek letters and is the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, pixels)


def _width(texts: Sequence[str], font: FreeTypeFont) -> int:
    """Pixels of the longest line."""
    return math.ceil(max((font.getlength(line) for text in texts for line in text.split("\n")), default=0))


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


def _lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0
