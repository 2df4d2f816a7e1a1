"""The stage store on an object store, for hosts that share no folder.

    <uri>/<kind>/<key>/             a finished stage (tune.object_trees)
    <uri>/.partial/<kind>-<key>/    what an unfinished build resumes from, as of its last upload
    <uri>/.damaged/                 stages whose files no longer match their digests

What is read or written on this host lies in its cache, which is a stage store of its own (tune.store): checked as that is,
and fetched again where it does not match. Leases are in a database that all hosts reach.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from migvis.errors import InputError
from tune.database import DatabaseAway
from tune.database_leases import DatabaseLease, leases_of
from tune.leases import LeasePlace
from tune.manifest import MANIFEST, NAME, Content, DamagedStage, Manifest, StageName, check_names, describe_files, name_of
from tune.object_trees import fetch_files, manifest_of, move_tree, put_files, put_manifest
from tune.objects import ObjectsAway, open_objects
from tune.scratch_copies import ScratchCopies
from tune.shared_locks import TakeLock, database_lock
from tune.store import StageStore
from tune.store_base import Store

logger = logging.getLogger("tune.pipeline.store")


def default_cache(uri: str) -> Path:
    """Where a host keeps what it has of the store at `uri`: in MIGVIS_CACHE, or else in the user's cache folder."""
    named, base = os.environ.get("MIGVIS_CACHE", ""), os.environ.get("XDG_CACHE_HOME", "")
    users = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return (Path(named) if named else users / "migvis") / hashlib.sha256(uri.encode()).hexdigest()[:16]


def _place(kind: str, key: str) -> str:
    check_names(kind, key)
    return f"{kind}/{key}"


class ObjectStore(Store):
    """A content-addressed store at `uri` (tune.objects), with its leases in the database at the URL `database`.

    cache: this host's folder, which its processes share. Making one touches nothing.
    """

    def __init__(self, uri: str, database: str, cache: Path | None = None) -> None:
        self.uri = self.name = uri.rstrip("/")
        self._database = database
        self.local = StageStore(cache or default_cache(self.uri))
        self.objects = open_objects(self.uri)
        self._copies = ScratchCopies(self.objects, self.local)

    def path(self, kind: str, key: str) -> Path:
        return self.local.path(kind, key)

    def scratch(self, kind: str, key: str) -> Path:
        return self.local.scratch(kind, key)

    def lease(self, kind: str, key: str) -> LeasePlace:
        return DatabaseLease(self._database, self.uri, f"{kind}-{key}")

    def leases(self) -> list[tuple[StageName, LeasePlace]]:
        with self.storage_errors():
            names = [(name_of(place.name), place) for place in leases_of(self._database, self.uri)]
        return [(name, place) for name, place in names if name is not None]

    def lock(self) -> contextlib.AbstractContextManager[TakeLock]:
        return database_lock(self._database, self.uri)

    @contextlib.contextmanager
    def storage_errors(self) -> Iterator[None]:
        try:
            with self.local.storage_errors():
                yield
        except (ObjectsAway, DatabaseAway) as error:
            raise self.refusal(error) from error

    def refusal(self, error: Exception) -> InputError:
        if isinstance(error, ObjectsAway):
            return InputError(f"--stages {self.uri}: {error}")
        if isinstance(error, DatabaseAway):
            return InputError(f"--database: {error}")
        return self.local.refusal(error)

    def is_full(self, error: Exception) -> bool:
        return isinstance(error, ObjectsAway | DatabaseAway) or self.local.is_full(error)

    def exists(self, kind: str, key: str) -> bool:
        with self.storage_errors():
            return self.objects.size(f"{_place(kind, key)}/{MANIFEST}") is not None

    def read(self, kind: str, key: str) -> Manifest | None:
        with self.storage_errors():
            found = self._manifest(kind, key)
            if found is not None:
                self._bring((kind, key), found.content_with(found.files))
            return found

    def _manifest(self, kind: str, key: str) -> Manifest | None:
        place = _place(kind, key)
        found = manifest_of(self.objects, place)
        return None if found is None else Manifest.of(found[0], (kind, key), f"{self.uri}/{place}")

    def _bring(self, name: StageName, content: Content) -> None:
        """Makes the cache's copy that of `content`. Raises DamagedStage if it cannot be fetched as it was written."""
        if self._has(name, content):
            return
        with self._alone_with(name):
            if self._has(name, content):  # another process of this host fetched it
                return
            folder = self.local.root / ".fetching" / "-".join(name)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                fetch_files(self.objects, "/".join(name), content, folder)
                self._replace(folder, name, content)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _has(self, name: StageName, content: Content) -> bool:
        try:
            cached = self.local.read(*name)
        except DamagedStage as damage:
            logger.warning("%s; fetched again from %s", damage, self.uri)
            return False
        return cached is not None and cached.content_with(cached.files) == content

    def _replace(self, folder: Path, name: StageName, content: Content) -> None:
        """Puts a folder into the cache, instead of what may be there."""
        aside = self.local.root / ".fetching" / uuid.uuid4().hex
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path(*name), aside)
            shutil.rmtree(aside, ignore_errors=True)
        self.local.place(folder, name, content)

    @contextlib.contextmanager
    def _alone_with(self, name: StageName) -> Iterator[None]:
        """Keeps this host's other processes from fetching the same stage meanwhile."""
        fetching = self.local.root / ".fetching"
        fetching.mkdir(parents=True, exist_ok=True)
        with open(fetching / f"{'-'.join(name)}.lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def peek(self, kind: str, key: str) -> Manifest | None:
        with self.storage_errors(), contextlib.suppress(DamagedStage):
            return self._manifest(kind, key)
        return None

    def stages(self, kind: str | None = None) -> Iterator[StageName]:
        """The stages that have a manifest."""
        with self.storage_errors():
            for name, _ in self.objects.below(kind or ""):
                parts = name.split("/")
                if len(parts) == 3 and parts[2] == MANIFEST and all(map(NAME.fullmatch, parts[:2])):
                    yield parts[0], parts[1]

    def start_writing(self, kind: str, key: str) -> Path:
        return self.local.start_writing(kind, key)

    def commit(self, folder: Path, manifest: Manifest) -> Manifest:
        """Publishes what `folder` holds: files first, the manifest last."""
        name, where = (manifest.kind, manifest.key), _place(manifest.kind, manifest.key)
        content = manifest.content_with(describe_files(folder, manifest.kind))
        put_files(self.objects, where, folder, content)
        if self.exists(*name):  # of another writer, whose stage may be read already; our files go with the next prune
            shutil.rmtree(folder, ignore_errors=True)
            theirs = self.read(*name)
            if theirs is not None:
                self.forget_scratch(*name)
                return theirs
            raise ObjectsAway(f"{where}: vanished while it was read")
        put_manifest(self.objects, where, content)
        with self._alone_with(name):
            self._replace(folder, name, content)
        self.forget_scratch(*name)
        return Manifest(**content)

    def quarantine(self, kind: str, key: str) -> str | None:
        shutil.rmtree(self.path(kind, key), ignore_errors=True)
        if not self.exists(kind, key):
            return None
        aside = f".damaged/{kind}-{key}-{uuid.uuid4().hex[:8]}"
        move_tree(self.objects, f"{kind}/{key}", aside)
        return f"{self.uri}/{aside}"

    def fetch_scratch(self, kind: str, key: str) -> None:
        self._copies.fetch((kind, key))

    def keep_scratch(self, kind: str, key: str, *, wait: bool = False) -> None:
        self._copies.keep((kind, key), wait=wait)

    def forget_scratch(self, kind: str, key: str) -> None:
        self._copies.forget((kind, key))
