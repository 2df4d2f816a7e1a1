"""Studies whose results come from a factorial table instead of fits: Ray, databases and tracking are real, stages take no time.

So the service can be measured by itself. Each trial leaves files as large as those of the quick preset, and waits until the
one before it is written to MLflow whole, so that none of the service's work hides behind a later trial.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from migvis.config import Configuration
from tune.context import DataSummary, Hooks, StudyContext
from tune.factorial import FactorialTable, StageName
from tune.selection import Selected
from tune.study_config import StudyConfig
from tune.study_folder import write_json
from tune.study_lock import driver_process
from tune.tracking_writer import sent_key
from tune.trial_result import FinalResult, Prepared, TrialResult

TRAINING_PICTURES = 900
METRICS, CURVES, CURVE_POINTS = 80, 12, 16
"""How many a trial of the quick preset reports."""
PICTURE_SHAPE, ENLARGED = (240, 400), 2
"""Pixels of noise, which take as many bytes as a grid of edits, and how much larger each is drawn."""
WEIGHTS = {"bank": 4_000, "vae": 10_000, "critic": 320_000}
"""Numbers in a trial's models."""
_PATIENCE, _POLL = 120.0, 0.02
"""Seconds after which a trial that is not written to MLflow is an error, and between two looks."""


@dataclass(frozen=True)
class Moment:
    """What a replayed trial saw of its study. Times: seconds of the monotonic clock, which the processes of a machine share.

    arrived: the trial was started. began: the trial before it was written to MLflow whole. ended: its files were there.
    cpu, memory: the driver's CPU seconds and resident bytes when the trial began. ledger, tracking: bytes of the databases.
    """

    number: int
    arrived: float
    began: float
    ended: float
    cpu: float
    memory: int
    ledger: int
    tracking: int


def moments(folder: Path) -> list[Moment]:
    """What the trials of the study in `folder` saw, in the order in which they ran."""
    lines = (folder / "moments.jsonl").read_text(encoding="utf-8").splitlines()
    return [Moment(**json.loads(line)) for line in lines]


def replayed(table: FactorialTable) -> Hooks:
    """The hooks of a study over `table`: each trial reports the configuration of the table that is nearest to its own.

    Which of its stages exist already follows from the earlier trials of the study; those that all configurations share are
    built before the first. One trial at a time, and the driver on this machine with its tracking database in the storage.
    """
    return Hooks(
        open_data=_open_data,
        prepare=partial(_prepare, table),
        run_trial=partial(_run_trial, table),
        finish=partial(_finish, table),
        plan=lambda context, space: f"replays a table of {len(table.rows)} configurations",
    )


def _open_data(config: StudyConfig, storage: Path) -> DataSummary:
    return DataSummary(storage / "replayed", "replayed", TRAINING_PICTURES)


def _prepare(table: FactorialTable, context: StudyContext) -> Prepared:
    kinds = [kind for kind, _ in table.seconds]
    shared = [stage for stage in table.seconds if kinds.count(stage[0]) == 1]
    there = _there_before(context, shared, "prepare")
    return Prepared(table.stage_records(shared, there))


def _run_trial(
    table: FactorialTable,
    context: StudyContext,
    configuration: Configuration,
    params: dict[str, Any],
    number: int,
    vae_only: bool = False,
) -> TrialResult:
    arrived = time.monotonic()
    if number > 0:
        _wait_until_written(context, number - 1)
    began = time.monotonic()
    seen = _driver(context)
    row = table.nearest(params)
    used = row.stages_of_vae if vae_only else row.stages
    result = _as_large(table.result(row, _there_before(context, used, f"trial {number}"), vae_only), context, number)
    moment = Moment(number, arrived, began, time.monotonic(), **seen)
    with open(context.folder / "moments.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(moment)) + "\n")
    return result


def _finish(table: FactorialTable, context: StudyContext, selected: Selected) -> FinalResult:
    folder = context.folder / "export"
    folder.mkdir(exist_ok=True)
    result = _as_large(TrialResult(dict(table.nearest(selected.params).metrics)), context, selected.trial)
    write_json(folder / "configuration.json", selected.params)
    return FinalResult(result.metrics, folder, images=result.images, artifacts=result.artifacts)


def _ledger_of(context: StudyContext) -> Path:
    return context.folder / "optuna.db"


def _there_before(context: StudyContext, stages: Iterable[StageName], who: str) -> set[StageName]:
    """Those of the stages that somebody else than `who` built; the others are now built by `who`, also if it is killed."""
    folder = context.folder / "built"
    folder.mkdir(exist_ok=True)
    there = set()
    for kind, key in stages:
        path = folder / f"{kind}-{key}"
        if not path.exists():
            path.write_text(who, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != who:
            there.add((kind, key))
    return there


def _wait_until_written(context: StudyContext, number: int) -> None:
    """Returns once the study knows that the trial was written to MLflow whole. Raises TimeoutError."""
    query = "SELECT 1 FROM study_user_attributes WHERE key = ?"
    give_up = time.monotonic() + _PATIENCE
    with closing(sqlite3.connect(f"file:{_ledger_of(context)}?mode=ro", uri=True, timeout=_PATIENCE)) as ledger:
        while ledger.execute(query, (sent_key(number),)).fetchone() is None:
            if time.monotonic() > give_up:
                raise TimeoutError(f"trial {number} was not written to MLflow within {_PATIENCE:.0f} s")
            time.sleep(_POLL)


def _driver(context: StudyContext) -> dict[str, Any]:
    """CPU seconds and memory of the study's driver, and its databases' sizes."""
    process = Path("/proc") / str(driver_process(context.folder))
    ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    pages = int((process / "statm").read_text().split()[1])
    return {
        "cpu": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "ledger": _ledger_of(context).stat().st_size,
        "tracking": (context.storage / "mlflow.db").stat().st_size,
    }


def _as_large(result: TrialResult, context: StudyContext, number: int) -> TrialResult:
    """The result with as many metrics, curves and files as a trial of the quick preset has; the table has but a few of them."""
    from PIL import Image
    from safetensors.numpy import save_file

    random = np.random.default_rng(number)
    folder = context.trial_folder(number)
    models = folder / "models"
    models.mkdir(exist_ok=True)
    for name, count in WEIGHTS.items():
        save_file({"weights": random.standard_normal(count, dtype=np.float32)}, models / f"{name}.safetensors")
    noise = random.integers(0, 256, PICTURE_SHAPE, dtype=np.uint8)
    Image.fromarray(noise.repeat(ENLARGED, 0).repeat(ENLARGED, 1)).save(folder / "edits.png")
    more = {f"more/{index}": float(random.random()) for index in range(METRICS - len(result.metrics))}
    metrics = {**result.metrics, **more}
    curve = [(step, float(random.random())) for step in range(CURVE_POINTS)]
    return replace(
        result,
        metrics=metrics,
        per_seed={f"M1/{name}": [value] for name, value in metrics.items()},
        curves={f"curve/{index}": curve for index in range(CURVES)},
        images={"edits": folder / "edits.png"},
        artifacts={"models": models},
    )
