"""Reader of Majaj & Hong 2015 (IT and V4 responses to the HvM objects) as Brain-Score packages it.

The assembly is netCDF-4, that is HDF5: dimensions are HDF5 dimension scales, and every coordinate is a variable tied to
the dimension `presentation` or `neuroid` by its attribute DIMENSION_LIST. The stimuli are a CSV file and a zip archive.
"""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from migvis.data.dataset import Stimuli, Subject, write_dataset
from migvis.data.pictures import check_size, read_grey, resize
from migvis.data.splits import grouped_split, picture_ids
from migvis.errors import InputError

SUBJECTS = {"Chabo": "M1", "Tito": "M2"}
"""Animal in the assembly -> subject in the papers."""

_DIMENSIONS = ("neuroid", "presentation", "time_bin")
_IDS = ("image_id", "stimulus_id")
_PLACEMENT = ("s", "ty", "tz")
_ROTATIONS = ("rxy", "rxz", "ryz")
_BLOCK = 8192
"""Presentations read at a time: 256 sites of them are 17 MB in double precision."""


def import_majajhong2015(
    assembly: str | Path,
    stimuli_csv: str | Path,
    images_zip: str | Path,
    out: str | Path,
    *,
    masks: str | Path | None = None,
    image_size: int = 128,
    region: str = "IT",
    subjects: Mapping[str, str] = SUBJECTS,
    fractions: Sequence[float] = (0.70, 0.10, 0.20),
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> Path:
    """Writes the data set `out` from the assembly, the stimuli's table and their pictures; returns its path.

    Sites are selected by region and animal (`subjects`: animal -> subject name), responses averaged over the
    repetitions of each stimulus. Pictures become grey and `image_size` pixels a side by area averaging; with `masks`, a
    folder of PNG files named by stimulus id, what is outside the object (mask 0) becomes black first. The split is
    stratified by object and level of variation. `report` gets lines of progress.

    Raises InputError, one line that says what is missing where, for files that lack something.
    """
    check_size(image_size)
    if len(set(subjects.values())) < len(subjects):
        raise InputError(f"subjects: different names expected, got {', '.join(subjects.values())}")
    assembly = Path(assembly)
    with _open_assembly(assembly) as file:
        report(f"{assembly}: reading")
        data = _data_variable(assembly, file)
        neuroids = _coordinates(file, "neuroid")
        presentations = _coordinates(file, "presentation")
        trial_ids = _text(presentations[_first_of(_IDS, presentations) or ""])
        stimulus_id, first, trial_stimulus = np.unique(trial_ids, return_index=True, return_inverse=True)
        report(f"{len(trial_ids)} presentations of {len(stimulus_id)} stimuli to {data.shape[_axes(data)['neuroid']]} sites")
        sites = _select_sites(assembly, neuroids, region, subjects, report)
        mean, repetitions = _average(data, trial_stimulus, len(stimulus_id), np.concatenate(list(sites.values())), report)
        labels = {name: values[first] for name, values in presentations.items()}

    image = _read_pictures(Path(stimuli_csv), Path(images_zip), stimulus_id, masks, image_size, report)
    categories, category_id = np.unique(_text(labels["category_name"]), return_inverse=True)
    object_id = np.unique(_text(labels["object_name"]), return_inverse=True)[1]
    variation = _numbers(assembly, "variation", labels["variation"]).astype(np.int64)
    pose_names = [_rotation(name, labels) for name in _ROTATIONS] + list(_PLACEMENT)
    pose = np.column_stack([_numbers(assembly, name, labels[name]) for name in pose_names]).astype(np.float32)
    stimuli = Stimuli(image, stimulus_id, category_id, object_id, pose, variation, tuple(categories.tolist()))

    neuroid_id = _text(neuroids["neuroid_id"])
    populations, start = {}, 0
    for name, chosen in sites.items():
        response = mean[:, start : start + len(chosen)]
        populations[name] = Subject(name, response, repetitions, neuroid_id[chosen])
        start += len(chosen)
    pictures = picture_ids(image)
    report(f"{len(stimulus_id)} stimuli are {pictures.max() + 1} distinct pictures")
    split = grouped_split(pictures, fractions, seed, strata=object_id * (variation.max() + 1) + variation)
    report("split: " + ", ".join(f"{name} {len(indices)}" for name, indices in split.items()))
    rotations = ", ".join(pose_names[:3])
    attributes: dict[str, str | int] = {"region": region, "masked": masks is not None, "rotations": rotations, "seed": seed}
    path = write_dataset(out, stimuli, populations, split, source="majajhong2015", attributes=attributes)
    report(f"{path}: written")
    return path


def _open_assembly(path: Path) -> h5py.File:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: not a netCDF-4 (HDF5) file: {' '.join(str(error).split())}") from error


def _dimensions(variable: h5py.Dataset) -> tuple[str, ...]:
    """Names of a variable's dimensions; a coordinate variable (one named like its dimension) is its own."""
    if "DIMENSION_LIST" in variable.attrs:
        return tuple(variable.file[scales[0]].name.rsplit("/", 1)[-1] for scales in variable.attrs["DIMENSION_LIST"])
    return (variable.name.rsplit("/", 1)[-1],) * variable.ndim


def _axes(variable: h5py.Dataset) -> dict[str, int]:
    return {name: axis for axis, name in enumerate(_dimensions(variable))}


def _variables(file: h5py.File) -> list[h5py.Dataset]:
    return [item for item in file.values() if isinstance(item, h5py.Dataset)]


def _coordinates(file: h5py.File, dimension: str) -> dict[str, np.ndarray]:
    """All one-dimensional variables along `dimension`, by name; strings as objects."""
    found = {}
    for variable in _variables(file):
        if variable.ndim == 1 and _dimensions(variable) == (dimension,):
            text = h5py.check_string_dtype(variable.dtype)
            found[variable.name[1:]] = variable.asstr()[...] if text else variable[...]
    return found


def _first_of(names: Sequence[str], there: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in there), None)


def _rotation(name: str, labels: Mapping[str, Any]) -> str:
    """The name of a rotation's column; the semantic one, relative to the object's front, where there is one."""
    return f"{name}_semantic" if f"{name}_semantic" in labels else name


def _data_variable(path: Path, file: h5py.File) -> h5py.Dataset:
    """The variable over neuroid, presentation and time_bin, whatever it is called; InputError says all that is missing."""
    matching = [variable for variable in _variables(file) if sorted(_dimensions(variable)) == sorted(_DIMENSIONS)]
    lacks = []
    if len(matching) != 1:
        arrays = [f"{item.name[1:]} over {' × '.join(_dimensions(item))}" for item in _variables(file) if item.ndim > 1]
        lacks.append(f"one data variable over {' × '.join(_DIMENSIONS)} (it has {', '.join(arrays) or 'none'})")
    sites, trials = _coordinates(file, "neuroid"), _coordinates(file, "presentation")
    lacking = [name for name in ("neuroid_id", "animal", "region") if name not in sites]
    if lacking:
        lacks.append(f"neuroid coordinates {', '.join(lacking)}")
    wanted = ("category_name", "object_name", "variation", *_PLACEMENT, *(_rotation(name, trials) for name in _ROTATIONS))
    lacking = [] if _first_of(_IDS, trials) else [" or ".join(_IDS)]
    lacking += [name for name in wanted if name not in trials]
    if lacking:
        lacks.append(f"presentation coordinates {', '.join(lacking)}")
    if lacks:
        raise InputError(f"{path}: the assembly lacks {'; '.join(lacks)}")
    bins = matching[0].shape[_axes(matching[0])["time_bin"]]
    if bins != 1:
        raise InputError(f"{path}: time_bin: one bin (70–170 ms) expected, got {bins}")
    return matching[0]


def _text(values: np.ndarray) -> np.ndarray:
    return np.array([str(value) for value in values], dtype=np.str_)


def _numbers(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Numbers of a coordinate, also where they are written as text ("V6", "30.5"); float64."""
    try:
        if values.dtype.kind in "iuf":
            return values.astype(np.float64)
        return np.array([float(str(value).removeprefix("V")) for value in values])
    except ValueError as error:
        raise InputError(f"{path}: presentation coordinate {name}: numbers expected: {error}") from error


def _select_sites(
    path: Path,
    neuroids: Mapping[str, np.ndarray],
    region: str,
    subjects: Mapping[str, str],
    report: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """Positions of each subject's sites in the region; never by column position, since files order them differently."""
    regions, animals = _text(neuroids["region"]), _text(neuroids["animal"])
    sites = {}
    for animal, name in subjects.items():
        sites[name] = np.flatnonzero((regions == region) & (animals == animal))
        if not len(sites[name]):
            there = ", ".join(sorted({f"{a} {r}" for a, r in zip(animals, regions, strict=True)}))
            raise InputError(f"{path}: no site of animal {animal!r} in region {region!r}; there are: {there}")
        report(f"subject {name}: {len(sites[name])} sites ({animal}, {region})")
    return sites


def _average(
    data: h5py.Dataset, trial_stimulus: np.ndarray, count: int, sites: np.ndarray, report: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Means over repetitions float32 [count, len(sites)] and their numbers int64 [count], read block by block."""
    axes = _axes(data)
    chunk = data.chunks[axes["presentation"]] if data.chunks else 1
    block = -(-_BLOCK // chunk) * chunk  # whole chunks, so that none is decompressed twice
    sums = np.zeros((count, len(sites)))
    trials = len(trial_stimulus)
    for start in range(0, trials, block):
        window = tuple(slice(start, start + block) if axis == axes["presentation"] else slice(None) for axis in range(3))
        values = data[window].transpose(axes["presentation"], axes["neuroid"], axes["time_bin"])[:, :, 0]
        np.add.at(sums, trial_stimulus[start : start + block], values[:, sites].astype(np.float64))
        report(f"responses: {min(start + block, trials)} of {trials} presentations")
    repetitions = np.bincount(trial_stimulus, minlength=count).astype(np.int64)
    return (sums / repetitions[:, None]).astype(np.float32), repetitions


def _file_names(path: Path) -> dict[str, str]:
    """Stimulus id -> file name in the archive, from the stimuli's CSV table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV: {' '.join(str(error).split())}") from error
    there = rows[0] if rows else {}
    identity, name = _first_of(_IDS, there), _first_of(("filename", "image_file_name"), there)
    if identity is None or name is None:
        raise InputError(f"{path}: columns {' or '.join(_IDS)} and filename expected, got {', '.join(map(str, there)) or 'none'}")
    return {str(row[identity]): str(row[name]) for row in rows}


def _read_pictures(
    table: Path,
    archive: Path,
    stimulus_id: np.ndarray,
    masks: str | Path | None,
    size: int,
    report: Callable[[str], None],
) -> np.ndarray:
    """Pictures uint8 [S, size, size] of the stimuli, in their order."""
    names = _file_names(table)
    try:
        images = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive}: cannot be read as a zip archive: {' '.join(str(error).split())}") from error
    pictures = np.empty((len(stimulus_id), size, size), dtype=np.uint8)
    with images:
        members = {Path(member).name: member for member in images.namelist()}
        for row, identity in enumerate(stimulus_id.tolist()):
            if identity not in names:
                raise InputError(f"{table}: no row for stimulus {identity!r} of the assembly")
            file_name = Path(names[identity]).name
            if file_name not in members:
                raise InputError(f"{archive}: no picture {file_name!r} (stimulus {identity!r} of {table})")
            label = f"{archive}: {file_name}"
            try:
                content = images.read(members[file_name])
            except (OSError, zipfile.BadZipFile, zlib.error) as error:
                raise InputError(f"{label}: damaged in the archive: {error}") from error
            grey = read_grey(io.BytesIO(content), label)
            if masks is not None:
                grey = np.where(_read_mask(Path(masks) / f"{identity}.png", grey.shape), grey, np.uint8(0))
            pictures[row] = resize(grey, size, label)
            if (row + 1) % 500 == 0 or row + 1 == len(stimulus_id):
                report(f"pictures: {row + 1} of {len(stimulus_id)}")
    return pictures


def _read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """True on the object, bool [H, W]."""
    if not path.is_file():
        raise InputError(f"{path}: no such mask")
    mask = read_grey(path, str(path)) > 0
    if mask.shape != shape:
        raise InputError(f"{path}: mask of {shape[1]} x {shape[0]} pixels expected, got {mask.shape[1]} x {mask.shape[0]}")
    return mask
