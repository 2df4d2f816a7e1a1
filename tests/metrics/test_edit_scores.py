from __future__ import annotations

from pathlib import Path

import pytest
import torch

from migvis.config import PRESETS
from migvis.data import load_dataset
from migvis.data.synthetic.stimuli import make_synthetic
from migvis.metrics.edit_scores import Instrument, score_edits


def test_the_inversion_error_is_of_the_unguided_edits_and_their_own_sources(tmp_path: Path) -> None:
    config = PRESETS["quick"].data.model_copy(update={"stimulus_count": 128})
    dataset = load_dataset(make_synthetic(config, tmp_path / "set.h5"))
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
