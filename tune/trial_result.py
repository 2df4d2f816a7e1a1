"""What a trial hands back, as plain data: it is written as JSON to the trial's folder and to the study's database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrialResult:
    """The result of one trial.

    metrics: by name, means over seeds and subjects; among them the objectives and neural_r2.
    constraint: how far neural_r2 falls short of what it must reach; feasible at 0 or below. None: no constraint.
    pruned: the trial ended after its VAE, by the gate (constraint > 0) or since no more was asked for; there are no edits.
    per_seed: a metric's value for each seed. curves: [(step, value), …] of fits. images, artifacts: files by name.
    stages: one record per stage that the trial used: {"kind", "key", "seconds", "reused"}, and "damage" as in StageUse.
    seconds: wall time by part of the trial. host: the name of the machine that ran it.
    """

    metrics: dict[str, float]
    constraint: float | None = None
    pruned: bool = False
    per_seed: dict[str, list[float]] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    host: str = ""

    def to_json(self) -> str:
        """JSON text; non-finite numbers are written as Python's json does (NaN, Infinity)."""
        return json.dumps(asdict(self), default=_plain)

    @classmethod
    def from_json(cls, text: str) -> TrialResult:
        values = json.loads(text)
        for name in ("images", "artifacts"):
            values[name] = {key: Path(path) for key, path in values[name].items()}
        values["curves"] = {key: [(int(step), float(value)) for step, value in curve] for key, curve in values["curves"].items()}
        return cls(**values)


@dataclass(frozen=True)
class Prepared:
    """What was built before the first trial: stage records as in TrialResult, and files for the parent run."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class FinalResult:
    """The final stage's result. export: the folder of the exported bundle; main_image: the picture to look at first."""

    metrics: dict[str, float]
    export: Path
    images: dict[str, Path] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    main_image: Path | None = None


def _plain(value: Any) -> Any:
    """Paths as text, NumPy and PyTorch numbers as numbers."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a trial's result holds plain values, got {type(value).__name__}")


def stage_totals(records: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Stage records summed per (kind, key): how often fitted and reused, and the seconds that fitting took."""
    totals: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        total = totals.setdefault(
            (record["kind"], record["key"]),
            {"kind": record["kind"], "key": record["key"], "seconds": 0.0, "fitted": 0, "reused": 0},
        )
        if record["reused"]:
            total["reused"] += 1
        else:
            total["fitted"] += 1
            total["seconds"] += record["seconds"]
    return list(totals.values())
