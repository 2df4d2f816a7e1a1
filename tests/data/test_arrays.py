from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from migvis.data import dataset_from_arrays, load_dataset
from migvis.errors import InputError

COUNT = 30


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def images(generator: np.random.Generator) -> np.ndarray:
    return generator.integers(0, 256, (COUNT, 32, 32), dtype=np.uint8)


@pytest.fixture
def response(generator: np.random.Generator) -> np.ndarray:
    return generator.normal(size=(COUNT, 7))


def test_without_labels(tmp_path: Path, images: np.ndarray, response: np.ndarray) -> None:
    dataset = dataset_from_arrays(tmp_path / "a.h5", {"A": response, "B": response[:, :2]}, images)
    np.testing.assert_array_equal(dataset.stimuli.image, images)
    np.testing.assert_allclose(dataset.subjects["A"].response, response, rtol=1e-6)
    assert dataset.subjects["B"].response.shape == (COUNT, 2)
    assert dataset.subjects["A"].n_repetitions.tolist() == [1] * COUNT
    stimuli = dataset.stimuli
    assert stimuli.category_id is stimuli.object_id is stimuli.pose is stimuli.variation is None
    assert dataset.source == "arrays"
    assert [len(indices) for indices in dataset.split.values()] == [21, 3, 6]


def test_with_labels(tmp_path: Path, images: np.ndarray, response: np.ndarray, generator: np.random.Generator) -> None:
    names = np.array(["tree", "cat", "car"])[np.arange(COUNT) % 3]
    objects = np.array([20, 10])[np.arange(COUNT) % 2]
    pose = generator.normal(size=(COUNT, 6))
    dataset = dataset_from_arrays(
        tmp_path / "a.h5", {"A": response}, images, category=names, object_label=objects, pose=pose, fractions=(0.6, 0.2, 0.2)
    )
    assert dataset.stimuli.category_names == ("car", "cat", "tree")
    assert [dataset.stimuli.category_names[number] for number in dataset.stimuli.category_id] == names.tolist()
    assert dataset.stimuli.object_id.tolist() == [1, 0] * (COUNT // 2)
    np.testing.assert_allclose(dataset.stimuli.pose, pose, rtol=1e-6)
    assert np.bincount(dataset.stimuli.object_id[dataset.split["test"]]).tolist() == [3, 3]


def test_repetitions_are_averaged_and_those_not_shown_left_out(
    tmp_path: Path, images: np.ndarray, generator: np.random.Generator
) -> None:
    trials = generator.normal(size=(4, COUNT, 5))
    trials[2:, 3] = np.nan
    trials[0, 8] = np.nan
    subject = dataset_from_arrays(tmp_path / "a.h5", {"A": trials}, images).subjects["A"]
    assert subject.n_repetitions[[0, 3, 8]].tolist() == [4, 2, 3]
    np.testing.assert_allclose(subject.response[0], trials[:, 0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(subject.response[3], trials[:2, 3].mean(0), rtol=1e-5)
    np.testing.assert_allclose(subject.response[8], trials[1:, 8].mean(0), rtol=1e-5)
    trials[1, 0, 2] = np.nan
    with pytest.raises(InputError, match="got nan at stimulus 0, unit 2"):
        dataset_from_arrays(tmp_path / "b.h5", {"A": trials}, images)


def test_floats_colour_and_size(tmp_path: Path, images: np.ndarray, response: np.ndarray) -> None:
    floats = dataset_from_arrays(tmp_path / "a.h5", {"A": response}, images / 255.0).stimuli.image
    np.testing.assert_array_equal(floats, images)
    colour = np.zeros((COUNT, 32, 32, 3), dtype=np.uint8)
    colour[..., 1] = images
    green = dataset_from_arrays(tmp_path / "a.h5", {"A": response}, colour, image_size=16).stimuli.image
    means = (0.587 * images).reshape(COUNT, 16, 2, 16, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(green, means, atol=1.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((COUNT, 32, 32), dtype=np.int32)}, "images: uint8, or float values in 0…1, expected, got int32"),
        ({"images": np.full((COUNT, 32, 32), 2.0)}, "images: float values in 0…1 .* got 2…2"),
        ({"images": np.zeros((COUNT, 32), dtype=np.uint8)}, r"images: shape .* got \(30, 32\)"),
        ({"images": np.zeros((0, 32, 32), dtype=np.uint8)}, r"images: shape .* got \(0, 32, 32\)"),
        ({"image_size": 20}, "size: a multiple of 8 pixels expected, got 20"),
        ({"image_size": 64}, "size: at most 32"),
        ({"responses": {"A": np.zeros((COUNT - 1, 4))}}, r"responses of A: shape \[30, units\] .* got \(29, 4\)"),
        ({"responses": {"A": np.zeros(COUNT)}}, r"responses of A: .* got \(30,\)"),
        ({"responses": {"A": np.full((2, COUNT, 4), np.nan)}}, "responses of A: stimulus 0 has no repetition that is not NaN"),
        ({"responses": {"A": np.array([["x"]])}}, "responses of A: numbers expected, got <U1"),
        ({"responses": {"A": np.ones((COUNT, 4))}}, "subjects/A/response: unit 0 is constant"),
        ({"responses": {}}, "subjects: at least one subject is needed"),
        ({"category": np.zeros(4, dtype=int)}, r"category: shape \(30,\) expected, one label per picture, got \(4,\)"),
        ({"category": np.zeros(COUNT)}, "category: names or whole numbers expected, got float64"),
        ({"object_label": np.arange(COUNT) - 1}, "object: labels from 0 expected, got -1 at position 0"),
        ({"pose": np.zeros((COUNT, 3))}, r"stimuli/pose: shape \(30, 6\) expected, got \(30, 3\)"),
        ({"fractions": (0.9, 0.1, 0.1)}, "split: three positive fractions"),
    ],
)
def test_bad_arrays(tmp_path: Path, images: np.ndarray, response: np.ndarray, change: dict, message: str) -> None:
    given = {"responses": {"A": response}, "images": images, **change}
    with pytest.raises(InputError, match=message):
        dataset_from_arrays(tmp_path / "a.h5", **given)
    assert not list(tmp_path.iterdir())


def test_command_line_with_a_folder_of_pictures(
    tmp_path: Path, images: np.ndarray, response: np.ndarray, script: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out.h5"
    folder.mkdir()
    for row, picture in reversed(list(enumerate(images))):
        Image.fromarray(picture).save(folder / f"picture_{row:03d}.png")
    (folder / "notes.txt").write_text("not a picture")
    np.save(tmp_path / "r.npy", response)
    np.save(tmp_path / "category.npy", np.arange(COUNT) % 2)
    main = script("import_arrays")
    arguments = ["--responses", str(tmp_path / "r.npy"), "--images", str(folder), "--out", str(out)]
    assert main([*arguments, "--category", str(tmp_path / "category.npy"), "--subject", "Ada"]) == 0
    dataset = load_dataset(out)
    np.testing.assert_array_equal(dataset.stimuli.image, images)
    assert dataset.stimuli.id[0] == "picture_000.png"
    assert list(dataset.subjects) == ["Ada"]
    assert dataset.stimuli.category_names == ("0", "1")
    assert "labels: category_id" in capsys.readouterr().out


def test_command_line_names_of_subjects(tmp_path: Path, images: np.ndarray, response: np.ndarray, script: Callable) -> None:
    main, out = script("import_arrays"), tmp_path / "out.h5"
    np.save(tmp_path / "i.npy", images)
    np.save(tmp_path / "r.npy", response)
    np.savez(tmp_path / "r.npz", Ada=response, Bob=response[None, :, :3])
    common = ["--images", str(tmp_path / "i.npy"), "--out", str(out), "--size", "16"]
    one, two = (["--responses", str(tmp_path / name)] for name in ("r.npy", "r.npz"))
    for responses, names in (
        (one, ["M1"]),
        ([*one, *one], ["M1", "M2"]),
        (two, ["Ada", "Bob"]),
        ([*one, *two], ["Ada", "Bob", "M1"]),
    ):
        assert main([*responses, *common]) == 0
        assert list(load_dataset(out).subjects) == names


def test_command_line_refuses_in_one_line(
    tmp_path: Path, images: np.ndarray, response: np.ndarray, script: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    main = script("import_arrays")
    good = {"responses": tmp_path / "r.npy", "images": tmp_path / "i.npy"}
    np.save(good["responses"], response)
    np.save(good["images"], images)
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "r.npz", Ada=response)
    (tmp_path / "cut.npy").write_bytes(good["responses"].read_bytes()[:300])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "r.npz").read_bytes()[:300])
    (tmp_path / "empty").mkdir()
    for change, message in (
        ({"responses": tmp_path / "absent.npy"}, "absent.npy: no such file"),
        ({"responses": tmp_path / "pickled.npy"}, "pickled.npy: cannot be read as .npy or .npz"),
        ({"responses": tmp_path / "cut.npy"}, "cut.npy: cannot be read as .npy or .npz"),
        ({"responses": tmp_path / "cut.npz"}, "cut.npz: cannot be read as .npy or .npz"),
        ({"images": tmp_path / "r.npz"}, "r.npz: one array (.npy) expected, got an archive of Ada"),
        ({"images": tmp_path / "empty"}, "empty: pictures (.png, "),
        ({"category": tmp_path / "i.npy"}, "category: shape (30,) expected"),
    ):
        files = [text for name, path in {**good, **change}.items() for text in (f"--{name}", str(path))]
        assert main([*files, "--out", str(tmp_path / "out.h5")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    files = [text for name, path in good.items() for text in (f"--{name}", str(path))]
    assert main([*files, "--out", str(tmp_path / "out.h5"), "--subject", "A", "--subject", "B"]) == 2
    assert "--subject: one name per array of responses expected, 1, got 2" in capsys.readouterr().err
