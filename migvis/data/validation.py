"""What a sound data set is. The same checks guard writing and reading; each failure is one line with the field and value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from migvis.data.splits import SPLITS, picture_ids
from migvis.errors import InputError

_KINDS = {"integer": "iu", "float": "f", "string": "U"}


def check_contents(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises InputError unless `arrays` (by their path in the file, see migvis/data/dataset.py) are a sound data set."""
    image = _require(path, arrays, "stimuli/image")
    if image.dtype != np.uint8:
        raise InputError(f"{path}: stimuli/image: uint8 expected, got {image.dtype}")
    if image.ndim != 3 or image.shape[1] != image.shape[2] or image.shape[1] < 8 or image.shape[1] % 8:
        raise InputError(f"{path}: stimuli/image: shape [S, H, W] with H = W a multiple of 8 expected, got {image.shape}")
    count = len(image)
    picture_id = picture_ids(image)
    if count == 0 or picture_id.max() < 1:
        raise InputError(f"{path}: stimuli/image: at least 2 different pictures are needed, got {len(np.unique(picture_id))}")
    _check_unique(path, "stimuli/id", _array(path, arrays, "stimuli/id", "string", (count,)))
    _check_labels(path, arrays, count)
    _check_split(path, arrays, picture_id)
    subjects = sorted({name.split("/")[1] for name in arrays if name.startswith("subjects/")})
    if not subjects:
        raise InputError(f"{path}: subjects: at least one subject is needed, got none")
    for subject in subjects:
        _check_subject(path, arrays, subject, count)


def _require(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise InputError(f"{path}: {name}: missing")
    return arrays[name]


def _array(path: Path, arrays: Mapping[str, np.ndarray], name: str, kind: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array `name`; InputError unless it has this kind and shape (None: any length)."""
    array = _require(path, arrays, name)
    if array.dtype.kind not in _KINDS[kind]:
        raise InputError(f"{path}: {name}: type {kind} expected, got {array.dtype}")
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("N" if length is None else str(length) for length in shape)
        raise InputError(f"{path}: {name}: shape ({wanted}) expected, got {array.shape}")
    return array


def _check_unique(path: Path, name: str, values: np.ndarray) -> None:
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) < len(values):
        raise InputError(f"{path}: {name}: {str(distinct[counts > 1][0])!r} occurs {counts.max()} times, must be unique")


def _check_range(path: Path, name: str, values: np.ndarray, low: int, high: int | None) -> None:
    wrong = np.flatnonzero((values < low) | (values > (high if high is not None else np.iinfo(np.int64).max)))
    if len(wrong):
        limits = f"{low}…{high}" if high is not None else f"{low} or more"
        raise InputError(f"{path}: {name}: {limits} expected, got {values[wrong[0]]} at position {wrong[0]}")


def _check_finite(path: Path, name: str, values: np.ndarray, column: str) -> None:
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, unit = wrong[0]
        raise InputError(f"{path}: {name}: finite values expected, got {values[row, unit]} at stimulus {row}, {column} {unit}")


def _check_labels(path: Path, arrays: Mapping[str, np.ndarray], count: int) -> None:
    if "stimuli/category_id" in arrays:
        category = _array(path, arrays, "stimuli/category_id", "integer", (count,))
        names = _array(path, arrays, "stimuli/category_names", "string", (None,))
        _check_unique(path, "stimuli/category_names", names)
        _check_range(path, "stimuli/category_id", category, 0, len(names) - 1)
    if "stimuli/object_id" in arrays:
        _check_range(path, "stimuli/object_id", _array(path, arrays, "stimuli/object_id", "integer", (count,)), 0, count - 1)
    if "stimuli/variation" in arrays:
        _check_range(path, "stimuli/variation", _array(path, arrays, "stimuli/variation", "integer", (count,)), 0, None)
    if "stimuli/pose" in arrays:
        _check_finite(path, "stimuli/pose", _array(path, arrays, "stimuli/pose", "float", (count, 6)), "column")


def _check_split(path: Path, arrays: Mapping[str, np.ndarray], picture_id: np.ndarray) -> None:
    stimulus_split: dict[int, str] = {}
    picture_split: dict[int, str] = {}
    for split in SPLITS:
        name = f"split/{split}"
        indices = _array(path, arrays, name, "integer", (None,))
        if not len(indices):
            raise InputError(f"{path}: {name}: empty, at least one stimulus is needed")
        _check_range(path, name, indices, 0, len(picture_id) - 1)
        for index in indices.tolist():
            if index in stimulus_split:
                raise InputError(f"{path}: {name}: stimulus {index} is in split/{stimulus_split[index]} already")
            stimulus_split[index] = split
            other = picture_split.setdefault(int(picture_id[index]), split)
            if other != split:
                raise InputError(f"{path}: {name}: the picture of stimulus {index} is in split/{other} too")
    if len(np.unique(picture_id[arrays["split/train"]])) < 2:
        raise InputError(f"{path}: split/train: at least 2 different pictures are needed, got 1")


def _check_subject(path: Path, arrays: Mapping[str, np.ndarray], subject: str, count: int) -> None:
    name = f"subjects/{subject}/response"
    response = _array(path, arrays, name, "float", (count, None))
    units = response.shape[1]
    if units == 0:
        raise InputError(f"{path}: {name}: at least one unit is needed, got shape {response.shape}")
    _check_finite(path, name, response, "unit")
    # float32 is what models read: a value that overflows or a spread that vanishes there is as bad as in the file.
    with np.errstate(over="ignore"):
        training = response[arrays["split/train"]].astype(np.float32)
    _check_finite(path, name, training, "unit")
    constant = np.flatnonzero(training.max(0) == training.min(0))
    if len(constant):
        unit = constant[0]
        value = training[0, unit]
        raise InputError(f"{path}: {name}: unit {unit} is constant ({value:g}) over the training stimuli")
    repetitions = f"subjects/{subject}/n_repetitions"
    _check_range(path, repetitions, _array(path, arrays, repetitions, "integer", (count,)), 1, None)
    unit_id = f"subjects/{subject}/unit_id"
    _check_unique(path, unit_id, _array(path, arrays, unit_id, "string", (units,)))
