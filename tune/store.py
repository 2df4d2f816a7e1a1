"""The stage store: finished stages in folders named by their content's key, complete or not there at all.

    <root>/<kind>/<key>/            the stage's files and manifest.json
    <root>/.writing/                stages being written; renamed into place when complete
    <root>/.partial/<kind>-<key>/   what an unfinished build resumes from (a fit's checkpoint)
    <root>/.leases/<kind>-<key>/    who builds it now
    <root>/.damaged/                stages whose files no longer match their digests
    <root>/.trash-<number>/         what was pruned and is not yet deleted (tune.pruning)
    <root>/.lock                    held by all who read or write here (tune.store_lock)

No pickle is read or written here; what a stage stores is up to the stage, and the manifest is JSON.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import statistics
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from migvis.errors import InputError
from tune.folder_leases import FolderLease
from tune.leases import LeasePlace

MANIFEST = "manifest.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNWRITABLE = _FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}


StageName = tuple[str, str]
"""(kind, key) of a stage."""


class DamagedStage(Exception):
    """A stored stage whose manifest or files are not what was written; the message says what is wrong."""


@dataclass(frozen=True)
class Manifest:
    """What a stage is and what it cost.

    `inputs` maps names to keys; `files` maps paths inside the folder to {"sha256", "size"}; `seconds` is the cost
    of building it, interrupted attempts included; `log` is what the build noted (JSON: curves, counts, …).
    """

    kind: str
    key: str
    label: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    seed: int | None
    dtype: str
    source: str
    seconds: float
    created: str
    version: str
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    log: Mapping[str, Any] = field(default_factory=dict)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Forces a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class StageStore:
    """A content-addressed store in the folder `root`, which any number of processes and hosts may share.

    Making one touches nothing on disk. Files are checked against their digests at the first read in this object's life,
    their sizes at every read.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
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
            return error.errno in _FULL
        return isinstance(error, RuntimeError) and shutil.disk_usage(self.root).free < 2**20

    def path(self, kind: str, key: str) -> Path:
        """The folder of a finished stage, whether it exists or not."""
        if not _NAME.fullmatch(kind) or not _NAME.fullmatch(key):
            raise ValueError(f"a stage's kind and key are lower-case letters, digits and _: {kind!r}, {key!r}")
        return self.root / kind / key

    def scratch(self, kind: str, key: str) -> Path:
        """Where an unfinished build keeps what it can resume from."""
        return self.root / ".partial" / f"{kind}-{key}"

    def lease_folder(self, kind: str, key: str) -> Path:
        return self.root / ".leases" / f"{kind}-{key}"

    def lease(self, kind: str, key: str) -> LeasePlace:
        """Where the right to build the stage is taken."""
        return FolderLease(self.lease_folder(kind, key))

    def exists(self, kind: str, key: str) -> bool:
        """Whether the stage is there; says nothing about its health."""
        return (self.path(kind, key) / MANIFEST).is_file()

    def read(self, kind: str, key: str) -> Manifest | None:
        """The manifest of a healthy stage, none if there is no such stage.

        Raises DamagedStage if a file is missing, truncated or altered.
        """
        folder = self.path(kind, key)
        try:
            manifest, seal = self._parse(folder)
        except FileNotFoundError:
            if folder.is_dir():
                raise DamagedStage(f"{folder}: {MANIFEST} is missing") from None
            return None
        if (manifest.kind, manifest.key) != (kind, key):
            raise DamagedStage(f"{folder}: {MANIFEST} is that of {manifest.kind} {manifest.key}")
        with self._lock:
            verified = (kind, key, seal) in self._verified
        for name, expected in manifest.files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != expected["size"]:
                raise DamagedStage(f"{path}: missing or not {expected['size']} bytes long")
            if not verified and file_digest(path) != expected["sha256"]:
                raise DamagedStage(f"{path}: its content does not match its digest")
        with self._lock:
            self._verified.add((kind, key, seal))
        return manifest

    @staticmethod
    def _parse(folder: Path) -> tuple[Manifest, str]:
        """Reads and checks a manifest alone; raises FileNotFoundError or DamagedStage."""
        try:
            content = json.loads((folder / MANIFEST).read_text())
            seal = content.pop("seal")
            if seal != _seal(content):
                raise ValueError("altered")
            manifest = Manifest(**content)
        except NotADirectoryError:
            raise FileNotFoundError(folder) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DamagedStage(f"{folder / MANIFEST}: not a manifest as it was written") from None
        for name in manifest.files:  # a shared folder may be written by others: nothing outside the stage is ever read
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise DamagedStage(f"{folder / MANIFEST}: names a file outside its folder")
        return manifest, seal

    def peek(self, kind: str, key: str) -> Manifest | None:
        """The manifest of a stage if it can be read; its files are not checked."""
        try:
            return self._parse(self.path(kind, key))[0]
        except (DamagedStage, FileNotFoundError):
            return None

    def manifests(self, kind: str | None = None) -> Iterator[Manifest]:
        """Manifests of the stored stages (of one kind), by key; their files are not checked, unreadable manifests left out."""
        for stage in self.stages(kind):
            manifest = self.peek(*stage)
            if manifest is not None:
                yield manifest

    def stages(self, kind: str | None = None) -> Iterator[StageName]:
        """The stages (of one kind) that have a folder, by kind and key, healthy or not."""
        if not self.root.is_dir():
            return
        for kind_folder in sorted(path for path in self.root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()):
            if kind is None or kind_folder.name == kind:
                names = (path.name for path in sorted(kind_folder.iterdir()) if path.is_dir())
                yield from ((kind_folder.name, name) for name in names if _NAME.fullmatch(name))

    def entries(self, place: str) -> list[tuple[StageName, Path]]:
        """What lies in `.writing`, `.partial`, `.leases` or `.damaged`, with the stage that it belongs to."""
        folder = self.root / place
        if not folder.is_dir():
            return []
        parts = [(path.name.split("-"), path) for path in sorted(folder.iterdir())]
        return [((name[0], name[1]), path) for name, path in parts if len(name) > 1 and all(map(_NAME.fullmatch, name))]

    def observed_seconds(self, kind: str) -> float | None:
        """Median cost of the stored stages of a kind in seconds; none if there is none."""
        seconds = [manifest.seconds for manifest in self.manifests(kind)]
        return statistics.median(seconds) if seconds else None

    def start_writing(self, kind: str, key: str) -> Path:
        """A new empty folder to write the stage into; folders that earlier holders of its lease left behind are removed."""
        writing = self.root / ".writing"
        writing.mkdir(parents=True, exist_ok=True)
        for left in writing.glob(f"{kind}-{key}-*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = writing / f"{kind}-{key}-{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def commit(self, folder: Path, manifest: Manifest) -> Manifest:
        """Publishes what `folder` holds: digests, manifest, then one rename. Of two racing writers the second is discarded.

        Returns the manifest with its files. Raises ValueError if the stage wrote no file or something that is not a plain file.
        """
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ValueError(f"stage {manifest.kind} wrote something that is not a plain file: {path.name}")
            if path.is_file():
                _sync(path)
                files[path.relative_to(folder).as_posix()] = {"sha256": file_digest(path), "size": path.stat().st_size}
        if not files or MANIFEST in files:
            raise ValueError(f"stage {manifest.kind} wrote {'its own ' + MANIFEST if files else 'no file'}")
        content = {**asdict(manifest), "files": files}
        content = json.loads(json.dumps(content))  # tuples become lists, as a reader will see them
        seal = _seal(content)
        (folder / MANIFEST).write_text(json.dumps({**content, "seal": seal}, indent=1))
        _sync(folder / MANIFEST)
        _sync(folder)
        target = self.path(manifest.kind, manifest.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _sync(target.parent)
            with self._lock:
                self._verified.add((manifest.kind, manifest.key, seal))
        shutil.rmtree(self.scratch(manifest.kind, manifest.key), ignore_errors=True)
        return Manifest(**content)

    def quarantine(self, kind: str, key: str) -> Path | None:
        """Moves a damaged stage out of the way (call it with the stage's lease held); its new place, or none if it is gone."""
        aside = self.root / ".damaged" / f"{kind}-{key}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(self.path(kind, key), aside)
        except FileNotFoundError:
            return None
        return aside
