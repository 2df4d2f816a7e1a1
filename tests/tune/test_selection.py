from __future__ import annotations

import math

import numpy as np
import pytest

from migvis.errors import InputError
from tune.selection import Candidate, check_rule, ideal_corner, pareto_front, select


def candidate(number, group_mig, selectivity, realism, r2=0.9, constraint=-0.01) -> Candidate:
    metrics = {"group_mig": group_mig, "selectivity": selectivity, "realism": realism, "neural_r2": r2}
    return Candidate(number, {"group_rank": number}, metrics, constraint)


def lowest(candidates) -> int:
    return min(item.number for item in candidates)


def test_nearest_feasible_pareto_point() -> None:
    trials = [
        candidate(0, 0.9, 0.0, 0.9),
        candidate(1, 0.6, 0.6, 0.6),
        candidate(2, 0.99, 0.99, 0.99, constraint=0.001),
        candidate(3, 0.5, 0.6, 0.6),
    ]
    chosen = select(trials)
    assert chosen.trial == 1
    assert chosen.params == {"group_rank": 1}
    assert chosen.warning == ""


def moved(number, pose, category, **objectives) -> Candidate:
    metrics = {"move_pose_group1": pose, "move_category_group2": category, "neural_r2": 0.9, **objectives}
    return Candidate(number, {}, metrics, -0.01)


def test_edits_that_do_nothing_are_not_selected_for_their_realism() -> None:
    idle = moved(0, 0.01, 0.0, group_mig=0.5, selectivity=-0.02, realism=0.97)
    editing = moved(1, 0.25, 0.35, group_mig=0.5, selectivity=-0.1, realism=0.5)
    chosen = select([idle, editing])
    assert chosen.trial == 1
    assert chosen.warning == ""
    nothing = select([idle, moved(2, 0.0, 0.02, group_mig=0.4, selectivity=0.0, realism=0.9)])
    assert nothing.trial == 0
    assert "NO TRIAL'S EDITS MOVED" in nothing.warning
    assert select([candidate(3, 0.5, 0.0, 0.9), editing]).trial == 3, "what was not measured counts for nobody"


def test_objectives_are_clipped_to_the_unit_box() -> None:
    # Unclipped, the outlier 3.0 would move trial 0 away from the corner and -5 would throw trial 1 out.
    assert select([candidate(0, 3.0, 0.5, 0.9), candidate(1, 0.8, 0.4, 0.9)]).trial == 0
    assert select([candidate(0, 0.9, -5.0, 0.9), candidate(1, 0.1, 0.1, 0.1)]).trial == 0


def test_ties_go_to_the_lower_number() -> None:
    assert select([candidate(4, 0.5, 0.5, 0.5), candidate(2, 0.5, 0.5, 0.5)]).trial == 2


def test_none_feasible_is_said_loudly() -> None:
    pruned = Candidate(2, {"group_rank": 2}, {"neural_r2": 0.99}, 0.2)
    chosen = select([candidate(0, 0.9, 0.9, 0.9, r2=0.5, constraint=0.4), candidate(1, 0.1, 0.1, 0.1, r2=0.7, constraint=0.2)])
    assert chosen.trial == 1
    assert "NO TRIAL MET" in chosen.warning
    assert select([pruned]).trial == 2


def test_pruned_and_non_finite_trials_are_not_selected() -> None:
    trials = [Candidate(0, {}, {"neural_r2": 0.99}, -1.0), candidate(1, math.nan, 1, 1), candidate(2, 0.1, 0.1, 0.1)]
    assert select(trials).trial == 2


def test_missing_objectives_are_left_out() -> None:
    trials = [Candidate(0, {}, {"realism": 0.2, "neural_r2": 0.9}, -1), Candidate(1, {}, {"realism": 0.8, "neural_r2": 0.8}, -1)]
    assert select(trials, objectives=["realism"]).trial == 1


def test_best_metric() -> None:
    trials = [candidate(0, 0.2, 0.9, 0.9), candidate(1, 0.8, 0.1, 0.1), candidate(2, 0.95, 1, 1, constraint=1.0)]
    assert select(trials, "best:group_mig").trial == 1
    with pytest.raises(InputError, match="group_mig"):
        select(trials, "best:nothing")


def test_rule_of_ones_own(monkeypatch) -> None:
    import sys
    import types

    module = types.ModuleType("lab_rules")
    module.lowest = lowest
    module.wrong = lambda candidates: 99
    monkeypatch.setitem(sys.modules, "lab_rules", module)
    assert select([candidate(3, 1, 1, 1), candidate(1, 0, 0, 0)], "lab_rules:lowest").trial == 1
    with pytest.raises(InputError, match="99"):
        select([candidate(3, 1, 1, 1)], "lab_rules:wrong")


@pytest.mark.parametrize("rule", ["nope", "no_such_module:f", "math:nothing", "math:pi", "best:", "..x:y"])
def test_unknown_rule_is_refused_before_the_study(rule: str) -> None:
    with pytest.raises(InputError):
        check_rule(rule)


def test_no_candidates() -> None:
    with pytest.raises(InputError):
        ideal_corner([])


def test_pareto_front_against_the_naive_loop() -> None:
    points = np.random.default_rng(0).integers(0, 4, (60, 3)) / 4
    naive = [
        not any(all(b >= a for a, b in zip(p, q, strict=True)) and any(b > a for a, b in zip(p, q, strict=True)) for q in points)
        for p in points
    ]
    assert pareto_front(points).tolist() == naive
