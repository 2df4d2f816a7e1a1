"""A simulated population: fixed random nonlinear tuning to pose, category and object, with trial noise.

Truth is planted, so tests can ask whether the method finds it. Every unit mixes all factors, as single
units of IT cortex do (A Fig. 1).
"""

from __future__ import annotations

import numpy as np

CATEGORY_DIMENSIONS = 5
OBJECT_DIMENSIONS = 3
_WEIGHTS = {"rotation": 1.0, "placement": 0.45, "category": 1.0, "object": 0.45}


def stimulus_features(category_id: np.ndarray, object_id: np.ndarray, pose: np.ndarray, seed: int) -> np.ndarray:
    """Planted features [S, 14] that the population is tuned to: rotations, placement, category and object codes.

    Rotations are in units of 45°, placement (log scale, ty, tz) in units of their spread; category and object codes
    are fixed random directions per category and per object, with unit variance per dimension.
    """
    generator = np.random.default_rng([seed, 1])
    categories, objects = int(category_id.max()) + 1, int(object_id.max()) + 1
    category_code = generator.standard_normal((categories, CATEGORY_DIMENSIONS))
    category_code = (category_code - category_code.mean(0)) / category_code.std(0)
    object_code = generator.standard_normal((objects, OBJECT_DIMENSIONS))
    rotation = pose[:, :3] / 45.0
    placement = np.column_stack([np.log(pose[:, 3]), pose[:, 4:6]])
    placement = placement / np.maximum(placement.std(0), 1e-9)
    return np.column_stack(
        [
            _WEIGHTS["rotation"] * rotation,
            _WEIGHTS["placement"] * placement,
            _WEIGHTS["category"] * category_code[category_id],
            _WEIGHTS["object"] * object_code[object_id],
        ]
    )


def simulate_responses(features: np.ndarray, unit_count: int, repetitions: int, signal_to_noise: float, seed: int) -> np.ndarray:
    """Trial-averaged responses float32 [S, unit_count], each unit's signal of variance 1 around a positive mean.

    signal = z-score(W_1 f + 0.6 W_2 tanh(W_3 f)); a trial adds Gaussian noise of variance 1 / signal_to_noise, and
    `repetitions` trials are averaged.
    """
    generator = np.random.default_rng([seed, 2])
    count = features.shape[1]
    linear = features @ generator.standard_normal((count, unit_count))
    hidden = np.tanh(features @ generator.standard_normal((count, 24)) / np.sqrt(count))
    signal = linear + 0.6 * hidden @ generator.standard_normal((24, unit_count))
    signal = (signal - signal.mean(0)) / signal.std(0)
    noise = generator.standard_normal(signal.shape) / np.sqrt(signal_to_noise * repetitions)
    return (signal + noise + generator.uniform(1.0, 3.0, unit_count)).astype(np.float32)
