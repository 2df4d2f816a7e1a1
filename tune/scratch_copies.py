"""What unfinished builds resume from, copied to an object store while they run, and brought to the host that takes over."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tune.manifest import DamagedStage, StageName, seal_of
from tune.object_trees import delete_tree, fetch_files, manifest_of, put_manifest, put_open_files
from tune.objects import Objects, ObjectsAway
from tune.store import StageStore

COPY_EVERY = 10.0
"""Seconds between two copies, at least: what a host that takes over has to do again."""

logger = logging.getLogger("tune.pipeline.scratch")


class ScratchCopies:
    """Copies of scratch folders of this host's cache `local`, one for each stage.

    Which copy a folder began from, or was last uploaded as, stands beside it (`.copy`): another one is of another host that
    went on since, and wins.
    """

    def __init__(self, objects: Objects, local: StageStore) -> None:
        self._objects, self._local = objects, local
        self._uploads = ThreadPoolExecutor(1, thread_name_prefix="scratch")
        self._running: dict[StageName, Future[None]] = {}
        self._began: dict[StageName, float] = {}
        self._known: dict[StageName, dict[str, tuple[Any, str]]] = {}
        self._lock = threading.Lock()

    def fetch(self, name: StageName) -> None:
        """Makes the folder that of the latest attempt on any host."""
        folder, noted = self._local.scratch(*name), self._note(name)
        try:
            copy = manifest_of(self._objects, _place(name))
            seal = "" if copy is None else copy[1]
            if seal == (noted.read_text() if noted.exists() else ""):
                return  # as it was uploaded from here, or gone on with since
            shutil.rmtree(folder, ignore_errors=True)
            noted.unlink(missing_ok=True)
            if copy is None:
                return  # forgotten by another host
            folder.mkdir(parents=True)
            fetch_files(self._objects, _place(name), copy[0], folder)
        except DamagedStage as damage:
            logger.warning("%s; begun anew", damage)
            shutil.rmtree(folder, ignore_errors=True)
            delete_tree(self._objects, _place(name))
        else:
            noted.write_text(seal)

    def keep(self, name: StageName, *, wait: bool) -> None:
        """Uploads what changed in the folder, in the background each COPY_EVERY seconds; wait: now, and until it is done."""
        with self._lock:
            running, now = self._running.get(name), time.monotonic()
            if not wait and (running is None or running.done()) and now - self._began.get(name, -COPY_EVERY) >= COPY_EVERY:
                self._running[name], self._began[name] = self._uploads.submit(self._upload, name), now
        if wait:
            if running is not None:
                running.result()
            self._upload(name)

    def forget(self, name: StageName) -> None:
        """Deletes the folder and its copy."""
        with self._lock:
            running = self._running.pop(name, None)
            self._known.pop(name, None)
        if running is not None:
            running.result()
        shutil.rmtree(self._local.scratch(*name), ignore_errors=True)
        self._note(name).unlink(missing_ok=True)
        delete_tree(self._objects, _place(name))

    def _note(self, name: StageName) -> Path:
        folder = self._local.scratch(*name)
        return folder.with_name(f"{folder.name}.copy")

    def _upload(self, name: StageName) -> None:
        """A copy that cannot be made is missed: the next one is as good."""
        folder, place = self._local.scratch(*name), _place(name)
        with contextlib.suppress(ObjectsAway, DamagedStage, OSError):
            before = manifest_of(self._objects, place)
            there = set() if before is None else {entry["sha256"] for entry in before[0]["files"].values()}
            content = put_open_files(self._objects, place, folder, self._known.setdefault(name, {}), there)
            if not content["files"] or (before is not None and content == before[0]):
                return
            put_manifest(self._objects, place, content)
            self._note(name).write_text(seal_of(content))
            for digest in there - {entry["sha256"] for entry in content["files"].values()}:
                self._objects.delete(f"{place}/{digest}")


def _place(name: StageName) -> str:
    return f".partial/{'-'.join(name)}"
