"""The manifest of a stage or of any folder that is kept: its files by digest, sealed, so that whatever was altered is found.

No pickle is read or written here; what a stage stores is up to the stage, and the manifest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")

StageName = tuple[str, str]
"""(kind, key) of a stage."""
Content = dict[str, Any]
"""A manifest as JSON values; "files" maps paths inside the folder to {"sha256", "size"}."""


class DamagedStage(Exception):
    """A stored stage whose manifest or files are not what was written; the message says what is wrong."""


@dataclass(frozen=True)
class Manifest:
    """What a stage is and what it cost.

    `inputs` maps names to keys; `files` as in Content; `seconds` is the cost of building it, interrupted attempts included;
    `log` is what the build noted (JSON: curves, counts, …).
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

    def content_with(self, files: Mapping[str, Any]) -> Content:
        """The manifest's content with these files, as a reader will see it: tuples are lists."""
        content: Content = json.loads(json.dumps({**asdict(self), "files": files}))
        return content

    @classmethod
    def of(cls, content: Content, name: StageName, where: object) -> Manifest:
        """The manifest of the stage `name`. Raises DamagedStage if `content` is of another one, or none at all."""
        try:
            manifest = cls(**content)
        except TypeError:
            raise DamagedStage(f"{where}: not a manifest as it was written") from None
        if (manifest.kind, manifest.key) != name:
            raise DamagedStage(f"{where}: that of {manifest.kind} {manifest.key}")
        return manifest


def check_names(kind: str, key: str) -> None:
    """Raises ValueError for a name that might leave the store."""
    if not NAME.fullmatch(kind) or not NAME.fullmatch(key):
        raise ValueError(f"a stage's kind and key are lower-case letters, digits and _: {kind!r}, {key!r}")


def name_of(text: str) -> StageName | None:
    """The stage that "kind-key" or "kind-key-…" belongs to; none if it is no such text."""
    parts = text.split("-")
    return (parts[0], parts[1]) if len(parts) > 1 and all(map(NAME.fullmatch, parts)) else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_of(content: Mapping[str, Any]) -> str:
    """A digest of a manifest's content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(content: Content) -> str:
    """The text of a manifest."""
    return json.dumps({**content, "seal": seal_of(content)}, indent=1)


def unsealed(text: str | bytes, where: object) -> tuple[Content, str]:
    """A manifest's content and seal. Raises DamagedStage if it is not as `sealed` wrote it, or names what it may not.

    Others may write where it comes from: so nothing outside the folder is ever read or written by it.
    """
    try:
        content = json.loads(text)
        seal = content.pop("seal")
        if seal != seal_of(content):
            raise ValueError("altered")
        files = {PurePosixPath(name): (str(entry["sha256"]), int(entry["size"])) for name, entry in content["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DamagedStage(f"{where}: not a manifest as it was written") from None
    for path, (digest, _) in files.items():
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise DamagedStage(f"{where}: names a file outside its folder")
        if not _DIGEST.fullmatch(digest):
            raise DamagedStage(f"{where}: names a file by no digest")
    return content, seal


def check_file(path: Path, expected: Mapping[str, Any], where: object, *, digest: bool = True) -> None:
    """Raises DamagedStage, naming `where`, if a file is missing, truncated or (with `digest`) altered."""
    if not path.is_file() or path.stat().st_size != expected["size"]:
        raise DamagedStage(f"{where}: missing or not {expected['size']} bytes long")
    if digest and file_digest(path) != expected["sha256"]:
        raise DamagedStage(f"{where}: its content does not match its digest")


def describe_files(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """What a stage wrote, for its manifest. Raises ValueError if that is no file, or something that is not a plain file."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"stage {kind} wrote something that is not a plain file: {path.name}")
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"sha256": file_digest(path), "size": path.stat().st_size}
    if not files or MANIFEST in files:
        raise ValueError(f"stage {kind} wrote {'its own ' + MANIFEST if files else 'no file'}")
    return files
