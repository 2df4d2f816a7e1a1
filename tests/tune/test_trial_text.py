"""What the terminal says of a trial."""

from __future__ import annotations

from typing import Any

from tune.selection import OBJECTIVES
from tune.trial_record import TrialRecord
from tune.trial_result import TrialResult
from tune.trial_text import trial_line

METRICS = {"neural_r2": 0.94, "group_mig": 0.45, "selectivity": 0.2238, "selectivity_se": 0.081, "realism": 0.75}


def record(state: str, result: TrialResult | None = None, **changes: Any) -> TrialRecord:
    values: dict[str, Any] = {"constraint": None, "attempt": 0, "error": None, "seconds": 6.2, **changes}
    params = {"pc_weight": 5e-5, "infonce_batch": 64}
    return TrialRecord(3, state, params, None if result is None else result.to_json(), **values)


def test_a_finished_trial_is_told_with_its_standard_errors_and_what_it_reused() -> None:
    stages = [{"kind": kind, "key": kind, "seconds": 1.0, "reused": kind == "vae"} for kind in ("synthesis", "vae")]
    assert trial_line(record("COMPLETE", TrialResult(METRICS, stages=stages)), OBJECTIVES) == (
        "trial 3: neural_r2 0.940, group_mig 0.450, selectivity 0.224 ± 0.081, realism 0.750 | pc_weight 5e-05, infonce_batch 64 "
        "(6 s); reused vae"
    )


def test_a_trial_that_the_gate_ended_has_no_objectives() -> None:
    result = TrialResult({"neural_r2": 0.8, "group_mig": 0.3}, constraint=0.02, pruned=True)
    line = trial_line(record("PRUNED", result, constraint=0.02), OBJECTIVES)
    assert line == "trial 3: ended by the gate, neural_r2 0.800 | pc_weight 5e-05, infonce_batch 64 (6 s)"


def test_a_trial_of_a_vae_alone_tells_what_it_tells() -> None:
    result = TrialResult({"neural_r2": 0.94, "group_mig": 0.3, "alignment": 0.72}, constraint=-0.02, pruned=True)
    assert trial_line(record("PRUNED", result, constraint=-0.02), OBJECTIVES) == (
        "trial 3: VAE only, neural_r2 0.940, group_mig 0.300, alignment 0.720 | pc_weight 5e-05, infonce_batch 64 (6 s)"
    )


def test_a_failed_trial_is_told_with_its_error_and_whether_it_is_tried_again() -> None:
    assert trial_line(record("FAIL", error="diverged"), OBJECTIVES) == "trial 3 failed: diverged (6 s)"
    again = record("WAITING", error="its host was lost", seconds=None)
    assert trial_line(again, OBJECTIVES) == "trial 3 failed: its host was lost; it is tried again"
