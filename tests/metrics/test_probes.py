from __future__ import annotations

import pytest
import torch
from torch import Tensor

from migvis.errors import InputError
from migvis.metrics.probes import Probes, fit_probes, probe_accuracy


def bars(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A bar (category 0) or a pair of spots (category 1) turned by an angle in the picture."""
    generator = torch.Generator().manual_seed(seed)
    category = torch.randint(0, 2, (n,), generator=generator)
    degrees = 60 * (torch.rand(n, 1, generator=generator) * 2 - 1)
    grid = torch.linspace(-1, 1, 32)
    radians = torch.deg2rad(degrees)[..., None]
    along = radians.cos() * grid + radians.sin() * grid[:, None]
    across = -radians.sin() * grid + radians.cos() * grid[:, None]
    bar = torch.exp(-((across / 0.15) ** 2)) * (along.abs() < 0.8)
    spots = torch.exp(-((across / 0.15) ** 2)) * torch.exp(-(((along.abs() - 0.6) / 0.15) ** 2))
    return (2 * torch.where((category == 0).view(-1, 1, 1), bar, spots) - 1)[:, None], category, degrees


@pytest.fixture(scope="module")
def fitted() -> Probes:
    images, category, degrees = bars(0, 400)
    pool = 0.8 * images[:, None]
    return fit_probes(images, pool, category, degrees, category_count=2, steps=60, batch_size=32, learning_rate=2e-3, seed=0)[0]


def test_probes_read_category_and_rotation_of_held_out_pictures(fitted):
    images, category, degrees = bars(1, 200)
    accuracy = probe_accuracy(fitted, images, category, degrees)
    assert accuracy.category > 0.95
    assert accuracy.rotation_r2 > 0.7
    assert accuracy.decides_category
    assert accuracy.decides_rotation
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    assert probe_accuracy(fitted, images + 0.3 * noise, category, None).category > 0.9


def test_probes_decide_nothing_where_pictures_say_nothing(fitted):
    images, category, degrees = bars(3, 200)
    shuffled = images[torch.randperm(200, generator=torch.Generator().manual_seed(4))]
    accuracy = probe_accuracy(fitted, shuffled, category, degrees)
    assert not accuracy.decides_category
    assert not accuracy.decides_rotation


def test_rotations_come_out_in_degrees(fitted):
    images, _, degrees = bars(5, 100)
    category, predicted = fitted.predict(images, batch=30)
    assert category.shape == (100,)
    assert predicted.shape == (100, 1)
    assert float((predicted - degrees).abs().median()) < 15


def test_one_label_alone_and_pictures_without_pose():
    images, category, degrees = bars(6, 40)
    probes, _ = fit_probes(images, None, category, None, category_count=2, steps=2, batch_size=16, seed=0)
    assert probe_accuracy(probes, images, category, degrees).rotation_r2 is None
    still = torch.arange(40) >= 10
    degrees[~still] = 1e4
    probes, _ = fit_probes(images, None, None, degrees, pose_rows=still, steps=2, batch_size=16, seed=0)
    assert float(probes.rotation_scale) < 100
    assert probe_accuracy(probes, images, category, degrees, still).category is None


def test_bad_arguments_are_refused():
    images, category, degrees = bars(7, 10)
    for arguments, count, message in (
        ((images, None, None, None), 2, "neither"),
        ((images, None, category + 1, None), 2, "categories"),
        ((images, None, category[:9], None), 2, "categories"),
        ((images, None, None, degrees[:9]), 2, "rotations"),
        ((images, images, category, None), 2, "pool"),
    ):
        with pytest.raises(InputError, match=message):
            fit_probes(*arguments, category_count=count, steps=1, seed=0)
