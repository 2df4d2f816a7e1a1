"""Picture files and arrays to square grey levels of one size."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from migvis.errors import InputError


def check_size(size: int) -> None:
    """Raises InputError unless pictures of `size` pixels a side suit the denoiser, which halves them three times."""
    if size < 8 or size % 8:
        raise InputError(f"size: a multiple of 8 pixels expected, got {size}")


def read_grey(file: str | Path | IO[bytes], name: str) -> np.ndarray:
    """Grey levels uint8 [H, W] (luma of ITU-R 601) of a picture file; `name` is what an InputError calls it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("L"))
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise InputError(f"{name}: cannot be read as a picture: {' '.join(str(error).split())}") from error


def resize(grey: np.ndarray, size: int | None, name: str) -> np.ndarray:
    """Averages uint8 [H, W], H = W, over the areas of `size` x `size` pixels (None: as it is).

    Raises InputError for a picture that is not square or that would have to be enlarged.
    """
    from PIL import Image

    height, width = grey.shape
    if height != width:
        raise InputError(f"{name}: a square picture expected, got {width} x {height} pixels")
    if size is None or size == height:
        return grey
    if size > height:
        raise InputError(f"{name}: size: at most {height}, the picture's own pixels per side, expected, got {size}")
    # In floating point: on bytes the rows and then the columns are rounded, which brightens pictures by up to one level.
    means = Image.fromarray(grey.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    return np.round(np.asarray(means)).astype(np.uint8)
