from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from migvis.data import Stimuli, Subject, grouped_split, picture_ids, write_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stimuli() -> Stimuli:
    """48 stimuli of 8 objects in 4 categories; stimuli 4…9 are one picture, as HvM's V0 images are."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (48, 16, 16), dtype=np.uint8)
    image[4:10] = image[4]
    number = np.arange(48) % 8
    pose = generator.normal(size=(48, 6)).astype(np.float32)
    names = ("Boats", "Cars", "Faces", "Fruits")
    return Stimuli(image, np.array([f"s{row}" for row in range(48)]), number // 2, number, pose, number % 2 * 3, names)


@pytest.fixture
def subjects() -> dict[str, Subject]:
    generator = np.random.default_rng(1)
    return {
        name: Subject(
            name,
            generator.normal(size=(48, units)).astype(np.float32),
            generator.integers(1, 30, 48),
            np.array([f"{name}-é-{unit}" for unit in range(units)]),
        )
        for name, units in (("M1", 5), ("M2", 3))
    }


@pytest.fixture
def dataset_file(tmp_path: Path, stimuli: Stimuli, subjects: dict[str, Subject]) -> Path:
    split = grouped_split(picture_ids(stimuli.image), (0.6, 0.2, 0.2), 0)
    attributes = {"signal_to_noise": 0.7, "note": "planted", "masked": True}
    return write_dataset(tmp_path / "set.h5", stimuli, subjects, split, source="synthetic", attributes=attributes)


@pytest.fixture
def script() -> Callable[[str], Callable[[list[str]], int]]:
    """The function main of a script of the repository, by the script's name."""
    return lambda name: runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"]
