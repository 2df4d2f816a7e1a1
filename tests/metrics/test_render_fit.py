"""The render-fit oracle ranks pictures as a person would, and reads held-out stimuli right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from migvis.config import PRESETS
from migvis.data import Dataset, load_dataset
from migvis.data.synthetic.renderer import render
from migvis.data.synthetic.stimuli import make_synthetic
from migvis.metrics.instrument import Oracle, calibrate_oracle, label_reading, object_symmetries, rows_of
from migvis.metrics.render_fit import _refine, brightness, fit_renders, object_extent
from migvis.metrics.selectivity import pose_distance

COUNT = 48


def blur(images: Tensor, sigma: float) -> Tensor:
    kernel = torch.exp(-(torch.arange(-7, 8) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = functional.pad(images + 1, (7, 7, 7, 7))
    return functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)) - 1


def blobs(count: int, generator: torch.Generator) -> Tensor:
    """Smooth random blobs with a hard edge, as guided diffusion without a judge makes them."""
    field = functional.interpolate(torch.randn(count, 1, 5, 5, generator=generator), size=(32, 32), mode="bicubic")
    grid = torch.linspace(-1, 1, 32)
    inside = field - 2.5 * (grid[:, None] ** 2 + grid[None] ** 2) > -0.6
    return torch.where(inside, 0.2 * field.clamp(-2, 2), -1.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = PRESETS["quick"].data.model_copy(update={"stimulus_count": 768})
    return load_dataset(make_synthetic(config, tmp_path_factory.mktemp("data") / "set.h5"))


@pytest.fixture(scope="module")
def oracle(dataset: Dataset) -> Iterator[Oracle]:
    return calibrate_oracle(dataset, seed=0)


def held_out(dataset: Dataset) -> np.ndarray:
    return dataset.split["test"][:COUNT]


def test_the_extent_of_an_object_is_its_bounding_square() -> None:
    light = torch.zeros(1, 32, 32)
    light[0, 8:16, 4:24] = 0.7  # rows 8–15 are z 0.5…0; columns 4–23 are y −0.75…0.5
    center_y, center_z, half = object_extent(light)[0].tolist()
    assert (center_y, center_z) == pytest.approx((-0.125, 0.25), abs=0.07)
    assert half == pytest.approx(1.1 * 0.625, abs=0.08)


def test_fits_return_to_a_disturbed_pose() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(0, 64, 3)
    pose = torch.cat(
        [torch.rand(len(ids), 3, generator=generator) * 60 - 30, torch.tensor([[1.0, 0.05, -0.05]]).expand(len(ids), 3)], 1
    )
    light = brightness(render(ids, pose, 32)).flatten(1)
    start = pose + torch.randn(pose.shape, generator=generator) * torch.tensor([5.0, 5.0, 5.0, 0.03, 0.02, 0.02])
    fitted, _ = _refine(light, ids, start, 2, iterations=6)
    before = pose_distance(start[:, :3], pose[:, :3], None, None, None).median()
    after = pose_distance(fitted[:, :3], pose[:, :3], ids, ids, object_symmetries()).median()
    assert after < 0.4 * before
    assert (fitted[:, 4:] - pose[:, 4:]).abs().median() < 0.005


def test_it_reads_held_out_stimuli_right(dataset: Dataset, oracle: Oracle) -> None:
    rows = torch.tensor(held_out(dataset))
    reading, _ = oracle.read(dataset.images(rows.numpy()))
    truth = rows_of(label_reading(dataset), rows)
    assert (reading.object_id == truth.object_id).float().mean() >= 0.6
    assert (reading.category == truth.category).float().mean() >= 0.85
    assert pose_distance(reading.angles, truth.angles, reading.object_id, truth.object_id, object_symmetries()).median() < 8
    assert oracle.calibration.decides


def test_it_accepts_objects_and_refuses_what_a_person_would(dataset: Dataset, oracle: Oracle, tmp_path: Path) -> None:
    """The table of shares that it accepts; printed with -s."""
    generator = torch.Generator().manual_seed(1)
    images = dataset.images(held_out(dataset))
    other = images[torch.randperm(COUNT, generator=generator)]
    pictures = {
        "held-out stimuli": images,
        "target renders": dataset.images(dataset.split["train"][:COUNT]),
        "blends 50/50": (images + other) / 2,
        "blurs, sigma 1 px": blur(images, 1.0),
        "blurs, sigma 2 px": blur(images, 2.0),
        "blobs": blobs(COUNT, generator),
        "blanks": torch.full((8, 1, 32, 32), -1.0),
        "noise": torch.rand(16, 1, 32, 32, generator=generator) * 2 - 1,
    }
    share = {}
    for name, shown in pictures.items():
        reading, fit = oracle.read(shown)
        share[name] = float(reading.valid.float().mean())
        print(f"{name:<20} accepted {share[name]:.2f}, median residual {float(fit.residual.median()):.3f}")
    assert share["held-out stimuli"] >= 0.8
    assert share["target renders"] >= 0.8
    assert share["blends 50/50"] <= 0.25
    assert share["blurs, sigma 2 px"] <= 0.3
    assert share["blurs, sigma 2 px"] < share["blurs, sigma 1 px"] < share["held-out stimuli"]
    assert share["blobs"] <= 0.2
    assert share["blanks"] == share["noise"] == 0


def test_a_state_survives_saving(oracle: Oracle, dataset: Dataset) -> None:
    tensors, calibration = oracle.state()
    images = dataset.images(held_out(dataset)[:4])
    assert torch.equal(Oracle.load(tensors, calibration).read(images)[1].residual, fit_renders(images, oracle.bank).residual)
