"""The stage store in a folder: finished stages named by their content's key, complete or not there at all.

    <root>/<kind>/<key>/            the stage's files and manifest.json
    <root>/.writing/                stages being written; renamed into place when complete
    <root>/.partial/<kind>-<key>/   what an unfinished build resumes from (a fit's checkpoint)
    <root>/.leases/<kind>-<key>/    who builds it now
    <root>/.damaged/                stages whose files no longer match their digests
    <root>/.trash-<number>/         what was pruned and is not yet deleted (tune.pruning)
    <root>/.lock                    held by all who read or write here (tune.store_lock)
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from migvis.errors import InputError
from tune.folder_leases import FolderLease
from tune.leases import LeasePlace
from tune.manifest import (
    MANIFEST,
    NAME,
    Content,
    DamagedStage,
    Manifest,
    StageName,
    check_file,
    check_names,
    describe_files,
    name_of,
    seal_of,
    sealed,
    unsealed,
)
from tune.shared_locks import TakeLock, file_lock
from tune.store_base import FULL, Store

_UNWRITABLE = FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}


def _sync(path: Path) -> None:
    """Forces a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StageStore(Store):
    """A content-addressed store in the folder `root`, which any number of processes and hosts may share.

    Making one touches nothing on disk. Files are checked against their digests at the first read in this object's life,
    their sizes at every read.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self.name = str(self.root)
        self._verified: set[tuple[str, str, str]] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def storage_errors(self) -> Iterator[None]:
        """Turns what the file system refuses (permission, full, no folder) into InputError naming the storage folder."""
        try:
            yield
        except OSError as error:
            if error.errno in _UNWRITABLE:
                raise self.refusal(error) from error
            raise

    def refusal(self, error: Exception) -> InputError:
        reason = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0]
        return InputError(f"{self.root}: the storage folder cannot be written: {reason}")

    def is_full(self, error: Exception) -> bool:
        """Whether `error` comes from a full disk; torch raises RuntimeError for that, so the free space decides there."""
        if isinstance(error, OSError):
            return error.errno in FULL
        return isinstance(error, RuntimeError) and shutil.disk_usage(self.root).free < 2**20

    def path(self, kind: str, key: str) -> Path:
        check_names(kind, key)
        return self.root / kind / key

    def scratch(self, kind: str, key: str) -> Path:
        return self.root / ".partial" / f"{kind}-{key}"

    def fetch_scratch(self, kind: str, key: str) -> None:
        """Nothing to do: it is where all hosts see it."""

    def keep_scratch(self, kind: str, key: str, *, wait: bool = False) -> None:
        """Nothing to do: it is where all hosts see it."""

    def lease_folder(self, kind: str, key: str) -> Path:
        return self.root / ".leases" / f"{kind}-{key}"

    def lease(self, kind: str, key: str) -> LeasePlace:
        return FolderLease(self.lease_folder(kind, key))

    def leases(self) -> list[tuple[StageName, LeasePlace]]:
        return [(name, FolderLease(path)) for name, path in self.entries(".leases")]

    def lock(self) -> contextlib.AbstractContextManager[TakeLock]:
        return file_lock(self.root / ".lock")

    def exists(self, kind: str, key: str) -> bool:
        return (self.path(kind, key) / MANIFEST).is_file()

    def read(self, kind: str, key: str) -> Manifest | None:
        folder = self.path(kind, key)
        try:
            content, seal = self._content(folder)
        except FileNotFoundError:
            if folder.is_dir():
                raise DamagedStage(f"{folder}: {MANIFEST} is missing") from None
            return None
        manifest = Manifest.of(content, (kind, key), folder / MANIFEST)
        with self._lock:
            verified = (kind, key, seal) in self._verified
        for name, expected in manifest.files.items():
            check_file(folder / name, expected, folder / name, digest=not verified)
        with self._lock:
            self._verified.add((kind, key, seal))
        return manifest

    @staticmethod
    def _content(folder: Path) -> tuple[Content, str]:
        """A manifest's content and seal; raises FileNotFoundError or DamagedStage."""
        try:
            text = (folder / MANIFEST).read_bytes()
        except NotADirectoryError:
            raise FileNotFoundError(folder) from None
        return unsealed(text, folder / MANIFEST)

    def peek(self, kind: str, key: str) -> Manifest | None:
        folder = self.path(kind, key)
        try:
            return Manifest.of(self._content(folder)[0], (kind, key), folder / MANIFEST)
        except (DamagedStage, FileNotFoundError):
            return None

    def stages(self, kind: str | None = None) -> Iterator[StageName]:
        """The stages that have a folder."""
        if not self.root.is_dir():
            return
        for kind_folder in sorted(path for path in self.root.iterdir() if NAME.fullmatch(path.name) and path.is_dir()):
            if kind is None or kind_folder.name == kind:
                names = (path.name for path in sorted(kind_folder.iterdir()) if path.is_dir())
                yield from ((kind_folder.name, name) for name in names if NAME.fullmatch(name))

    def entries(self, place: str) -> list[tuple[StageName, Path]]:
        """What lies in `.writing`, `.partial`, `.leases` or `.damaged`, with the stage that it belongs to."""
        folder = self.root / place
        if not folder.is_dir():
            return []
        named = [(name_of(path.name), path) for path in sorted(folder.iterdir())]
        return [(name, path) for name, path in named if name is not None]

    def start_writing(self, kind: str, key: str) -> Path:
        writing = self.root / ".writing"
        writing.mkdir(parents=True, exist_ok=True)
        for left in writing.glob(f"{kind}-{key}-*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = writing / f"{kind}-{key}-{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def commit(self, folder: Path, manifest: Manifest) -> Manifest:
        """Publishes what `folder` holds: digests, manifest, then one rename."""
        content = manifest.content_with(describe_files(folder, manifest.kind))
        self.place(folder, (manifest.kind, manifest.key), content)
        self.forget_scratch(manifest.kind, manifest.key)
        return Manifest(**content)

    def place(self, folder: Path, name: StageName, content: Content) -> bool:
        """Makes `folder`, whose files `content` describes, the stage `name`; false, and discarded, if there is one."""
        for file in content["files"]:
            _sync(folder / file)
        text = sealed(content)
        (folder / MANIFEST).write_text(text)
        _sync(folder / MANIFEST)
        _sync(folder)
        target = self.path(*name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            return False
        _sync(target.parent)
        with self._lock:
            self._verified.add((*name, seal_of(content)))
        return True

    def quarantine(self, kind: str, key: str) -> str | None:
        aside = self.root / ".damaged" / f"{kind}-{key}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(self.path(kind, key), aside)
        except FileNotFoundError:
            return None
        return str(aside)
