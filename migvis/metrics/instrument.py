"""The calibrated instrument that judges edits: the render-fit oracle on the synthetic set, probes on recordings.

An instrument's own accuracy on held-out stimuli stands beside every figure; below ACCURATE it decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from migvis.data.dataset import Dataset
from migvis.data.synthetic.objects import object_models
from migvis.errors import InputError
from migvis.metrics.render_fit import RenderBank, RenderFit, build_bank, fit_renders
from migvis.metrics.selectivity import Reading, Symmetries, pose_distance
from migvis.randomness import permutation
from migvis.threads import one_thread

ACCURATE_OBJECT = 0.6
ACCURATE_POSE_R2 = 0.5
CALIBRATION_STIMULI = 96
QUANTILE = 0.95
PIXEL_QUANTILE = 0.99
"""The residual of the pixels as they are only has to refuse noise, so it may be lenient."""


@dataclass(frozen=True)
class OracleCalibration:
    """Threshold of validity and the oracle's accuracy on `count` held-out stimuli."""

    residual_threshold: float
    pixel_residual_threshold: float
    object_accuracy: float
    category_accuracy: float
    rotation_error: float
    """Median geodesic angle in degrees, all stimuli counted."""
    pose_r2: float
    """Mean over the three angles."""
    count: int

    @property
    def decides(self) -> bool:
        """Whether the oracle is accurate enough to decide anything."""
        return self.object_accuracy >= ACCURATE_OBJECT and self.pose_r2 >= ACCURATE_POSE_R2


@lru_cache(maxsize=1)
def object_symmetries() -> Symmetries:
    """Symmetries of the synthetic objects."""
    models = object_models()
    return Symmetries([model.symmetry_rotations for model in models], [model.symmetry == "continuous" for model in models])


@dataclass(frozen=True)
class Oracle:
    """The render-fit oracle with its calibration."""

    bank: RenderBank
    calibration: OracleCalibration

    def read(self, images: Tensor) -> tuple[Reading, RenderFit]:
        """Readings of images [n, 1, H, W]: valid where both residuals are below their calibrated thresholds."""
        fit = fit_renders(images, self.bank)
        limits = self.calibration
        valid = (fit.residual < limits.residual_threshold) & (fit.pixel_residual < limits.pixel_residual_threshold)
        return Reading(fit.category_id, fit.pose[:, :3], valid, fit.object_id), fit

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tensors and calibration, for safetensors and JSON."""
        return dict(self.bank.__dict__), asdict(self.calibration)

    @staticmethod
    def load(tensors: Mapping[str, Tensor], calibration: Mapping[str, float]) -> Oracle:
        """The oracle of a state."""
        values = {name: float(value) for name, value in calibration.items() if name != "count"}
        return Oracle(RenderBank(**tensors), OracleCalibration(**values, count=int(calibration["count"])))


def label_reading(dataset: Dataset) -> Reading:
    """The labels of all stimuli as a reading. Raises InputError where category or pose labels are absent."""
    stimuli = dataset.stimuli
    if stimuli.category_id is None or stimuli.pose is None:
        raise InputError(f"{dataset.path}: selectivity needs category_id and pose labels")
    objects = None if stimuli.object_id is None else torch.tensor(stimuli.object_id)
    angles = torch.tensor(stimuli.pose[:, :3])
    return Reading(torch.tensor(stimuli.category_id), angles, torch.ones(len(angles), dtype=torch.bool), objects)


def rows_of(reading: Reading, rows: Tensor) -> Reading:
    """The reading of some rows."""
    objects = None if reading.object_id is None else reading.object_id[rows]
    return Reading(reading.category[rows], reading.angles[rows], reading.valid[rows], objects)


@one_thread()
def calibrate_oracle(dataset: Dataset, seed: int, count: int = CALIBRATION_STIMULI) -> Oracle:
    """Builds the bank for the angles that training and validation stimuli have; calibrates on `count` of the latter."""
    labels, validation = label_reading(dataset), dataset.split["validation"]
    widest = float(labels.angles[np.concatenate([dataset.split["train"], validation])].abs().max())
    bank = build_bank(rotations=192 if widest <= 60 else 384, largest_angle=widest * 1.1, seed=seed)
    rows = torch.tensor(validation[permutation(seed, "calibration", 0, len(validation))[:count].numpy()])
    fit = fit_renders(dataset.images(rows.numpy()), bank)
    truth = rows_of(labels, rows)
    return Oracle(bank, _calibration(fit, truth))


def _calibration(fit: RenderFit, truth: Reading) -> OracleCalibration:
    distance = pose_distance(fit.pose[:, :3], truth.angles, fit.object_id, truth.object_id, object_symmetries())
    assert truth.object_id is not None
    error = (fit.pose[:, :3] - truth.angles).square().sum(0)
    spread = (truth.angles - truth.angles.mean(0)).square().sum(0)
    return OracleCalibration(
        residual_threshold=float(np.quantile(fit.residual.numpy(), QUANTILE)),
        pixel_residual_threshold=float(np.quantile(fit.pixel_residual.numpy(), PIXEL_QUANTILE)),
        object_accuracy=float((fit.object_id == truth.object_id).double().mean()),
        category_accuracy=float((fit.category_id == truth.category).double().mean()),
        rotation_error=float(distance.median()),
        pose_r2=float((1 - error / spread.clamp(min=1e-9)).mean()),
        count=len(fit.residual),
    )
