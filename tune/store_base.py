"""What a store of finished stages is, wherever it is kept; tune.store (a folder) and tune.object_store are the two."""

from __future__ import annotations

import contextlib
import errno
import shutil
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from migvis.errors import InputError
from tune.leases import LeasePlace
from tune.manifest import Manifest, StageName
from tune.shared_locks import TakeLock

FULL = {errno.ENOSPC, errno.EDQUOT}


class Store(ABC):
    """Finished stages by kind and key, each complete or not there at all, shared by any number of processes and hosts.

    Builders read and write plain folders of this host, which the store gives. name: for people to read.
    """

    name: str

    @abstractmethod
    def path(self, kind: str, key: str) -> Path:
        """The folder on this host of a finished stage that was read, whether it exists or not."""

    @abstractmethod
    def scratch(self, kind: str, key: str) -> Path:
        """Where, on this host, an unfinished build keeps what it can resume from."""

    @abstractmethod
    def lease(self, kind: str, key: str) -> LeasePlace:
        """Where the right to build the stage is taken."""

    @abstractmethod
    def leases(self) -> list[tuple[StageName, LeasePlace]]:
        """All leases that were taken since the last prune, by stage."""

    @abstractmethod
    def lock(self) -> contextlib.AbstractContextManager[TakeLock]:
        """What tune.store_lock holds while it uses the store."""

    @abstractmethod
    def exists(self, kind: str, key: str) -> bool:
        """Whether the stage is there; says nothing about its health."""

    @abstractmethod
    def read(self, kind: str, key: str) -> Manifest | None:
        """The manifest of a healthy stage, whose files are at `path` then; none if there is no such stage.

        Raises DamagedStage if a file is missing, truncated or altered.
        """

    @abstractmethod
    def peek(self, kind: str, key: str) -> Manifest | None:
        """The manifest of a stage if it can be read; its files are not checked."""

    @abstractmethod
    def stages(self, kind: str | None = None) -> Iterator[StageName]:
        """The stages (of one kind), by kind and key, healthy or not."""

    @abstractmethod
    def start_writing(self, kind: str, key: str) -> Path:
        """A new empty folder to write the stage into; what earlier holders of its lease left of theirs is removed."""

    @abstractmethod
    def commit(self, folder: Path, manifest: Manifest) -> Manifest:
        """Publishes what `folder` holds, all at once. Of two racing writers the second is discarded.

        Returns the manifest with its files. Raises ValueError if the stage wrote no file or something that is not a plain file.
        """

    @abstractmethod
    def quarantine(self, kind: str, key: str) -> str | None:
        """Moves a damaged stage out of the way (call it with the stage's lease held); its new place, or none if it is gone."""

    @abstractmethod
    def refusal(self, error: Exception) -> InputError:
        """What the storage refused, as one line that names it."""

    @abstractmethod
    def is_full(self, error: Exception) -> bool:
        """Whether `error` comes from storage that is full or away."""

    @abstractmethod
    def storage_errors(self) -> contextlib.AbstractContextManager[None]:
        """Turns what the storage refuses (permission, full, away) into `refusal`."""

    @abstractmethod
    def fetch_scratch(self, kind: str, key: str) -> None:
        """Brings what earlier attempts left to this host (call it with the stage's lease held)."""

    @abstractmethod
    def keep_scratch(self, kind: str, key: str, *, wait: bool = False) -> None:
        """Keeps what can be resumed from for other hosts, too; in the background, unless told to wait for it."""

    def forget_scratch(self, kind: str, key: str) -> None:
        """Removes what can be resumed from."""
        shutil.rmtree(self.scratch(kind, key), ignore_errors=True)

    def manifests(self, kind: str | None = None) -> Iterator[Manifest]:
        """Manifests of the stored stages (of one kind), by key; their files are not checked, unreadable manifests left out."""
        for stage in self.stages(kind):
            manifest = self.peek(*stage)
            if manifest is not None:
                yield manifest

    def observed_seconds(self, kind: str) -> float | None:
        """Median cost of the stored stages of a kind in seconds; none if there is none."""
        seconds = [manifest.seconds for manifest in self.manifests(kind)]
        return statistics.median(seconds) if seconds else None
