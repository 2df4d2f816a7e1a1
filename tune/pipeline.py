"""How a stage is got: from the store, or built there once with the inputs that are missing; and what a study will cost."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tune.leases import HEARTBEAT, PATIENCE, Lease, acquire
from tune.manifest import DamagedStage, Manifest
from tune.sources import source_digest
from tune.stage_building import Building, build
from tune.stage_graph import ProgressCallback, Scope, Stage, StageContext, topological
from tune.store_base import Store

__all__ = [
    "PlanRow",
    "Stage",
    "StageContext",
    "StageResult",
    "StageUse",
    "ensure",
    "ensure_together",
    "plan",
    "source_digest",
    "topological",
]

logger = logging.getLogger("tune.pipeline")

CostSource = Literal["stored", "observed", "expected"]


@dataclass(frozen=True)
class StageUse:
    """One use of a stage: `seconds` is what building it cost when it was built, now or at any time before.

    damage: of the stage that was found instead, why it had to be built again.
    """

    kind: str
    key: str
    label: str
    seconds: float
    reused: bool
    damage: str = ""


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
    store: Store,
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
            uses.append(StageUse(stage.kind, stage.key, stage.label, manifest.seconds, reused, damages.get(stage.key, "")))
        path = store.path(stage.kind, stage.key)
        return StageResult(path, stage.key, manifest.seconds, reused, manifest.log)

    damages: dict[str, str] = {}
    while True:
        damaged = False
        try:
            manifest = store.read(stage.kind, stage.key)
        except DamagedStage:
            manifest, damaged = None, True
        if manifest is not None:
            return finished(manifest, reused=True)

        inputs = _inputs(stage, store, uses, options)
        started = Building(stage, store, inputs, progress)
        lease = _lease(started, store, heartbeat, patience, damaged=damaged)
        if lease is None:
            continue
        with lease:
            if _usable(stage, store, damages):
                continue
            (manifest,) = build([started], [lease], store, lambda contexts: stage.build(*contexts))
        if manifest is not None:
            return finished(manifest, reused=False)


def ensure_together(
    stages: Iterable[Stage],
    store: Store,
    *,
    uses: list[StageUse] | None = None,
    progress: ProgressCallback | None = None,
    heartbeat: float = HEARTBEAT,
    patience: float = PATIENCE,
) -> None:
    """Builds those of the stages that are missing and can be built at once (Stage.together), so that `ensure` finds them.

    Leaves to `ensure` what has no other of its bucket, and waits for what somebody else builds meanwhile. Raises as
    `ensure` does.
    """
    options: dict[str, Any] = {"progress": progress, "heartbeat": heartbeat, "patience": patience}
    buckets: dict[str, dict[str, Stage]] = {}
    for stage in stages:
        if stage.together is not None and not store.exists(stage.kind, stage.key):
            buckets.setdefault(stage.together.bucket, {})[stage.key] = stage
    for bucket in buckets.values():
        # Leases are taken in one order everywhere, so that no two processes wait for each other.
        missing = [bucket[key] for key in sorted(bucket)]
        if len(missing) < 2:
            continue
        needed = {stage.key: _inputs(stage, store, uses, options) for stage in missing}
        with contextlib.ExitStack() as held:
            building, leases = [], []
            damages: dict[str, str] = {}
            for stage in missing:
                started = Building(stage, store, needed[stage.key], progress)
                lease = _lease(started, store, heartbeat, patience)
                if lease is not None:
                    held.enter_context(lease)
                    if not _usable(stage, store, damages):
                        building.append(started)
                        leases.append(lease)
            together = missing[0].together
            assert together is not None
            if len(building) < 2:
                continue
            manifests = build(building, leases, store, together.build)
        if uses is not None:
            uses += [
                StageUse(one.kind, one.key, one.label, one.seconds, reused=False, damage=damages.get(one.key, ""))
                for one in manifests
                if one is not None
            ]


def _inputs(stage: Stage, store: Store, uses: list[StageUse] | None, options: Mapping[str, Any]) -> dict[str, Path]:
    return {name: ensure(below, store, uses=uses, **options).path for name, below in stage.inputs.items()}


def _lease(started: Building, store: Store, heartbeat: float, patience: float, *, damaged: bool = False) -> Lease | None:
    """The right to build a stage; none once somebody else has built it."""
    stage = started.stage
    with store.storage_errors():
        return acquire(
            store.lease(stage.kind, stage.key),
            until=(lambda: False) if damaged else (lambda: store.exists(stage.kind, stage.key)),
            on_beat=started.keep,
            heartbeat=heartbeat,
            patience=patience,
        )


def _usable(stage: Stage, store: Store, damages: dict[str, str]) -> bool:
    """With the lease held: whether somebody finished the stage meanwhile; a damaged one is moved aside, and noted by key."""
    try:
        return store.read(stage.kind, stage.key) is not None
    except DamagedStage as damage:
        with store.storage_errors():
            aside = store.quarantine(stage.kind, stage.key)
        damages[stage.key] = f"{damage}; moved to {aside}, and built again"
        logger.warning(damages[stage.key])
        return False


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


def plan(stages: Iterable[Stage], store: Store, expected_seconds: Mapping[str, float]) -> list[PlanRow]:
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
