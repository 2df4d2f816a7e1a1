"""A table of really evaluated configurations and what their stages cost, on which samplers and the service are tried.

Made by scripts/make_factorial.py; scripts/benchmarks/factorial-0.json is the one of the quick preset and seed 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migvis.errors import InputError
from tune.levels import LEVEL_OF_KIND
from tune.store import StageName
from tune.trial_result import TrialResult

METRICS_OF_VAE = frozenset({"group_mig", "mig", "neural_r2", "alignment"})
"""Metrics that are measured on a VAE alone."""


@dataclass(frozen=True)
class Row:
    """One evaluated configuration. stages: (kind, key) of all that it needs, every one after its inputs."""

    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    constraint: float
    stages: tuple[StageName, ...]

    @property
    def pruned(self) -> bool:
        """Whether the gate ended it after its VAE."""
        return self.constraint > 0

    @property
    def stages_of_vae(self) -> tuple[StageName, ...]:
        """Those that a trial uses which ends after its VAE."""
        return tuple(stage for stage in self.stages if LEVEL_OF_KIND.get(stage[0]) == 0)

    @property
    def metrics_of_vae(self) -> dict[str, float]:
        """What such a trial tells."""
        return {name: value for name, value in self.metrics.items() if name in METRICS_OF_VAE}


@dataclass(frozen=True)
class FactorialTable:
    """All combinations of the values in `grid`; `seconds` is what each stage cost when it was built.

    start: the preset's own configuration, trial 0 of any study.
    """

    grid: Mapping[str, tuple[Any, ...]]
    start: Mapping[str, Any]
    rows: tuple[Row, ...]
    seconds: Mapping[StageName, float]

    @classmethod
    def load(cls, path: Path) -> FactorialTable:
        """Reads a table. Raises InputError where the file is missing, or is not a whole one."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            grid = {name: tuple(values) for name, values in content["grid"].items()}
            seconds = {(kind, key): cost for kind, costs in content["seconds"].items() for key, cost in costs.items()}
            start = dict(content["start"])
            rows = []
            for row in content["rows"]:
                metrics = dict(row["metrics"])
                rows.append(Row(row["params"], metrics, metrics.pop("constraint"), tuple(row["stages"].items())))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a table of scripts/make_factorial.py: {type(error).__name__} {error}") from None
        if len(rows) != math.prod(len(values) for values in grid.values()):
            raise InputError(f"{path}: {len(rows)} configurations in a grid of {math.prod(map(len, grid.values()))}")
        outside = next((name for name, values in grid.items() if start.get(name) not in values), None)
        if outside is not None:
            raise InputError(f"{path}: start: {outside} is none of {list(grid[outside])}, got {start.get(outside)}")
        unknown = next((stage for row in rows for stage in row.stages if stage not in seconds), None)
        if unknown is not None:
            raise InputError(f"{path}: seconds: no cost of {unknown[0]} {unknown[1]}")
        return cls(grid, start, tuple(rows), seconds)

    def nearest(self, params: Mapping[str, Any]) -> Row:
        """The configuration of the grid that is nearest to `params`: each value by itself, by ratio where both are positive."""
        values = {name: choices[_nearest(params[name], choices)] for name, choices in self.grid.items()}
        return next(row for row in self.rows if all(row.params[name] == value for name, value in values.items()))

    def result(self, row: Row, built: set[StageName], vae_only: bool = False) -> TrialResult:
        """What a trial of the configuration reports if the stages in `built` exist already. vae_only: it ends after its VAE."""
        stages = self.stage_records(row.stages_of_vae if vae_only else row.stages, built)
        spent = {stage["kind"]: stage["seconds"] for stage in stages if not stage["reused"]}
        metrics = row.metrics_of_vae if vae_only else dict(row.metrics)
        return TrialResult(metrics, constraint=row.constraint, pruned=row.pruned or vae_only, stages=stages, seconds=spent)

    def stage_records(self, stages: Iterable[StageName], built: Container[StageName]) -> list[dict[str, Any]]:
        """Stage records as in TrialResult; what is in `built` is reused."""
        return [
            {"kind": kind, "key": key, "label": "", "seconds": self.seconds[kind, key], "reused": (kind, key) in built}
            for kind, key in stages
        ]


def _nearest(value: float, choices: Sequence[float]) -> int:
    def distance(index: int) -> float:
        choice = choices[index]
        return abs(math.log(choice / value)) if choice > 0 and value > 0 else abs(choice - value)

    return min(range(len(choices)), key=distance)
