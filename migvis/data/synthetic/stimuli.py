"""The synthetic data set: ray-traced stimuli with HvM's three levels of variation, and two simulated subjects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from migvis.config import DataConfig
from migvis.data.dataset import Stimuli, Subject, write_dataset
from migvis.data.splits import grouped_split, picture_ids
from migvis.data.synthetic.objects import CATEGORIES, OBJECTS_PER_CATEGORY
from migvis.data.synthetic.population import simulate_responses, stimulus_features
from migvis.data.synthetic.renderer import render
from migvis.errors import InputError

UNIT_COUNTS = {"M1": 58, "M2": 110}
"""Sites per subject, as in the papers."""

VARIATION_LEVELS = {0: (0.0, 1.0, 0.0), 3: (45.0, 1.1, 0.08), 6: (90.0, 1.2, 0.16)}
"""Variation level -> largest rotation (degrees), largest scale factor, largest position (half image widths)."""


def draw_poses(variation: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Poses [n, 6] for variation levels [n]: uniform rotations and positions, log-uniform scales."""
    limits = np.array([VARIATION_LEVELS[int(level)] for level in variation]).reshape(-1, 3)
    draws = generator.uniform(-1, 1, (len(variation), 6))
    return np.column_stack([limits[:, :1] * draws[:, :3], limits[:, 1] ** draws[:, 3], limits[:, 2:] * draws[:, 4:]])


def synthetic_stimuli(
    count: int,
    image_size: int,
    seed: int,
    variations: tuple[int, ...] = (3,),
    objects_per_category: int = OBJECTS_PER_CATEGORY,
) -> Stimuli:
    """`count` stimuli over the first objects of each category: one of variation 0 each, the rest in equal parts of
    `variations`.

    Raises InputError when `count` leaves fewer than three stimuli per object.
    """
    objects = len(CATEGORIES) * objects_per_category
    if count < 3 * objects:
        raise InputError(f"data.stimulus_count: at least {3 * objects} (three per object), got {count}")
    generator = np.random.default_rng([seed, 0])
    category_id, member = np.divmod(np.arange(count) % objects, objects_per_category)
    object_id = category_id * OBJECTS_PER_CATEGORY + member
    turn = np.arange(count) // objects
    variation = np.where(turn == 0, 0, np.array(variations)[(turn - 1) % len(variations)])
    pose = draw_poses(variation, generator)
    images = render(torch.from_numpy(object_id), torch.from_numpy(pose), image_size)
    pixels = ((images[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    return Stimuli(
        image=pixels,
        id=np.array([f"synthetic-{index:05d}" for index in range(count)]),
        category_id=category_id,
        object_id=object_id,
        pose=pose.astype(np.float32),
        variation=variation,
        category_names=CATEGORIES,
    )


def make_synthetic(config: DataConfig, path: Path) -> Path:
    """Writes the synthetic data set that `config` describes to `path` (HDF5) and returns the path."""
    stimuli = synthetic_stimuli(
        config.stimulus_count, config.image_size, config.seed, config.variations, config.objects_per_category
    )
    assert stimuli.category_id is not None
    assert stimuli.object_id is not None
    assert stimuli.pose is not None
    subjects = {}
    for number, (name, units) in enumerate(UNIT_COUNTS.items()):
        features = stimulus_features(stimuli.category_id, stimuli.object_id, stimuli.pose.astype(np.float64), config.seed)
        response = simulate_responses(
            features, units, config.repetitions, config.signal_to_noise, config.seed * len(UNIT_COUNTS) + number
        )
        repetitions = np.full(len(response), config.repetitions, dtype=np.int64)
        subjects[name] = Subject(name, response, repetitions, np.array([f"{name}-{unit:03d}" for unit in range(units)]))
    split = grouped_split(picture_ids(stimuli.image), config.split, config.seed, strata=stimuli.object_id)
    attributes: dict[str, float | int | str] = {
        "signal_to_noise": config.signal_to_noise,
        "repetitions": config.repetitions,
        "seed": config.seed,
    }
    attributes["variations"] = ", ".join(f"V{level}" for level in (0, *config.variations))
    write_dataset(path, stimuli, subjects, split, source="synthetic", attributes=attributes)
    return path
