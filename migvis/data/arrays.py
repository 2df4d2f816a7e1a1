"""Any laboratory's recordings: responses and pictures as arrays, labels where there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from migvis.data.dataset import Dataset, Stimuli, Subject, load_dataset, write_dataset
from migvis.data.pictures import check_size, read_grey, resize
from migvis.data.splits import grouped_split, picture_ids
from migvis.errors import InputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")
_LUMA = np.array([0.299, 0.587, 0.114])
"""Grey level of red, green and blue, ITU-R 601."""


def dataset_from_arrays(
    out: str | Path,
    responses: Mapping[str, np.ndarray],
    images: np.ndarray,
    *,
    category: np.ndarray | None = None,
    object_label: np.ndarray | None = None,
    pose: np.ndarray | None = None,
    stimulus_id: Sequence[str] | None = None,
    image_size: int | None = None,
    fractions: Sequence[float] = (0.70, 0.10, 0.20),
    seed: int = 0,
) -> Dataset:
    """Writes the data set `out` and returns it as it reads back; rows of everything are the same S stimuli.

    responses: subject -> [S, N], averaged already, or [R, S, N], single repetitions, which are averaged here; where a
    stimulus was shown fewer than R times the missing rows are NaN for all units. images: uint8, or float in [0, 1];
    [S, H, W], or [S, H, W, 3] in colour (made grey). category, object_label: [S] names or numbers from 0, which are
    numbered in sorted order; pose: [S, 6] rxy, rxz, ryz (degrees), s, ty, tz. Labels that are left out stay unknown: the
    groups they would supervise are fitted without supervision. image_size: pixels per side by area averaging (none: as
    they are). The split is stratified by object, or by category where there is no object.

    Raises InputError, one line with field and value, for arrays that do not make a sound data set.
    """
    pictures = _square_grey(np.asarray(images), image_size)
    count = len(pictures)
    subjects = {name: _subject(name, np.asarray(response), count) for name, response in responses.items()}
    categories, category_id = _numbered("category", category, count)
    object_id = _numbered("object", object_label, count)[1]
    stimuli = Stimuli(
        image=pictures,
        id=np.array([f"stimulus-{row:05d}" for row in range(count)] if stimulus_id is None else list(stimulus_id), dtype=np.str_),
        category_id=category_id,
        object_id=object_id,
        pose=None if pose is None else _floats("pose", np.asarray(pose)),
        category_names=categories,
    )
    strata = object_id if object_id is not None else category_id
    split = grouped_split(picture_ids(pictures), fractions, seed, strata=strata)
    return load_dataset(write_dataset(out, stimuli, subjects, split, source="arrays", attributes={"seed": seed}))


def read_array(path: str | Path) -> np.ndarray:
    """The array of a .npy file; InputError if it is not one (pickled objects are never read)."""
    array = _load(Path(path))
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: one array (.npy) expected, got an archive of {', '.join(array)}")
    return array


def read_responses(path: str | Path) -> dict[str, np.ndarray]:
    """Responses by subject: all arrays of a .npz archive by their names, or the one of a .npy file under the name ""."""
    content = _load(Path(path))
    return {"": content} if isinstance(content, np.ndarray) else content


def read_images(path: str | Path, image_size: int | None) -> tuple[np.ndarray, list[str] | None]:
    """Pictures of a .npy file as they are, or those of a folder in the order of their names, grey, with these names.

    Pictures of a folder are brought to image_size pixels a side one by one, so they may have different sizes.
    """
    path = Path(path)
    if not path.is_dir():
        return read_array(path), None
    if image_size is not None:
        check_size(image_size)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        raise InputError(f"{path}: pictures ({', '.join(PICTURE_SUFFIXES)}) expected, got none")
    pictures = [resize(read_grey(file, str(file)), image_size, str(file)) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise InputError(
                f"{file}: {len(picture)} pixels a side, but {files[0].name} has {len(pictures[0])}: give one size for all"
            )
    return np.stack(pictures), [file.name for file in files]


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = np.load(path, allow_pickle=False)
        return content if isinstance(content, np.ndarray) else {name: content[name] for name in content.files}
    except Exception as error:
        # A damaged archive fails in many ways (zipfile, zlib, struct, EOF …), all with the same meaning to the user.
        raise InputError(f"{path}: cannot be read as .npy or .npz: {' '.join(str(error).split())}") from error


def _square_grey(images: np.ndarray, size: int | None) -> np.ndarray:
    """Pictures in any accepted form to uint8 [S, H, W]."""
    if images.dtype.kind == "f":
        if not (np.isfinite(images).all() and images.min(initial=0) >= 0 and images.max(initial=0) <= 1):
            low, high = images.min(initial=np.inf), images.max(initial=-np.inf)
            raise InputError(f"images: float values in 0…1 (or uint8) expected, got {low:g}…{high:g}")
        images = images * 255.0
    elif images.dtype != np.uint8:
        raise InputError(f"images: uint8, or float values in 0…1, expected, got {images.dtype}")
    if images.ndim == 4 and images.shape[3] == 3:
        images = images @ _LUMA
    if images.ndim != 3 or not images.size:
        raise InputError(f"images: shape [S, H, W] or [S, H, W, 3] expected, got {images.shape}")
    grey = np.round(images).astype(np.uint8)
    if size is None:
        return grey
    check_size(size)
    return np.array([resize(picture, size, f"images: {row}") for row, picture in enumerate(grey)])


def _floats(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "iuf":
        raise InputError(f"{name}: numbers expected, got {values.dtype}")
    return values.astype(np.float32)


def _subject(name: str, response: np.ndarray, count: int) -> Subject:
    """Averages repetitions, if there are any, and counts them."""
    response = _floats(f"responses of {name}", response)
    if response.ndim not in (2, 3) or response.shape[-2] != count:
        raise InputError(
            f"responses of {name}: shape [{count}, units] or [repetitions, {count}, units] expected, one row per picture, "
            f"got {response.shape}"
        )
    repetitions = np.ones(count, dtype=np.int64)
    if response.ndim == 3:
        shown = ~np.isnan(response).all(axis=2)
        repetitions = shown.sum(axis=0)
        if not repetitions.all():
            raise InputError(f"responses of {name}: stimulus {int(repetitions.argmin())} has no repetition that is not NaN")
        sums = np.where(shown[:, :, None], response, 0).sum(axis=0, dtype=np.float64)
        response = (sums / repetitions[:, None]).astype(np.float32)
    units = np.array([f"{name}-{unit:03d}" for unit in range(response.shape[1])], dtype=np.str_)
    return Subject(name, response, repetitions, units)


def _numbered(name: str, labels: np.ndarray | None, count: int) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Distinct labels as text, in sorted order, and the position of every stimulus' label among them."""
    if labels is None:
        return (), None
    values = np.asarray(labels)
    if values.shape != (count,):
        raise InputError(f"{name}: shape ({count},) expected, one label per picture, got {values.shape}")
    if values.dtype.kind not in "iuU":
        raise InputError(f"{name}: names or whole numbers expected, got {values.dtype}")
    if values.dtype.kind != "U" and values.min() < 0:
        raise InputError(f"{name}: labels from 0 expected, got {values.min()} at position {values.argmin()}")
    distinct, number = np.unique(values, return_inverse=True)
    return tuple(str(value) for value in distinct), number.astype(np.int64)
