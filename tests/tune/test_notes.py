"""Notes are said where they are due, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from migvis.config import PRESETS
from tune.notes import cautions, damage_notes, notes


def test_saturation_and_edits_that_move_nothing_are_said() -> None:
    said = notes([0.99, 0.2], {"selectivity": 0.01, "realism": 0.94})
    assert len(said) == 2
    assert said[0].startswith("in 1 of 2 trials the partial correlation was saturated")
    assert "selectivity 0.010, realism 0.94" in said[1]


def test_edits_that_move_everything_are_told_from_edits_that_move_nothing() -> None:
    moves = {"move_pose_group1": 0.1, "move_category_group2": 0.3}
    (said,) = notes([], {"selectivity": -0.2, "realism": 0.5, **moves})
    assert "carry their own attribute 0.20 of the way" in said
    (said,) = notes([], {"selectivity": -0.02, "move_pose_group1": 0.01, "move_category_group2": 0.0})
    assert "do not move" in said
    assert notes([], {"selectivity": 0.2, **moves}) == []


def test_each_damaged_stage_is_told_once() -> None:
    damaged = {"kind": "vae", "damage": "vae/1/x: altered; built again"}
    assert damage_notes([damaged, {"kind": "critic"}, damaged, {"kind": "vae", "damage": ""}]) == [
        "a stored vae was damaged: vae/1/x: altered; built again"
    ]


def test_nothing_is_said_of_a_good_study_or_of_one_that_is_not_finished() -> None:
    assert notes([0.5], {"selectivity": 0.4, "realism": 0.9}) == []
    assert notes([0.5], {}) == []
    assert notes([], {}) == []


def test_an_instrument_that_cannot_read_decides_nothing() -> None:
    good = {"selectivity": 0.4, "instrument/category_accuracy": 0.9, "instrument/pose_r2": 0.8}
    assert notes([], good) == []
    for poor in ({"instrument/category_accuracy": 0.5}, {"instrument/pose_r2": 0.4}):
        (said,) = notes([], good | poor)
        assert "selectivity decides nothing" in said
        assert "0.50" in said or "0.40" in said


def test_missing_labels_and_a_critic_that_will_be_fooled_are_said_before_a_study() -> None:
    def stimuli(pose: bool, category: bool) -> SimpleNamespace:
        known = np.zeros(3)
        return SimpleNamespace(stimuli=SimpleNamespace(pose=known if pose else None, category_id=known if category else None))

    quick = PRESETS["quick"]
    assert cautions(quick, stimuli(True, True)) == []
    assert [said.split(":")[0] for said in cautions(quick, stimuli(False, False))] == [
        "the data set has no pose labels",
        "the data set has no category labels",
    ]
    gradient = quick.model_copy(update={"synthesis": quick.synthesis.model_copy(update={"guidance": "gradient"})})
    (said,) = cautions(gradient, stimuli(True, True))
    assert "critic.training_images=clean" in said
    assert cautions(PRESETS["paper"], stimuli(True, True)) == []
