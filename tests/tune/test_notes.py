"""Notes are said where they are due, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from migvis.config import PRESETS
from tune.notes import cautions, damage_notes, luck_notes, notes


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


def test_trials_that_chance_may_have_put_behind_the_selected_one_are_counted() -> None:
    def trial(selectivity: float, realism: float) -> dict[str, float]:
        return {"selectivity": selectivity, "selectivity_se": 0.06, "realism": realism, "realism_se": 0.08}

    selected, alike = trial(0.3, 0.8), trial(0.14, 0.9)  # two standard errors of a difference are 0.17 and 0.23
    apart, unreal, gated = trial(0.12, 0.8), trial(0.3, 0.5), {"neural_r2": 0.1}
    (said,) = luck_notes({0: alike, 1: apart, 2: unreal, 3: selected, 4: gated}, 3)
    assert said.startswith("1 of the 3 other trials with edits are within two standard errors of the selected one")
    assert "selectivity 0.30 ± 0.06 and realism 0.80 ± 0.08" in said
    assert luck_notes({1: apart, 2: unreal, 3: selected, 4: gated}, 3) == []
    probes = {number: {"selectivity": 0.1, "selectivity_se": 0.05} for number in (0, 1)}
    assert "(selectivity 0.10 ± 0.05 over its pairs)" in luck_notes(probes, 1)[0]
    assert luck_notes({0: {"neural_r2": 0.9}, 1: {}}, 0) == []


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
