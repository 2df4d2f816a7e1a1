"""What a trial hands back."""

from __future__ import annotations

from tune.trial_result import stage_totals


def test_stage_totals() -> None:
    records = [
        {"kind": "vae", "key": "a", "seconds": 2.0, "reused": False},
        {"kind": "vae", "key": "a", "seconds": 0.1, "reused": True},
        {"kind": "vae", "key": "b", "seconds": 3.0, "reused": False},
    ]
    assert stage_totals(records) == [
        {"kind": "vae", "key": "a", "seconds": 2.0, "fitted": 1, "reused": 1},
        {"kind": "vae", "key": "b", "seconds": 3.0, "fitted": 1, "reused": 0},
    ]
