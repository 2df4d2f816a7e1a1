from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from migvis.config import PRESETS
from migvis.data import load_dataset
from migvis.data.dataset import Dataset
from migvis.data.synthetic.stimuli import make_synthetic
from migvis.metrics.edit_scores import Instrument, evaluation_pairs, score_edits
from migvis.metrics.instrument import label_reading
from migvis.metrics.selectivity import Reading
from migvis.weights import read_tensors, save_tensors


class Scripted(Instrument):
    """An instrument that says what it is told, whatever it is shown; it knows how many images it was shown."""

    def __init__(self, reading: Reading, residual: float = 0.1) -> None:
        super().__init__("oracle", accuracy={"object_accuracy": 0.9})
        self.reading, self.residual, self.shown = reading, residual, 0

    def read(self, images: torch.Tensor) -> tuple[Reading, torch.Tensor]:
        self.shown = len(images)
        return self.reading, torch.full((len(images),), self.residual)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = PRESETS["quick"].data.model_copy(update={"stimulus_count": 256})
    return load_dataset(make_synthetic(config, tmp_path_factory.mktemp("set") / "set.h5"))


@pytest.mark.parametrize("swapped", [False, True])
def test_perfect_edits_score_1_and_those_of_the_other_attribute_minus_1(dataset: Dataset, swapped: bool) -> None:
    source, target = evaluation_pairs(dataset, "validation", 5, seed=0)
    labels = label_reading(dataset)
    group, pair = torch.tensor([1] * 5 + [2] * 5), torch.arange(5).repeat(2)
    turned, changed = (group == 2, group == 1) if swapped else (group == 1, group == 2)
    reading = Reading(
        torch.where(changed, labels.category[target[pair]], labels.category[source[pair]]),
        torch.where(turned[:, None], labels.angles[target[pair]], labels.angles[source[pair]]),
        torch.tensor([True] * 4 + [False] + [True] * 5),
    )
    assert labels.object_id is not None
    # the target's object where the category is the target's, so that symmetries are those of what is shown
    objects = torch.where(changed, labels.object_id[target[pair]], labels.object_id[source[pair]])
    instrument = Scripted(Reading(reading.category, reading.angles, reading.valid, objects))
    extra = torch.tensor([0, 1])
    edits = {
        "images": torch.zeros(12, 1, 32, 32),
        "group": torch.cat([group, torch.tensor([1, 1])]),
        "pair": torch.cat([pair, extra]),
        "scale": torch.tensor([5.0] * 10 + [0.0] * 2),
        "source": source,
        "target": target,
    }
    metrics, _ = score_edits(dataset, instrument, edits)
    assert instrument.shown == 10, "the unguided edits are not scored"
    sign = -1 if swapped else 1
    assert metrics["realism"] == pytest.approx(0.9)
    assert metrics["selectivity_group1"] == pytest.approx(0.8 * sign, abs=1e-5)
    assert metrics["selectivity_group2"] == pytest.approx(sign, abs=1e-5)
    assert metrics["selectivity"] == pytest.approx(0.9 * sign, abs=1e-5)
    moves = [[metrics[f"move_{attribute}_group{g}"] for attribute in ("pose", "category")] for g in (1, 2)]
    expected = [[0.0, 0.8], [1.0, 0.0]] if swapped else [[0.8, 0.0], [0.0, 1.0]]
    assert torch.allclose(torch.tensor(moves), torch.tensor(expected), atol=1e-5)
    assert metrics["instrument/object_accuracy"] == 0.9


def test_standard_errors_are_over_pairs_whose_two_edits_are_not_independent(dataset: Dataset) -> None:
    source, target = evaluation_pairs(dataset, "validation", 5, seed=0)
    labels, group, pair = label_reading(dataset), torch.tensor([1] * 5 + [2] * 5), torch.arange(5).repeat(2)
    valid = pair != 4  # both edits of the last pair fail: the pairs' means are 1, 1, 1, 1, 0
    shown = Reading(labels.category[source[pair]], labels.angles[source[pair]], valid)
    edits = {"images": torch.zeros(10, 1, 32, 32), "group": group, "pair": pair, "scale": torch.full((10,), 5.0)}
    metrics, _ = score_edits(dataset, Scripted(shown), edits | {"source": source, "target": target})
    assert metrics["realism_se"] == pytest.approx(0.2), "0.13 if all ten were independent"
    assert metrics["selectivity_se"] == pytest.approx(0.0), "nothing moves, nothing leaks"
    one = {name: value[[4, 9]] for name, value in edits.items()} | {"pair": torch.tensor([0, 0])}
    alone = Scripted(Reading(shown.category[[4, 9]], shown.angles[[4, 9]], valid[[4, 9]]))
    metrics, _ = score_edits(dataset, alone, one | {"source": source[4:], "target": target[4:]})
    assert "realism_se" not in metrics


@pytest.mark.parametrize("residual", [math.inf, math.nan])
def test_readings_of_blank_edits_and_of_probes_can_be_stored(dataset: Dataset, tmp_path: Path, residual: float) -> None:
    """The oracle's residual of a blank is infinite, and probes have none."""
    source, target = evaluation_pairs(dataset, "validation", 5, seed=0)
    labels, group, pair = label_reading(dataset), torch.tensor([1] * 5 + [2] * 5), torch.arange(5).repeat(2)
    shown = Reading(labels.category[source[pair]], labels.angles[source[pair]], torch.zeros(10, dtype=torch.bool))
    edits = {"images": torch.full((10, 1, 32, 32), -1.0), "group": group, "pair": pair, "scale": torch.full((10,), 5.0)}
    metrics, readings = score_edits(dataset, Scripted(shown, residual), edits | {"source": source, "target": target})
    assert metrics["realism"] == 0
    assert metrics["selectivity"] == 0
    save_tensors(tmp_path / "readings.safetensors", readings)
    assert read_tensors(tmp_path / "readings.safetensors").keys() == readings.keys()


def test_the_inversion_error_is_of_the_unguided_edits_and_their_own_sources(dataset: Dataset) -> None:
    source = torch.tensor(dataset.split["validation"][:3])
    pair = torch.tensor([0, 1, 2, 0, 1, 2, 2, 0])
    images = torch.full((8, 1, 32, 32), 0.3)
    images[6:] = dataset.images(source[[2, 0]].numpy()) + 0.1
    edits = {
        "images": images,
        "group": torch.tensor([1, 1, 1, 2, 2, 2, 1, 1]),
        "pair": pair,
        "scale": torch.tensor([5.0] * 6 + [0.0] * 2),
        "source": source,
        "target": source.flip(0),
    }
    copies = dataset.images(dataset.split["train"][:4])
    images[1:5] = copies
    metrics, readings = score_edits(dataset, Instrument("none"), edits)
    assert metrics["inversion_mse"] == pytest.approx(0.01, rel=1e-4)
    assert metrics["training_distance"] == 0, "four of six scored edits are copies"
    assert metrics["training_distance_stimuli"] > 0.1, "held-out stimuli are not"
    assert metrics.keys() == {"inversion_mse", "training_distance", "training_distance_stimuli"}
    assert readings["pair"].tolist() == pair[:6].tolist()
