"""Building stages whose leases are held: folders, seconds, manifests; one stage, or several at once by one program."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tune.leases import Lease
from tune.manifest import Manifest
from tune.sources import source_digest
from tune.stage_graph import ProgressCallback, Stage, StageContext
from tune.store_base import Store

_ELAPSED = ".elapsed"


class Building:
    """One stage that is being built, and its seconds: of several that are built at once each has its share.

    Those of killed attempts are included, since they are saved in the scratch folder at every heartbeat of the lease.
    """

    def __init__(self, stage: Stage, store: Store, inputs: Mapping[str, Path], progress: ProgressCallback | None) -> None:
        self.stage = stage
        self.resumed = False
        self._store, self._inputs, self._progress = store, inputs, progress
        self._scratch = store.scratch(stage.kind, stage.key)
        self._file = self._scratch / _ELAPSED
        self._before, self._share = 0.0, 1.0
        self._start: float | None = None

    def start(self, share: float) -> StageContext:
        """Makes the stage's folders, and starts its clock."""
        with self._store.storage_errors():
            self._store.fetch_scratch(self.stage.kind, self.stage.key)
            self.resumed = self._scratch.is_dir() and any(name != _ELAPSED for name in os.listdir(self._scratch))
            self._scratch.mkdir(parents=True, exist_ok=True)
            folder = self._store.start_writing(self.stage.kind, self.stage.key)
        with contextlib.suppress(OSError, ValueError):
            self._before = float(self._file.read_text())
        self._start, self._share = time.perf_counter(), share
        return StageContext(self.stage, folder, self._scratch, self._inputs, self._progress)

    def seconds(self) -> float:
        return self._before + (self._share * (time.perf_counter() - self._start) if self._start is not None else 0.0)

    def keep(self, *, wait: bool = False) -> None:
        """Keeps the seconds, and all that can be resumed from, for whoever goes on."""
        if self._start is not None:
            with contextlib.suppress(OSError):  # the folder goes at success, and a lost figure is no reason to fail
                self._file.write_text(f"{self.seconds():.3f}")
                self._store.keep_scratch(self.stage.kind, self.stage.key, wait=wait)

    def forget(self) -> None:
        """Removes what earlier attempts left: a bad checkpoint must not make the stage fail for ever."""
        self._store.forget_scratch(self.stage.kind, self.stage.key)

    def manifest(self, context: StageContext) -> Manifest:
        stage = self.stage
        return Manifest(
            kind=stage.kind,
            key=stage.key,
            label=stage.label,
            config=dict(stage.config),
            inputs={name: below.key for name, below in stage.inputs.items()},
            seed=stage.seed,
            dtype=stage.dtype,
            source=source_digest(stage.modules),
            seconds=self.seconds(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=version("migvis"),
            log=context.log,
        )


def build(
    building: Sequence[Building],
    leases: Sequence[Lease],
    store: Store,
    program: Callable[[Sequence[StageContext]], None],
) -> list[Manifest | None]:
    """Builds and commits with the leases held; none for a stage whose lease was lost on the way, so that its new holder builds.

    Raises what `program` raises, and InputError if the storage folder cannot be written or is full.
    """
    contexts: list[StageContext] = []
    try:
        contexts += [one.start(1 / len(building)) for one in building]
        try:
            program(contexts)
        except Exception as error:
            if any(lease.lost for lease in leases):  # a waiter thought us dead and cleared a folder
                return [None] * len(building)
            if store.is_full(error):
                raise store.refusal(error) from error
            with contextlib.suppress(OSError):  # of a store that is away meanwhile: what failed is the program
                for one in building:
                    if one.resumed:
                        one.forget()
            raise
        # The first one's scratch folder may hold what all would resume from, and goes when it is committed.
        ends = [_commit(*of_one, store) for of_one in zip(building[::-1], contexts[::-1], leases[::-1], strict=True)]
        return ends[::-1]
    finally:
        for one in building:
            one.keep(wait=True)
        for context in contexts:
            shutil.rmtree(context.folder, ignore_errors=True)


def _commit(one: Building, context: StageContext, lease: Lease, store: Store) -> Manifest | None:
    try:
        with store.storage_errors():
            return store.commit(context.folder, one.manifest(context))
    except Exception:
        if lease.lost:  # its new holder's result is as good as ours
            return None
        raise
