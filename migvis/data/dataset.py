"""The data set: stimuli, the responses of one or more subjects to them, and a stored split, in one HDF5 file.

    stimuli/image         uint8 [S, H, W], grey levels; H = W
    stimuli/id            string [S], unique
    stimuli/category_id   integer [S] (optional), an index into stimuli/category_names
    stimuli/category_names  string [C], present with category_id
    stimuli/object_id     integer [S] (optional), 0…S − 1
    stimuli/pose          float [S, 6] (optional): rxy rxz ryz in degrees, s, ty, tz
    stimuli/variation     integer [S] (optional), 0 or more
    subjects/<name>/response      float [S, N], averaged over repetitions
    subjects/<name>/n_repetitions integer [S], 1 or more
    subjects/<name>/unit_id       string [N], unique
    split/train, split/validation, split/test   integer indices of stimuli
    attributes            a group whose attributes are free notes (such as the synthetic signal-to-noise ratio)

Root attributes: format = "migvis", version, source. Units are attributes of the arrays. The digest of a data set is
not stored but computed from what is read, so it cannot be out of date.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from migvis.data.splits import SPLITS, picture_ids
from migvis.data.validation import check_contents
from migvis.errors import InputError

FORMAT = "migvis"
VERSION = 1
POSE_COLUMNS = ("rxy", "rxz", "ryz", "s", "ty", "tz")
SOURCES = ("synthetic", "majajhong2015", "arrays")

_UNITS = {
    "image": "grey level, 0 black to 255 white",
    "category_id": "index into category_names",
    "object_id": "index",
    "pose": "degree, degree, degree, scale factor, half image width, half image width",
    "variation": "level",
    "response": "as recorded",
    "n_repetitions": "count",
}


@dataclass(frozen=True)
class Stimuli:
    """S pictures and what is known about them; labels that a data set lacks are None.

    image uint8 [S, H, W]; id str [S]; category_id, object_id, variation int64 [S]; pose float32 [S, 6], columns
    rxy, rxz, ryz (degrees), s (scale), ty, tz (position).
    """

    image: np.ndarray
    id: np.ndarray
    category_id: np.ndarray | None = None
    object_id: np.ndarray | None = None
    pose: np.ndarray | None = None
    variation: np.ndarray | None = None
    category_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """One recorded population: response float32 [S, N] averaged over n_repetitions int64 [S]; unit_id str [N]."""

    name: str
    response: np.ndarray
    n_repetitions: np.ndarray
    unit_id: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """A validated, read-only data set.

    split: "train" | "validation" | "test" -> int64 stimulus indices; picture_id int64 [S], equal for equal pictures;
    digest: SHA-256 (hex) of names, types, shapes and bytes of all arrays.
    """

    stimuli: Stimuli
    subjects: dict[str, Subject]
    split: dict[str, np.ndarray]
    picture_id: np.ndarray
    source: str
    attributes: dict[str, Any]
    digest: str
    path: Path

    @property
    def image_size(self) -> int:
        """Pixels per side."""
        return int(self.stimuli.image.shape[-1])

    def images(self, indices: np.ndarray | Tensor) -> Tensor:
        """Pictures of the stimuli `indices` [n]: float32 [n, 1, H, W] in [−1, 1], grey level / 127.5 − 1."""
        pictures = self.stimuli.image[np.asarray(indices)]
        return torch.from_numpy(pictures.astype(np.float32))[:, None] / 127.5 - 1


def write_dataset(
    path: str | Path,
    stimuli: Stimuli,
    subjects: Mapping[str, Subject],
    split: Mapping[str, np.ndarray],
    *,
    source: str,
    attributes: Mapping[str, str | int | float | bool] | None = None,
) -> Path:
    """Validates the contents, then writes them to `path` atomically; an existing file is replaced or left untouched.

    Raises InputError when the contents do not validate or the file cannot be written.
    """
    path = Path(path)
    if source not in SOURCES:
        raise InputError(f"{path}: attribute source: one of {', '.join(SOURCES)} expected, got {source!r}")
    for name in subjects:
        if "/" in name or name in ("", "."):
            raise InputError(f"{path}: subjects: a name without '/' is needed, got {name!r}")
    arrays = _arrays(stimuli, subjects, split)
    check_contents(path, arrays)
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        with h5py.File(partial, "w") as file:
            file.attrs.update({"format": FORMAT, "version": VERSION, "source": source})
            file.create_group("attributes").attrs.update(dict(attributes or {}))
            for name, array in arrays.items():
                _write_array(file, name, array)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {_one_line(error)}") from error
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
    return path


def load_dataset(path: str | Path) -> Dataset:
    """Reads and validates a data set; its arrays are read-only.

    Raises InputError, one line that names file, field and value, for anything that is not a sound data set: a missing,
    truncated or foreign file, missing or misshapen arrays, responses that are not finite or constant over the training
    stimuli, labels or split indices out of range, and pictures that straddle splits.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if not h5py.is_hdf5(path):
            raise InputError(f"{path}: not an HDF5 file")
        with h5py.File(path, "r") as file:
            source = _check_header(path, file)
            attributes = {name: _plain(value) for name, value in file["attributes"].attrs.items()} if "attributes" in file else {}
            arrays = _read_arrays(path, file)
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: truncated or damaged: {_one_line(error)}") from error
    check_contents(path, arrays)
    return _dataset(path, arrays, source, attributes)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value


def _arrays(stimuli: Stimuli, subjects: Mapping[str, Subject], split: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All arrays by their path in the file; absent labels are left out."""
    arrays = {f"stimuli/{field.name}": getattr(stimuli, field.name) for field in fields(Stimuli)}
    if stimuli.category_id is None:
        del arrays["stimuli/category_names"]
    for name, subject in subjects.items():
        for field in ("response", "n_repetitions", "unit_id"):
            arrays[f"subjects/{name}/{field}"] = getattr(subject, field)
    arrays.update({f"split/{name}": indices for name, indices in split.items()})
    return {name: np.asarray(array) for name, array in arrays.items() if array is not None}


def _write_array(file: h5py.File, name: str, array: np.ndarray) -> None:
    field = name.rsplit("/", 1)[1]
    if array.dtype.kind == "U":
        file.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
        return
    if field == "image":
        stored = file.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), compression="gzip", fletcher32=True)
    else:
        # The checksum makes damage inside the file an error when it is read, not a silently different response.
        stored = file.create_dataset(name, data=array, chunks=True, fletcher32=True)
    stored.attrs["units"] = _UNITS.get(field, "stimulus index")
    if field == "pose":
        stored.attrs["columns"] = " ".join(POSE_COLUMNS)


def _check_header(path: Path, file: h5py.File) -> str:
    """Returns the source that the file declares."""
    form, version, source = (_plain(file.attrs.get(name)) for name in ("format", "version", "source"))
    if form != FORMAT:
        raise InputError(
            f"{path}: attribute format: {FORMAT!r} expected, got {form!r}; "
            "scripts/import_majajhong2015.py and scripts/import_arrays.py make a data set from other files"
        )
    if version != VERSION:
        raise InputError(f"{path}: attribute version: this program reads version {VERSION}, got {version!r}")
    if source not in SOURCES:
        raise InputError(f"{path}: attribute source: one of {', '.join(SOURCES)} expected, got {source!r}")
    return str(source)


def _read_arrays(path: Path, file: h5py.File) -> dict[str, np.ndarray]:
    names = [f"stimuli/{field.name}" for field in fields(Stimuli)]
    names += [f"split/{name}" for name in SPLITS]
    subjects = file.get("subjects")
    if isinstance(subjects, h5py.Group):
        names += [f"subjects/{subject}/{field}" for subject in subjects for field in ("response", "n_repetitions", "unit_id")]
    arrays = {}
    for name in names:
        stored = file.get(name)
        if stored is None:
            continue
        if not isinstance(stored, h5py.Dataset):
            raise InputError(f"{path}: {name}: an array expected, got a group")
        if h5py.check_string_dtype(stored.dtype):
            arrays[name] = np.asarray(stored.asstr()[...], dtype=np.str_)
        else:
            arrays[name] = stored[...]
    if "stimuli/category_id" not in arrays:
        arrays.pop("stimuli/category_names", None)
    return arrays


def _dataset(path: Path, arrays: dict[str, np.ndarray], source: str, attributes: dict[str, Any]) -> Dataset:
    """Canonical types, read-only arrays, digest."""
    canonical = {}
    for name, array in sorted(arrays.items()):
        kind = {"i": np.int64, "u": np.int64, "f": np.float32}.get(array.dtype.kind)
        canonical[name] = array if kind is None or name == "stimuli/image" else array.astype(kind)
        canonical[name].setflags(write=False)
    labels = {name: canonical.get(f"stimuli/{name}") for name in ("category_id", "object_id", "pose", "variation")}
    names = tuple(canonical.get("stimuli/category_names", np.array([], dtype=np.str_)).tolist())
    subjects: dict[str, dict[str, np.ndarray]] = {}
    for name, array in canonical.items():
        if name.startswith("subjects/"):
            _, subject, field = name.split("/")
            subjects.setdefault(subject, {})[field] = array
    picture_id = picture_ids(canonical["stimuli/image"])
    picture_id.setflags(write=False)
    return Dataset(
        stimuli=Stimuli(canonical["stimuli/image"], canonical["stimuli/id"], category_names=names, **labels),
        subjects={name: Subject(name=name, **subject) for name, subject in subjects.items()},
        split={name: canonical[f"split/{name}"] for name in SPLITS},
        picture_id=picture_id,
        source=source,
        attributes=attributes,
        digest=_digest(canonical),
        path=path,
    )


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes, little-endian and in the order of the names; strings as UTF-8."""
    state = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        text = array.dtype.kind == "U"
        state.update(repr((name, "string" if text else array.dtype.newbyteorder("<").str, array.shape)).encode())
        if text:
            state.update("\0".join(array.ravel().tolist()).encode())
        else:
            state.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return state.hexdigest()
