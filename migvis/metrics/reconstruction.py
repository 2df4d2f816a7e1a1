"""How well latents explain responses. Rows are held-out images; every score is an average over units."""

from __future__ import annotations

from typing import Any

import numpy as np

from migvis.errors import InputError
from migvis.metrics.arrays import Array, matrix


def _pair(responses: Any, prediction: Any) -> tuple[Array, Array]:
    truth = matrix("responses", responses)
    predicted = matrix("prediction", prediction, rows=len(truth))
    if predicted.shape != truth.shape:
        raise InputError(f"prediction: expected {truth.shape[1]} units as in responses, got {predicted.shape[1]}")
    return truth, predicted


def neural_r2(responses: Any, prediction: Any) -> float:
    """Coefficient of determination 1 − SS_residual / SS_total, averaged over units (Tables 1 and 2 of A).

    responses, prediction: [n, N] in the same units. A unit that is constant over these images has no
    variance to explain and is left out; raises InputError if all are, or if shapes disagree.
    """
    truth, predicted = _pair(responses, prediction)
    total = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    residual = ((truth - predicted) ** 2).sum(axis=0)
    varying = np.ptp(truth, axis=0) > 0
    if not varying.any():
        raise InputError(f"responses: all {truth.shape[1]} units are constant over the {len(truth)} images")
    return float(np.mean(1 - residual[varying] / total[varying]))


def neural_rmse(responses: Any, prediction: Any) -> float:
    """Root-mean-square error, averaged over units (the papers print it × 100).

    responses, prediction: [n, N] z-scored with training statistics. Raises InputError if shapes disagree.
    """
    truth, predicted = _pair(responses, prediction)
    return float(np.sqrt(((truth - predicted) ** 2).mean(axis=0)).mean())


def explained_by_latents(
    train_latents: Any, train_responses: Any, latents: Any, responses: Any, dimensions: Any = None, penalty: float = 1.0
) -> float:
    """neural_r2 on held-out images of a ridge regression refitted on training images from some latents only.

    train_latents [m, D], train_responses [m, N] z-scored; latents [n, D], responses [n, N] held out;
    dimensions: indices of the latents used (none: all); penalty: λ of |y − a − zW|² + λ|W|² on standardised
    latents, the intercept unpenalised. Raises InputError for shapes that disagree or dimensions out of range.
    """
    z = matrix("train_latents", train_latents)
    y = matrix("train_responses", train_responses, rows=len(z))
    held_out = matrix("latents", latents)
    truth = matrix("responses", responses, rows=len(held_out))
    if held_out.shape[1] != z.shape[1]:
        raise InputError(f"latents: expected {z.shape[1]} dimensions as in train_latents, got {held_out.shape[1]}")
    used = np.arange(z.shape[1]) if dimensions is None else np.asarray(dimensions, dtype=np.int64).reshape(-1)
    if len(used) == 0 or used.min() < 0 or used.max() >= z.shape[1]:
        raise InputError(f"dimensions: expected indices in 0…{z.shape[1] - 1}, got {used.tolist()}")
    mean, deviation = z[:, used].mean(axis=0), z[:, used].std(axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    design, centre = (z[:, used] - mean) / scale, y.mean(axis=0)
    weights = np.linalg.solve(design.T @ design + penalty * np.eye(len(used)), design.T @ (y - centre))
    return neural_r2(truth, (held_out[:, used] - mean) / scale @ weights + centre)
