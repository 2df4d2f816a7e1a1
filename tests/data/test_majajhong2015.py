from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from migvis.data import Dataset, load_dataset
from migvis.data.majajhong2015 import import_majajhong2015
from migvis.errors import InputError

xarray = pytest.importorskip("xarray")
pytest.importorskip("netCDF4")

STIMULI, SITES = 40, 12


@dataclass
class Planted:
    """Files in Brain-Score's layout, and the numbers that were put into them."""

    assembly: Path
    table: Path
    archive: Path
    masks: Path
    presentations: dict[str, np.ndarray]
    neuroids: dict[str, np.ndarray]
    response: np.ndarray
    pictures: dict[str, np.ndarray]
    object_pixels: dict[str, np.ndarray]
    stimulus: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, Path, Path]:
        return self.assembly, self.table, self.archive

    def write(
        self,
        variable: str = "dicarlo.MajajHong2015.public",
        without: tuple[str, ...] = (),
        transpose: bool = False,
        bins: int = 1,
    ) -> None:
        """Writes the assembly as Brain-Score's library does: MultiIndexes reset, then xarray to netCDF-4."""
        coordinates = {
            **{name: ("presentation", values) for name, values in self.presentations.items()},
            **{name: ("neuroid", values) for name, values in self.neuroids.items()},
            "time_bin_start": ("time_bin", 70 + np.arange(bins)),
            "time_bin_end": ("time_bin", 170 + np.arange(bins)),
        }
        coordinates = {name: value for name, value in coordinates.items() if name not in without}
        dimensions = ("neuroid", "presentation", "time_bin")
        values = np.repeat(self.response[:, :, None], bins, axis=2)
        array = xarray.DataArray(values, coords=coordinates, dims=dimensions, name=variable)
        levels = {dim: [name for name, value in coordinates.items() if value[0] == dim] for dim in dimensions}
        array = array.set_index(levels).reset_index(list(dimensions))
        if transpose:
            array = array.transpose("time_bin", "presentation", "neuroid")
        array.to_netcdf(self.assembly, engine="netcdf4")


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """40 stimuli of 4 objects in 2 categories, 1 to 4 presentations each in random order; two animals, two regions."""
    generator = np.random.default_rng(0)
    number = np.arange(STIMULI)
    names = np.array([f"{row * 7919 % 104729:05x}" for row in number], dtype=object)
    stimulus = {
        "image_id": names,
        "category_name": np.array(["Boats", "Animals"], dtype=object)[number % 4 // 2],
        "object_name": np.array(["ship", "kayak", "bear", "dog"], dtype=object)[number % 4],
        "variation": np.array([0, 3, 6])[number // 4 % 3],
        "size": np.full(STIMULI, 256.0),
        **{name: generator.normal(size=STIMULI) for name in ("s", "ty", "tz", "rxy", "rxz", "ryz")},
        **{f"{name}_semantic": generator.normal(size=STIMULI) * 90 for name in ("rxy", "rxz", "ryz")},
    }
    trial = generator.permutation(np.repeat(number, 1 + number % 4))
    neuroids = {
        "neuroid_id": np.array([f"site_{site}" for site in range(SITES)], dtype=object),
        "animal": np.array(["Tito", "Chabo", "Tito"] * 4, dtype=object),
        "region": np.array(["IT", "V4", "IT", "IT", "IT", "V4"] * 2, dtype=object),
        "arr": np.array(["A", "M", "P"] * 4, dtype=object),
    }
    signal = 100 * number[None, trial] + np.arange(SITES)[:, None]
    response = signal + generator.normal(size=signal.shape)

    pictures, object_pixels = {}, {}
    masks = tmp_path / "masks"
    masks.mkdir()
    table, archive = tmp_path / "stimuli.csv", tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as images, table.open("w", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(["", "image_id", "object_name", "filename"])
        for row in generator.permutation(STIMULI):
            name = names[row]
            pictures[name] = generator.integers(0, 256, (64, 64), dtype=np.uint8)
            object_pixels[name] = np.zeros((64, 64), dtype=bool)
            object_pixels[name][10 + row % 4 : 40, 8:50] = True
            rows.writerow([row, name, stimulus["object_name"][row], f"{name}.png"])
            images.writestr(f"{name}.png", _png(np.stack([pictures[name]] * 3, -1)))
            (masks / f"{name}.png").write_bytes(_png(object_pixels[name].astype(np.uint8)))
    made = Planted(
        assembly=tmp_path / "assembly.nc",
        table=table,
        archive=archive,
        masks=masks,
        presentations={**{name: values[trial] for name, values in stimulus.items()}, "repetition": np.arange(len(trial))},
        neuroids=neuroids,
        response=response,
        pictures=pictures,
        object_pixels=object_pixels,
        stimulus=stimulus,
    )
    made.write()
    return made


def _import(planted: Planted, **options: object) -> Dataset:
    out = planted.assembly.with_suffix(".h5")
    options = {"image_size": 32, "report": lambda line: None, **options}
    return load_dataset(import_majajhong2015(*planted.files, out, **options))


def test_the_test_file_has_the_layout_of_brain_scores_files(planted: Planted) -> None:
    """As seen in a file written by Brain-Score's library: placeholders for dimensions, tied variables, variable strings."""
    with h5py.File(planted.assembly) as file:
        for dimension in ("neuroid", "presentation"):
            assert file[dimension].attrs["NAME"].startswith(b"This is a netCDF dimension but not a netCDF variable")
        for name, dimension in (("image_id", "/presentation"), ("animal", "/neuroid")):
            assert [file[scale].name for scale in file[name].attrs["DIMENSION_LIST"][0]] == [dimension]
            assert h5py.check_string_dtype(file[name].dtype).length is None
        assert file["dicarlo.MajajHong2015.public"].shape == (SITES, len(planted.presentations["image_id"]), 1)


@pytest.mark.parametrize("transpose", [False, True])
def test_responses_are_the_means_over_repetitions_of_the_right_sites(planted: Planted, transpose: bool) -> None:
    planted.write(variable="any name", transpose=transpose)
    dataset = _import(planted)
    assert list(dataset.subjects) == ["M1", "M2"]
    for name, animal in (("M1", "Chabo"), ("M2", "Tito")):
        subject = dataset.subjects[name]
        sites = [s for s in range(SITES) if planted.neuroids["animal"][s] == animal and planted.neuroids["region"][s] == "IT"]
        assert subject.unit_id.tolist() == [f"site_{site}" for site in sites]
        for row, identity in enumerate(dataset.stimuli.id):
            trials = np.flatnonzero(planted.presentations["image_id"] == identity)
            assert subject.n_repetitions[row] == len(trials)
            np.testing.assert_allclose(subject.response[row], planted.response[sites][:, trials].mean(1), rtol=1e-6)


def test_labels_belong_to_their_stimuli(planted: Planted) -> None:
    stimuli = _import(planted).stimuli
    assert stimuli.category_names == ("Animals", "Boats")
    objects = sorted(set(planted.stimulus["object_name"]))
    for row, identity in enumerate(stimuli.id):
        source = planted.stimulus["image_id"].tolist().index(identity)
        truth = {name: values[source] for name, values in planted.stimulus.items()}
        assert stimuli.category_names[stimuli.category_id[row]] == truth["category_name"]
        assert objects[stimuli.object_id[row]] == truth["object_name"]
        assert stimuli.variation[row] == truth["variation"]
        pose = [truth[name] for name in ("rxy_semantic", "rxz_semantic", "ryz_semantic", "s", "ty", "tz")]
        np.testing.assert_allclose(stimuli.pose[row], pose, rtol=1e-6)


def test_plain_rotations_and_stimulus_id_are_read_where_there_are_no_others(planted: Planted) -> None:
    planted.presentations["stimulus_id"] = planted.presentations.pop("image_id")
    planted.write(without=tuple(f"{name}_semantic" for name in ("rxy", "rxz", "ryz")))
    dataset = _import(planted)
    for row, identity in enumerate(dataset.stimuli.id):
        source = planted.stimulus["image_id"].tolist().index(identity)
        np.testing.assert_allclose(dataset.stimuli.pose[row, 0], planted.stimulus["rxy"][source], rtol=1e-6)
    assert dataset.attributes["rotations"] == "rxy, rxz, ryz"


def test_pictures_are_area_means_and_masks_cut_the_object_out(planted: Planted) -> None:
    for masks in (None, planted.masks):
        stimuli = _import(planted, masks=masks).stimuli
        for row, identity in enumerate(stimuli.id):
            full = planted.pictures[identity].astype(float)
            if masks is not None:
                full = full * planted.object_pixels[identity]
            means = full.reshape(32, 2, 32, 2).mean(axis=(1, 3))
            np.testing.assert_allclose(stimuli.image[row], means, atol=0.51)


def test_masked_pictures_that_are_equal_share_a_split(planted: Planted) -> None:
    """HvM's variation 0: one render on many backgrounds."""
    names = planted.stimulus["image_id"]
    same = names[planted.stimulus["variation"] == 0][:6]
    with zipfile.ZipFile(planted.archive, "w") as images:
        for name in names:
            inside = planted.pictures[same[0] if name in same else name]
            mask = planted.object_pixels[same[0]]
            images.writestr(f"{name}.png", _png(np.where(mask, inside, planted.pictures[name])))
            (planted.masks / f"{name}.png").write_bytes(_png(mask))
    dataset = _import(planted, masks=planted.masks)
    assert len(set(dataset.picture_id)) == STIMULI - 5
    rows = np.flatnonzero(np.isin(dataset.stimuli.id, same.astype(str)))
    assert [set(rows) <= set(indices) for indices in dataset.split.values()].count(True) == 1


def test_counts_and_progress_are_reported(planted: Planted) -> None:
    lines: list[str] = []
    _import(planted, report=lines.append)
    assert "subject M1: 2 sites (Chabo, IT)" in lines
    assert "subject M2: 6 sites (Tito, IT)" in lines
    assert any("pictures: 40 of 40" in line for line in lines)
    lines.clear()
    dataset = _import(planted, region="V4", subjects={"Chabo": "A"}, report=lines.append)
    assert dataset.subjects["A"].unit_id.tolist() == ["site_1", "site_7"]


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (("animal", "region"), "neuroid coordinates animal, region$"),
        (("image_id",), "presentation coordinates image_id or stimulus_id$"),
        (("rxy", "rxy_semantic", "category_name"), "presentation coordinates category_name, rxy$"),
    ],
)
def test_missing_coordinates_are_named_together(planted: Planted, without: tuple[str, ...], message: str) -> None:
    planted.write(without=without)
    with pytest.raises(InputError, match=f"assembly.nc: the assembly lacks {message}"):
        _import(planted)


def test_what_is_missing_or_damaged_is_one_line(planted: Planted, tmp_path: Path) -> None:
    def refused(message: str, **options: object) -> None:
        with pytest.raises(InputError, match=message) as caught:
            _import(planted, **options)
        assert "\n" not in str(caught.value)

    refused("no site of animal 'Chabo' in region 'V1'; there are: Chabo IT, Chabo V4, Tito IT, Tito V4", region="V1")
    refused("no site of animal 'Nemo'", subjects={"Nemo": "M1"})
    refused("subjects: different names expected, got M1, M1", subjects={"Chabo": "M1", "Tito": "M1"})
    refused("size: a multiple of 8 pixels expected, got 20", image_size=20)
    refused("size: at most 64", image_size=128)
    name = planted.stimulus["image_id"][3]
    (planted.masks / f"{name}.png").unlink()
    refused(rf"{name}.png: no such mask", masks=planted.masks)
    (planted.masks / f"{name}.png").write_bytes(_png(np.ones((8, 8), dtype=np.uint8)))
    refused("mask of 64 x 64 pixels expected, got 8 x 8", masks=planted.masks)
    rows = planted.table.read_text().splitlines()
    planted.table.write_text("\n".join(row for row in rows if name not in row))
    refused(rf"stimuli.csv: no row for stimulus '{name}'")
    planted.table.write_text("a,b\n1,2\n")
    refused("columns image_id or stimulus_id and filename expected, got a, b")
    planted.table.write_text("\n".join(rows))
    with zipfile.ZipFile(planted.archive, "w") as images:
        images.writestr("other.png", b"")
    refused(r"images.zip: no picture '\w+.png'")
    planted.archive.write_bytes(b"not a zip archive")
    refused("images.zip: cannot be read as a zip archive")
    planted.write(bins=2)
    refused("time_bin: one bin .* expected, got 2")
    planted.assembly.write_bytes(planted.assembly.read_bytes()[:5000])
    refused("assembly.nc: not a netCDF-4 ")
    planted.assembly.unlink()
    refused("assembly.nc: no such file")


def test_squeezed_assembly_is_told_what_it_has(planted: Planted) -> None:
    planted.assembly.unlink()
    xarray.Dataset({"data": (("presentation", "neuroid"), planted.response.T)}).to_netcdf(planted.assembly, engine="netcdf4")
    with pytest.raises(InputError, match=r"× time_bin \(it has data over presentation × neuroid\); neuroid coord"):
        _import(planted)


def test_command_line(planted: Planted, script: Callable, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main = script("import_majajhong2015")
    files, out = [str(path) for path in planted.files], tmp_path / "out.h5"
    options = ["--out", str(out), "--size", "16", "--masks", str(planted.masks), "--subjects", "Tito=T", "--seed", "5"]
    assert main([*files, *options, "--split", "0.5", "0.25", "0.25"]) == 0
    assert "subject T: 6 sites" in capsys.readouterr().out
    dataset = load_dataset(out)
    assert list(dataset.subjects) == ["T"]
    assert dataset.image_size == 16
    assert dataset.attributes["masked"]
    assert len(dataset.split["train"]) == pytest.approx(20, abs=2)
    assert main([files[0], files[1], str(tmp_path / "absent.zip"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert load_dataset(out).digest == dataset.digest
    with pytest.raises(SystemExit, match="2"):
        main([*files, "--out", str(out), "--subjects", "Tito"])
