"""What single units tell by themselves: pose and category decoded linearly from one response at a time (A Fig. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from migvis.errors import InputError
from migvis.metrics.arrays import Array, matrix

SHUFFLES = 20
QUANTILE = 0.99


@dataclass(frozen=True)
class SingleUnits:
    """Per unit [N]: R² of pose, a mean over the angles, and category accuracy, both on test stimuli.

    pose_chance, category_chance: the QUANTILE of what all units reach when fitted to shuffled labels; one above is selective.
    """

    pose: Array
    category: Array
    pose_chance: float
    category_chance: float

    @property
    def counts(self) -> dict[str, int]:
        """How many units are selective for pose alone, for category alone, for both (mixed selectivity), and for neither."""
        pose, category = self.pose > self.pose_chance, self.category > self.category_chance
        parts = {"both": pose & category, "pose only": pose & ~category, "category only": category & ~pose}
        return {name: int(chosen.sum()) for name, chosen in parts.items()} | {"neither": int((~pose & ~category).sum())}


def single_units(
    training: Any, training_pose: Any, training_category: Any, test: Any, test_pose: Any, test_category: Any, seed: int = 0
) -> SingleUnits:
    """Decodes pose [n, k] by least squares and category [n] by linear discriminants from each unit of responses [n, N].

    With one feature the discriminant of category c is μ_c·x/s² − μ_c²/(2s²) + log p_c, s² the variance within categories.
    Fitted on training stimuli, scored on test stimuli. Raises InputError for lengths that disagree.
    """
    x, angles = matrix("training responses", training), matrix("training pose", training_pose, rows=len(training))
    held, true_angles = matrix("test responses", test), matrix("test pose", test_pose, rows=len(test))
    labels, true_labels = np.asarray(training_category), np.asarray(test_category)
    if labels.shape != (len(x),) or true_labels.shape != (len(held),) or held.shape[1] != x.shape[1]:
        raise InputError(
            f"single units: {x.shape} and {held.shape} responses, {labels.shape} and {true_labels.shape} categories disagree"
        )

    def scores(order: np.ndarray) -> tuple[Array, Array]:
        named = _category(x, labels[order], held)
        return _r2(_pose(x, angles[order], held), true_angles), (named == true_labels[:, None]).mean(axis=0)

    pose, category = scores(np.arange(len(x)))
    # Fitted anew to shuffled labels, as a unit that knows nothing is fitted to true ones.
    random = np.random.default_rng(seed)
    shuffled = [scores(random.permutation(len(x))) for _ in range(SHUFFLES)]
    pose_chance, category_chance = (float(np.quantile(np.stack(part), QUANTILE)) for part in zip(*shuffled, strict=True))
    return SingleUnits(pose, category, pose_chance, category_chance)


def _pose(x: Array, angles: Array, held: Array) -> Array:
    """Predictions [n, N, k] of each angle from each unit, by simple regression."""
    mean, centre = x.mean(axis=0), angles.mean(axis=0)
    variance = np.maximum(x.var(axis=0), 1e-12)
    slope = (x - mean).T @ (angles - centre) / len(x) / variance[:, None]
    predicted: Array = centre + (held - mean)[:, :, None] * slope
    return predicted


def _r2(predicted: Array, angles: Array) -> Array:
    """R² [N] of predictions [n, N, k] of angles [n, k], a mean over angles."""
    truth = angles[:, None, :]
    residual = ((truth - predicted) ** 2).sum(axis=0)
    total = np.maximum(((truth - truth.mean(axis=0)) ** 2).sum(axis=0), 1e-12)
    score: Array = (1 - residual / total).mean(axis=1)
    return score


def _category(x: Array, labels: np.ndarray, held: Array) -> np.ndarray:
    """The category [n, N] that each unit alone would name."""
    known = np.unique(labels)
    means = np.stack([x[labels == label].mean(axis=0) for label in known])
    within = sum(((x[labels == label] - mean) ** 2).sum(axis=0) for label, mean in zip(known, means, strict=True)) / len(x)
    within = np.maximum(within, 1e-12)
    prior = np.log([np.mean(labels == label) for label in known])
    scores = (held[:, None, :] * means - means**2 / 2) / within + prior[:, None]
    named: np.ndarray = known[scores.argmax(axis=1)]
    return named
