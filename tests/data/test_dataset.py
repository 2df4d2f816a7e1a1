from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from migvis.data import Stimuli, Subject, load_dataset, write_dataset
from migvis.errors import InputError


def test_round_trip_returns_what_was_written(dataset_file: Path, stimuli: Stimuli, subjects: dict[str, Subject]) -> None:
    dataset = load_dataset(dataset_file)
    for field in ("image", "id", "category_id", "object_id", "pose", "variation"):
        np.testing.assert_array_equal(getattr(dataset.stimuli, field), getattr(stimuli, field))
    assert dataset.stimuli.category_names == stimuli.category_names
    assert list(dataset.subjects) == ["M1", "M2"]
    for name, subject in subjects.items():
        for field in ("response", "n_repetitions", "unit_id"):
            np.testing.assert_array_equal(getattr(dataset.subjects[name], field), getattr(subject, field))
    assert dataset.subjects["M1"].response.dtype == np.float32
    assert dataset.stimuli.category_id.dtype == dataset.split["test"].dtype == np.int64
    assert dataset.source == "synthetic"
    assert dataset.attributes == {"signal_to_noise": 0.7, "note": "planted", "masked": True}
    assert dataset.image_size == 16
    assert dataset.path == dataset_file


def test_arrays_are_read_only(dataset_file: Path) -> None:
    dataset = load_dataset(dataset_file)
    arrays = [dataset.stimuli.image, dataset.stimuli.pose, dataset.subjects["M1"].response, dataset.split["train"]]
    for array in [*arrays, dataset.picture_id]:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_images_are_in_minus_one_to_one(dataset_file: Path, stimuli: Stimuli) -> None:
    dataset = load_dataset(dataset_file)
    images = dataset.images(np.array([3, 0]))
    assert images.shape == (2, 1, 16, 16)
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images[:, 0].numpy(), stimuli.image[[3, 0]] / 127.5 - 1, atol=1e-6)
    assert torch.equal(dataset.images(torch.tensor([3, 0])), images)


def test_equal_pictures_share_a_picture_id(dataset_file: Path) -> None:
    picture_id = load_dataset(dataset_file).picture_id
    assert len(set(picture_id[4:10])) == 1
    assert len(set(picture_id)) == 48 - 5


def test_labels_are_optional(dataset_file: Path) -> None:
    with h5py.File(dataset_file, "r+") as file:
        for name in ("category_id", "object_id", "pose", "variation"):
            del file[f"stimuli/{name}"]
    stimuli = load_dataset(dataset_file).stimuli
    assert stimuli.category_id is stimuli.object_id is stimuli.pose is stimuli.variation is None
    assert stimuli.category_names == ()


def test_units_are_in_the_file(dataset_file: Path) -> None:
    with h5py.File(dataset_file) as file:
        assert file["stimuli/pose"].attrs["columns"] == "rxy rxz ryz s ty tz"
        assert file["stimuli/pose"].attrs["units"].startswith("degree")
        assert all("units" in file[f"subjects/M1/{name}"].attrs for name in ("response", "n_repetitions"))


def test_digest_depends_on_content_alone(
    dataset_file: Path, stimuli: Stimuli, subjects: dict[str, Subject], tmp_path: Path
) -> None:
    dataset = load_dataset(dataset_file)
    assert len(dataset.digest) == 64
    same = write_dataset(tmp_path / "same.h5", dataset.stimuli, dataset.subjects, dataset.split, source="arrays")
    assert load_dataset(same).digest == dataset.digest
    changed = {**subjects, "M2": replace(subjects["M2"], response=subjects["M2"].response + np.float32(1e-3))}
    for number, (other, population) in enumerate([(stimuli, changed), (replace(stimuli, pose=None), subjects)]):
        path = write_dataset(tmp_path / f"{number}.h5", other, population, dataset.split, source="synthetic")
        assert load_dataset(path).digest != dataset.digest


def _set(name: str, value: object) -> Callable[[h5py.File], None]:
    """Replaces the array `name` by `value`, or by what the function `value` makes of it."""

    def change(file: h5py.File) -> None:
        array = file[name][...]
        array = value(array) if callable(value) else value
        del file[name]
        file[name] = array

    return change


def _delete(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def _attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def _element(index: object, value: object) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


BAD = {
    "no image": (_delete("stimuli/image"), r"stimuli/image: missing"),
    "no id": (_delete("stimuli/id"), r"stimuli/id: missing"),
    "no subjects": (_delete("subjects"), r"subjects: at least one subject is needed"),
    "no response": (_delete("subjects/M1/response"), r"subjects/M1/response: missing"),
    "no unit ids": (_delete("subjects/M2/unit_id"), r"subjects/M2/unit_id: missing"),
    "no split": (_delete("split/test"), r"split/test: missing"),
    "no names": (_delete("stimuli/category_names"), r"stimuli/category_names: missing"),
    "foreign": (_attribute("format", "other"), r"attribute format: 'migvis' expected, got 'other'"),
    "version": (_attribute("version", 99), r"attribute version: this program reads version 1, got 99"),
    "source": (_attribute("source", "dream"), r"attribute source: .* got 'dream'"),
    "float image": (_set("stimuli/image", lambda a: a / 255.0), r"stimuli/image: uint8 expected, got float64"),
    "colour": (_set("stimuli/image", lambda a: np.stack([a] * 3, -1)), r"stimuli/image: shape .* got \(48, 16, 16, 3\)"),
    "oblong": (_set("stimuli/image", lambda a: a[:, :8]), r"stimuli/image: shape .* got \(48, 8, 16\)"),
    "odd size": (_set("stimuli/image", lambda a: a[:, :12, :12]), r"H = W a multiple of 8 expected, got \(48, 12, 12\)"),
    "one picture": (_set("stimuli/image", np.zeros_like), r"stimuli/image: at least 2 different pictures are needed, got 1"),
    "fewer responses": (_set("subjects/M1/response", lambda a: a[:-1]), r"M1/response: shape \(48, N\) expected, got \(47"),
    "one axis": (_set("subjects/M1/response", lambda a: a[:, 0]), r"subjects/M1/response: shape .* got \(48,\)"),
    "no units": (_set("subjects/M1/response", lambda a: a[:, :0]), r"subjects/M1/response: at least one unit"),
    "integer response": (_set("subjects/M1/response", lambda a: a.astype(int)), r"response: type float expected, got int64"),
    "nan": (_set("subjects/M1/response", _element((7, 2), np.nan)), r"M1/response: finite .* got nan at stimulus 7, unit 2"),
    "inf": (_set("subjects/M2/response", _element((0, 1), -np.inf)), r"M2/response: finite .* got -inf at stimulus 0, unit 1"),
    "constant": (_set("subjects/M1/response", _element((slice(None), 3), 0.25)), r"unit 3 is constant \(0.25\)"),
    "units disagree": (_set("subjects/M1/unit_id", ["a", "b"]), r"M1/unit_id: shape \(5\) expected, got \(2,\)"),
    "unit twice": (_set("subjects/M2/unit_id", ["a", "b", "a"]), r"M2/unit_id: 'a' occurs 2 times"),
    "repetitions": (_set("subjects/M1/n_repetitions", _element(5, 0)), r"n_repetitions: 1 or more expected, got 0 at position 5"),
    "id twice": (_set("stimuli/id", ["s"] * 48), r"stimuli/id: 's' occurs 48 times"),
    "number ids": (_set("stimuli/id", np.arange(48)), r"stimuli/id: type string expected, got int64"),
    "category high": (_set("stimuli/category_id", _element(9, 4)), r"category_id: 0…3 expected, got 4 at position 9"),
    "category low": (_set("stimuli/category_id", _element(9, -1)), r"category_id: 0…3 expected, got -1 at position 9"),
    "category short": (_set("stimuli/category_id", lambda a: a[:9]), r"category_id: shape \(48\) expected, got \(9,\)"),
    "category float": (_set("stimuli/category_id", lambda a: a * 1.0), r"category_id: type integer expected, got float64"),
    "object": (_set("stimuli/object_id", _element(1, 48)), r"object_id: 0…47 expected, got 48 at position 1"),
    "variation": (_set("stimuli/variation", _element(1, -3)), r"variation: 0 or more expected, got -3"),
    "pose shape": (_set("stimuli/pose", lambda a: a[:, :3]), r"stimuli/pose: shape \(48, 6\) expected, got \(48, 3\)"),
    "pose nan": (_set("stimuli/pose", _element((2, 4), np.nan)), r"stimuli/pose: finite .* stimulus 2, column 4"),
    "split high": (_set("split/test", _element(0, 48)), r"split/test: 0…47 expected, got 48 at position 0"),
    "split low": (_set("split/train", _element(0, -1)), r"split/train: 0…47 expected, got -1"),
    "split empty": (_set("split/validation", lambda a: a[:0]), r"split/validation: empty"),
    "split float": (_set("split/validation", lambda a: a * 1.0), r"split/validation: type integer expected, got float64"),
    "group": (lambda f: (f.move("split/test", "x"), f.create_group("split/test")), r"split/test: an array expected, got a group"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_line_with_field_and_value(dataset_file: Path, case: str) -> None:
    change, message = BAD[case]
    with h5py.File(dataset_file, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset(dataset_file)
    assert str(dataset_file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overlapping_and_straddling_splits_are_refused(dataset_file: Path) -> None:
    with h5py.File(dataset_file, "r+") as file:
        train = file["split/train"][...]
        stimulus = int(next(index for index in train if index not in range(4, 10)))
        _set("split/test", lambda a: np.append(a, stimulus))(file)
    with pytest.raises(InputError, match=rf"split/test: stimulus {stimulus} is in split/train already"):
        load_dataset(dataset_file)
    with h5py.File(dataset_file, "r+") as file:
        for name, indices in (("train", [0, 1, 2, 4]), ("validation", [10, 11]), ("test", [5, 12])):
            _set(f"split/{name}", np.array(indices))(file)
    with pytest.raises(InputError, match=r"split/test: the picture of stimulus 5 is in split/train too"):
        load_dataset(dataset_file)


def test_unit_that_varies_outside_training_only_is_constant(dataset_file: Path) -> None:
    with h5py.File(dataset_file, "r+") as file:
        train = file["split/train"][...]
        _set("subjects/M2/response", _element((train, 1), 3.0))(file)
    with pytest.raises(InputError, match=r"M2/response: unit 1 is constant \(3\) over the training stimuli"):
        load_dataset(dataset_file)


def test_files_that_are_not_data_sets(dataset_file: Path, tmp_path: Path) -> None:
    content = dataset_file.read_bytes()
    text, empty, damaged, plain = (tmp_path / name for name in ("text.h5", "empty.h5", "damaged.h5", "plain.h5"))
    text.write_text("response,1,2\n")
    empty.write_bytes(b"")
    with h5py.File(plain, "w") as file:
        file["data"] = np.zeros(3)
    for path, message in (
        (tmp_path / "absent.h5", "no such file"),
        (tmp_path, "no such file"),
        (text, "not an HDF5 file"),
        (empty, "not an HDF5 file"),
        (plain, "attribute format: 'migvis' expected, got None"),
    ):
        with pytest.raises(InputError, match=message):
            load_dataset(path)
    for kept in (0.02, 0.3, 0.6, 0.9, 0.999):
        damaged.write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(InputError, match=rf"{damaged.name}: truncated or damaged") as caught:
            load_dataset(damaged)
        assert "\n" not in str(caught.value)


def test_damage_inside_the_responses_is_noticed(dataset_file: Path) -> None:
    with h5py.File(dataset_file) as file:
        offset = file["subjects/M1/response"].id.get_chunk_info(0).byte_offset
    content = bytearray(dataset_file.read_bytes())
    content[offset] ^= 1
    dataset_file.write_bytes(content)
    with pytest.raises(InputError, match="truncated or damaged"):
        load_dataset(dataset_file)


def test_refused_contents_leave_the_file_there_untouched(
    dataset_file: Path, stimuli: Stimuli, subjects: dict[str, Subject], tmp_path: Path
) -> None:
    before = dataset_file.read_bytes()
    split = load_dataset(dataset_file).split
    bad = {"M1": replace(subjects["M1"], response=subjects["M1"].response * np.nan)}
    with pytest.raises(InputError, match="got nan"):
        write_dataset(dataset_file, stimuli, bad, split, source="synthetic")
    with pytest.raises(InputError, match=r"subjects: a name without '/' is needed, got 'a/b'"):
        write_dataset(dataset_file, stimuli, {"a/b": subjects["M1"]}, split, source="synthetic")
    assert dataset_file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["set.h5"]


def test_a_folder_that_cannot_be_written_is_one_line(dataset_file: Path, stimuli: Stimuli, subjects: dict[str, Subject]) -> None:
    split = load_dataset(dataset_file).split
    with pytest.raises(InputError, match="cannot be written"):
        write_dataset(dataset_file / "inside" / "set.h5", stimuli, subjects, split, source="synthetic")
