"""How a stage is got: from the store, or built there once with the inputs that are missing; and what a study will cost."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tune.leases import HEARTBEAT, PATIENCE, Lease, acquire
from tune.sources import source_digest
from tune.stage_graph import ProgressCallback, Scope, Stage, StageContext, topological
from tune.store import DamagedStage, Manifest, StageStore

__all__ = ["PlanRow", "Stage", "StageContext", "StageResult", "StageUse", "ensure", "plan", "source_digest", "topological"]

logger = logging.getLogger("tune.pipeline")

CostSource = Literal["stored", "observed", "expected"]
_ELAPSED = ".elapsed"


@dataclass(frozen=True)
class StageUse:
    """One use of a stage: `seconds` is what building it cost when it was built, now or at any time before."""

    kind: str
    key: str
    label: str
    seconds: float
    reused: bool


@dataclass(frozen=True)
class StageResult:
    """Where a finished stage is; `seconds` as in StageUse."""

    path: Path
    key: str
    seconds: float
    reused: bool
    log: Mapping[str, Any]


def ensure(
    stage: Stage,
    store: StageStore,
    *,
    uses: list[StageUse] | None = None,
    progress: ProgressCallback | None = None,
    heartbeat: float = HEARTBEAT,
    patience: float = PATIENCE,
) -> StageResult:
    """The finished stage from the store; built, with the inputs that are missing, if it is not there.

    A stage that is there does not touch its inputs. Of several processes that ask at once one builds and the others wait;
    a builder that dies is followed by one of them, which resumes from its scratch folder. A damaged stage is moved aside,
    reported by a warning and rebuilt. Every use is appended to `uses`.

    Raises what the build raises, and InputError if the storage folder cannot be written or is full.
    """
    options: dict[str, Any] = {"progress": progress, "heartbeat": heartbeat, "patience": patience}

    def finished(manifest: Manifest, reused: bool) -> StageResult:
        if uses is not None:
            uses.append(StageUse(stage.kind, stage.key, stage.label, manifest.seconds, reused))
        path = store.path(stage.kind, stage.key)
        return StageResult(path, stage.key, manifest.seconds, reused, manifest.log)

    while True:
        damaged = False
        try:
            manifest = store.read(stage.kind, stage.key)
        except DamagedStage:
            manifest, damaged = None, True
        if manifest is not None:
            return finished(manifest, reused=True)

        inputs = {name: ensure(below, store, uses=uses, **options).path for name, below in stage.inputs.items()}
        clock = Stopwatch(store.scratch(stage.kind, stage.key))
        with store.storage_errors():
            lease = acquire(
                store.lease_folder(stage.kind, stage.key),
                until=(lambda: False) if damaged else (lambda: store.exists(stage.kind, stage.key)),
                on_beat=clock.save,
                heartbeat=heartbeat,
                patience=patience,
            )
        if lease is None:
            continue
        with lease:
            if _usable(stage, store):
                continue
            manifest = _build(stage, store, inputs, progress, lease, clock)
        if manifest is not None:
            return finished(manifest, reused=False)


def _usable(stage: Stage, store: StageStore) -> bool:
    """With the lease held: whether somebody finished the stage meanwhile; a damaged one is moved aside."""
    try:
        return store.read(stage.kind, stage.key) is not None
    except DamagedStage as damage:
        with store.storage_errors():
            aside = store.quarantine(stage.kind, stage.key)
        logger.warning("%s; moved to %s, and built again", damage, aside)
        return False


class Stopwatch:
    """Seconds of a build, those of killed attempts included: it is saved in the scratch folder at every heartbeat."""

    def __init__(self, scratch: Path) -> None:
        self._file = scratch / _ELAPSED
        self._before = 0.0
        self._start: float | None = None

    def start(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._before = float(self._file.read_text())
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return self._before + (time.perf_counter() - self._start if self._start is not None else 0.0)

    def save(self) -> None:
        if self._start is not None:
            with contextlib.suppress(OSError):  # the folder goes at success, and a lost figure is no reason to fail
                self._file.write_text(f"{self.seconds():.3f}")


def _build(
    stage: Stage, store: StageStore, inputs: Mapping[str, Path], progress: ProgressCallback | None, lease: Lease, clock: Stopwatch
) -> Manifest | None:
    """Builds and commits with the lease held; none if the lease was lost on the way, so that its new holder builds."""
    scratch = store.scratch(stage.kind, stage.key)
    with store.storage_errors():
        resumed = scratch.is_dir() and any(name != _ELAPSED for name in os.listdir(scratch))
        scratch.mkdir(parents=True, exist_ok=True)
        folder = store.start_writing(stage.kind, stage.key)
    context = StageContext(stage, folder, scratch, inputs, progress)
    clock.start()
    try:
        stage.build(context)
        manifest = Manifest(
            kind=stage.kind,
            key=stage.key,
            label=stage.label,
            config=dict(stage.config),
            inputs={name: below.key for name, below in stage.inputs.items()},
            seed=stage.seed,
            dtype=stage.dtype,
            source=source_digest(stage.modules),
            seconds=clock.seconds(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=version("migvis"),
            log=context.log,
        )
        with store.storage_errors():
            return store.commit(folder, manifest)
    except Exception as error:
        if lease.lost:  # a waiter thought us dead and cleared our folder; its result is as good as ours
            return None
        if store.is_full(error):
            raise store.refusal(error) from error
        if resumed:  # a bad checkpoint must not make it fail for ever
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        clock.save()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class PlanRow:
    """A line of `--dry-run`: whether the stage `exists`, and its cost in seconds as `source` knows it."""

    kind: str
    label: str
    key: str
    scope: Scope
    exists: bool
    seconds: float
    source: CostSource


def plan(stages: Iterable[Stage], store: StageStore, expected_seconds: Mapping[str, float]) -> list[PlanRow]:
    """One row per distinct stage that `stages` need, inputs first; reads manifests only, builds and writes nothing.

    A missing stage is estimated by the median cost of its kind in the store, else by `expected_seconds[kind]`, else 0.
    """
    observed: dict[str, float | None] = {}
    rows = []
    for stage in topological(stages):
        if stage.kind not in observed:
            observed[stage.kind] = store.observed_seconds(stage.kind)
        stored = store.peek(stage.kind, stage.key)
        typical = observed[stage.kind]
        if stored is not None:
            cost: tuple[float, CostSource] = (stored.seconds, "stored")
        elif typical is not None:
            cost = (typical, "observed")
        else:
            cost = (expected_seconds.get(stage.kind, 0.0), "expected")
        rows.append(PlanRow(stage.kind, stage.label, stage.key, stage.scope, stored is not None, *cost))
    return rows
