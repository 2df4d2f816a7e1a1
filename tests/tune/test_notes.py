"""Notes are said where they are due, and nowhere else."""

from __future__ import annotations

from tune.notes import notes


def test_saturation_and_edits_that_move_nothing_are_said() -> None:
    trials = [{"pc_saturation": 0.99}, {"pc_saturation": 0.2}, {}]
    said = notes(trials, {"selectivity": 0.01, "realism": 0.94})
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


def test_nothing_is_said_of_a_good_study_or_of_one_that_is_not_finished() -> None:
    assert notes([{"pc_saturation": 0.5}], {"selectivity": 0.4, "realism": 0.9}) == []
    assert notes([{"pc_saturation": 0.5}], {}) == []
    assert notes([], {}) == []
