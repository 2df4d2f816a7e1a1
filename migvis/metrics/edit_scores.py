"""Scores of edits: which pairs are edited, which instrument reads them, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from migvis.data.dataset import Dataset
from migvis.errors import InputError
from migvis.metrics.instrument import Oracle, calibrate_oracle, label_reading, object_symmetries, rows_of
from migvis.metrics.novelty import training_distance
from migvis.metrics.probes import Probes, fit_probes, probe_accuracy
from migvis.metrics.selectivity import ATTRIBUTES, Reading, Symmetries, select_pairs, selectivity
from migvis.randomness import permutation
from migvis.weights import read_json, read_tensors

Metrics = dict[str, float]


def has_labels(dataset: Dataset) -> bool:
    """Whether selectivity can be measured: both category and pose are labelled."""
    return dataset.stimuli.category_id is not None and dataset.stimuli.pose is not None


def _symmetries(dataset: Dataset) -> Symmetries | None:
    return object_symmetries() if dataset.source == "synthetic" else None


def evaluation_pairs(dataset: Dataset, split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` fixed (source, target) stimulus rows of a split; without labels any two stimuli form a pair."""
    rows = dataset.split[split]
    if has_labels(dataset):
        return select_pairs(label_reading(dataset), rows, count, seed, _symmetries(dataset))
    if len(rows) < 2 * count:
        raise InputError(f"synthesis.trial_pairs/final_pairs: {count} pairs need {2 * count} {split} stimuli, got {len(rows)}")
    order = torch.tensor(rows[permutation(seed, "pairs", 0, len(rows)).numpy()])
    return order[:count], order[count : 2 * count]


class Instrument:
    """Reads edits: the render-fit oracle, probes, or nothing where a data set has no labels."""

    def __init__(
        self, kind: str, oracle: Oracle | None = None, probes: Probes | None = None, accuracy: Metrics | None = None
    ) -> None:
        self.kind, self.oracle, self.probes, self.accuracy = kind, oracle, probes, accuracy or {}

    def read(self, images: Tensor) -> tuple[Reading, Tensor]:
        """Readings of images [n, 1, H, W] and their residuals [n] (NaN from probes, which have none)."""
        if self.oracle is not None:
            reading, fit = self.oracle.read(images)
            return reading, fit.residual
        if self.probes is None:
            raise InputError("instrument: there is none, since the data set has no labels")
        category, angles = self.probes.predict(images)
        if category is None or angles is None:
            raise InputError("instrument: probes of both category and pose are needed")
        everything = torch.ones(len(images), dtype=torch.bool)
        return Reading(category, angles, everything), torch.full((len(images),), float("nan"))


def make_instrument(
    dataset: Dataset, pictures: np.ndarray, pool: Tensor | None, seed: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a data set's instrument; `pictures` [P] the rows of the distinct training pictures.

    pool [P, draws, 1, H, W]: the denoised pictures that probes are fitted on; the oracle of rendered stimuli needs none.
    Raises InputError where the oracle is too inaccurate on held-out stimuli to decide anything. The accuracy of probes
    stands in the description: where it is too low, a study says so (tune.notes).
    """
    if dataset.source == "synthetic":
        oracle = calibrate_oracle(dataset, seed)
        tensors, calibration = oracle.state()
        if not oracle.calibration.decides:
            raise InputError(f"{dataset.path}: the render-fit oracle is too inaccurate to judge edits ({calibration})")
        return tensors, {"kind": "oracle", "calibration": calibration}
    if not has_labels(dataset):
        return {}, {"kind": "none"}
    stimuli = dataset.stimuli
    assert pool is not None
    assert stimuli.category_id is not None
    assert stimuli.pose is not None
    posed = None if stimuli.variation is None else torch.tensor(stimuli.variation > 0)
    categories, angles = torch.tensor(stimuli.category_id), torch.tensor(stimuli.pose[:, :3])
    probes, _ = fit_probes(
        dataset.images(pictures),
        pool,
        categories[pictures],
        angles[pictures],
        category_count=len(stimuli.category_names),
        pose_rows=None if posed is None else posed[pictures],
        seed=seed,
    )
    held_out = dataset.split["validation"].copy()  # read-only arrays make PyTorch warn
    accuracy = probe_accuracy(
        probes, dataset.images(held_out), categories[held_out], angles[held_out], None if posed is None else posed[held_out]
    )
    description = {
        "kind": "probes",
        "categories": len(stimuli.category_names),
        "image_size": dataset.image_size,
        "calibration": {"category_accuracy": accuracy.category, "pose_r2": accuracy.rotation_r2},
    }
    return probes.state_dict(), description


def load_instrument(folder: Path) -> Instrument:
    """The instrument in a folder that holds instrument.json and, unless there is none, instrument.safetensors."""
    description = read_json(folder / "instrument.json")
    kind = description["kind"]
    if kind == "none":
        return Instrument("none")
    tensors = read_tensors(folder / "instrument.safetensors")
    accuracy = {name: float(value) for name, value in description["calibration"].items() if value is not None}
    if kind == "oracle":
        return Instrument(kind, oracle=Oracle.load(tensors, description["calibration"]), accuracy=accuracy)
    probes = Probes(description["categories"], 3, description["image_size"])
    probes.load_state_dict(tensors)
    return Instrument(kind, probes=probes.eval(), accuracy=accuracy)


def score_edits(dataset: Dataset, instrument: Instrument, edits: Mapping[str, Tensor]) -> tuple[Metrics, dict[str, Tensor]]:
    """Metrics and readings of a batch of edits.

    edits: images [n, 1, H, W], group, pair, scale [n], and source, target [pairs] stimulus rows. Scored are the first
    2 · pairs, which are edits of groups 1 and 2; those with γ = 0 give inversion_mse. training_distance is the median over
    the scored edits, training_distance_stimuli over the held-out stimuli they start from: well below it, edits are copies.
    selectivity_se and realism_se are standard errors over the pairs, where there are at least two.
    """
    source, target = edits["source"], edits["target"]
    pairs = len(source)
    unguided = edits["scale"] == 0
    returned, started = edits["images"][unguided], dataset.images(source[edits["pair"][unguided]].numpy())
    training = dataset.images(dataset.split["train"])
    metrics = {
        "inversion_mse": float((returned - started).square().mean()),
        "training_distance": float(training_distance(edits["images"][: 2 * pairs], training).median()),
        "training_distance_stimuli": float(training_distance(dataset.images(source.numpy()), training).median()),
    }
    if instrument.kind == "none":
        return metrics, {"pair": edits["pair"][: 2 * pairs]}
    images, group, pair = (edits[name][: 2 * pairs] for name in ("images", "group", "pair"))
    reading, residual = instrument.read(images)
    labels = label_reading(dataset)
    result = selectivity(reading, rows_of(labels, source[pair]), rows_of(labels, target[pair]), group, _symmetries(dataset))
    metrics["selectivity"] = result.value
    scored = {"selectivity": result.score}
    if instrument.kind == "oracle":
        scored["realism"] = result.valid
        metrics["realism"] = float(result.valid.double().mean())
        metrics["residual_median"] = float(residual.median())
    if pairs > 1:
        metrics |= {f"{name}_se": _standard_error(values, pair, pairs) for name, values in scored.items()}
    for g in (1, 2):
        chosen = group == g
        metrics[f"selectivity_group{g}"] = float(result.score[chosen].mean())
        for a, attribute in enumerate(ATTRIBUTES):
            metrics[f"move_{attribute}_group{g}"] = float(result.matrix[g - 1, a])
            metrics[f"leak_{attribute}_group{g}"] = float(torch.where(result.valid, result.leak[:, a], 0.0)[chosen].mean())
    metrics |= {f"instrument/{name}": value for name, value in instrument.accuracy.items()}
    readings = {
        "category": reading.category,
        "angles": reading.angles,
        "valid": reading.valid,
        "score": result.score,
        "matrix": result.matrix,
        "group": group,
        "pair": pair,
    }
    return metrics, readings


def _standard_error(values: Tensor, pair: Tensor, pairs: int) -> float:
    """Of the mean of values [n], two of each pair: edits of one pair are not independent, pairs are."""
    of_pairs = torch.zeros(pairs, dtype=torch.float64).index_add(0, pair, values.double()) / 2
    return float(of_pairs.std() / pairs**0.5)
