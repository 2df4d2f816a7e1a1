"""What a study has found: the metrics of every case, subject and seed, and where the stages behind them are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from migvis.data import Dataset
from migvis.statistics import Interval, bootstrap_interval, paired_difference, t_interval
from migvis.weights import read_json, read_tensors
from tune.ablation.algebra import Case
from tune.ablation.study import Reading, Study
from tune.context import StudyContext
from tune.manifest import DamagedStage, StageName
from tune.pipeline import StageUse, topological
from tune.selection import own_move
from tune.stage_data import dataset_at
from tune.stage_graph import Stage
from tune.stages import Stages
from tune.store_base import Store


@dataclass(frozen=True)
class Cell:
    """One fit and evaluation of a case."""

    case: str
    subject: str
    seed: int

    def __str__(self) -> str:
        return f"{self.case}, {self.subject}, seed {self.seed}"


@dataclass
class Outcome:
    """Results by cell. context: of the base. same: cases left out, since here they are the base itself.

    uses: of each stage by (kind, key), whether it was built for this study. failed: by cell, why. charts: their page in MLflow,
    once it is known.
    """

    study: Study
    context: StudyContext
    cases: Sequence[Case]
    subjects: Sequence[str]
    seeds: Sequence[int]
    stages: dict[str, Stages]
    readings: dict[Cell, list[Reading]]
    same: Sequence[str] = ()
    metrics: dict[Cell, dict[str, float]] = field(default_factory=dict)
    uses: dict[StageName, StageUse] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)
    charts: str = ""

    @cached_property
    def needed(self) -> dict[StageName, Stage]:
        """All stages that are read, with what these need, inputs first, by (kind, key)."""
        stages = topological(reading.stage for readings in self.readings.values() for reading in readings)
        return {(stage.kind, stage.key): stage for stage in stages}

    @cached_property
    def store(self) -> Store:
        return self.context.store()

    @cached_property
    def dataset(self) -> Dataset:
        return dataset_at(self.context.data_path)

    def is_whole(self, stage: Stage) -> bool:
        """Whether the store has the stage and its files are as they were written."""
        try:
            return self.store.read(stage.kind, stage.key) is not None
        except DamagedStage:
            return False

    def path(self, cell: Cell, kind: str, prefix: str = "") -> Path | None:
        """The folder of the stage of this kind that is read of a cell, itself or below; none where there is none."""
        for reading in self.readings.get(cell, []):
            if reading.prefix == prefix:
                for stage in (reading.stage, *reading.stage.inputs.values()):
                    if stage.kind == kind and self.store.exists(stage.kind, stage.key):
                        return self.store.path(stage.kind, stage.key)
        return None

    def folder(self, cell: Cell, kind: str) -> Path:
        """`path` of a stage that is known to be there."""
        found = self.path(cell, kind)
        assert found is not None
        return found

    def first(self, case: str, subject: str, *kinds: str) -> Cell | None:
        """The cell of the first seed that has stages of all these kinds; none where no seed has."""
        cells = (Cell(case, subject, seed) for seed in self.seeds)
        return next((cell for cell in cells if all(self.path(cell, kind) is not None for kind in kinds)), None)

    def seeds_of(self, case: str, subject: str, metric: str) -> dict[int, float]:
        """The values of a metric by seed, those that there are."""
        found = {seed: self.metrics.get(Cell(case, subject, seed), {}).get(metric) for seed in self.seeds}
        return {seed: value for seed, value in found.items() if value is not None}

    def interval(self, case: str, subject: str, metric: str) -> Interval | None:
        """Mean, sd and Student's interval of a metric over seeds; none where it was not measured."""
        values = list(self.seeds_of(case, subject, metric).values())
        return t_interval(values) if values else None

    def difference(self, case: str, baseline: str, subject: str, metric: str) -> Interval | None:
        """case − baseline, paired by seed; none where no seed has both."""
        own, other = self.seeds_of(case, subject, metric), self.seeds_of(baseline, subject, metric)
        both = [seed for seed in own if seed in other]
        return paired_difference([own[seed] for seed in both], [other[seed] for seed in both]) if both else None

    def over_stimuli(self, case: str, baseline: str, subject: str) -> Interval | None:
        """The difference of selectivity over pairs of stimuli, each pair's a mean over groups and seeds, by bootstrap."""
        rows = []
        for seed in self.seeds:
            own, other = (self._scores(Cell(name, subject, seed)) for name in (case, baseline))
            if own is not None and other is not None and len(own) == len(other):
                rows.append([a - b for a, b in zip(own, other, strict=True)])
        if not rows:
            return None
        return bootstrap_interval([sum(column) / len(column) for column in zip(*rows, strict=True)])

    def _scores(self, cell: Cell) -> list[float] | None:
        """The score of each pair of test stimuli, a mean over groups 1 and 2."""
        folder = self.path(cell, "evaluation")
        readings = {} if folder is None else read_tensors(folder / "readings.safetensors")
        if "score" not in readings:
            return None
        pairs = int(readings["pair"].max()) + 1
        return [float(readings["score"][readings["pair"] == pair].mean()) for pair in range(pairs)]


def read_metrics(readings: Sequence[Reading], store: Store) -> dict[str, float]:
    """The metrics of a cell's finished stages, those that are finite, and of edits the mean own move."""
    found: dict[str, float] = {}
    for reading in readings:
        path = store.path(reading.stage.kind, reading.stage.key) / "metrics.json"
        if path.is_file():
            values = {name: float(value) for name, value in read_json(path).items() if value is not None}
            move = own_move(values)
            values |= {} if move is None else {"own_move": move}
            # Of blank edits a distance is infinite: that is no value to take a mean of.
            found |= {f"{reading.prefix}{name}": value for name, value in values.items() if math.isfinite(value)}
    return found


def slug(text: str) -> str:
    """`text` as the name of a file: letters and digits, all else a dash, and a digest that keeps different texts apart."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
    return f"{plain[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
