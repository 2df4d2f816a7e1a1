"""Folders kept as objects, each whole or not there: a file is an object named by its digest, and the manifest is written last.

    <name>/manifest.json     the files' paths, digests and sizes, and whatever else is said of them
    <name>/<sha256>          their content

So a manifest and what it names always fit together, whoever else writes the same folder at the same time: other bytes are
other objects.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tune.manifest import MANIFEST, Content, DamagedStage, check_file, sealed, unsealed
from tune.objects import Objects


def put_files(objects: Objects, name: str, folder: Path, content: Content, there: Collection[str] = ()) -> None:
    """Uploads what `content` names; there: digests of what is known to be there already."""
    known = set(there)
    for file, entry in content["files"].items():
        if entry["sha256"] not in known:
            with (folder / file).open("rb") as opened:
                objects.upload(f"{name}/{entry['sha256']}", opened)
            known.add(entry["sha256"])


def put_manifest(objects: Objects, name: str, content: Content) -> str:
    """Makes the folder one that is there, all its files being uploaded; returns the manifest's text."""
    text = sealed(content)
    objects.write(f"{name}/{MANIFEST}", text.encode())
    return text


def manifest_of(objects: Objects, name: str) -> tuple[Content, str] | None:
    """The manifest's content and seal; none where there is none. Raises DamagedStage."""
    before: bytes | None = b""
    while True:
        text = objects.read(f"{name}/{MANIFEST}")
        try:
            return None if text is None else unsealed(text, f"{objects.uri}/{name}/{MANIFEST}")
        except DamagedStage:
            # A reader that asks for the size first gets a mixture where it is replaced meanwhile: that reads otherwise next time.
            if text == before:
                raise
            before = text


def fetch_files(objects: Objects, name: str, content: Content, folder: Path) -> None:
    """Downloads into `folder` what `content` names. Raises DamagedStage for a file that is missing, truncated or altered."""
    for file, entry in content["files"].items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        where = f"{objects.uri}/{name}/{entry['sha256']} ({file})"
        if not objects.download(f"{name}/{entry['sha256']}", path):
            raise DamagedStage(f"{where}: missing")
        check_file(path, entry, where)


def delete_tree(objects: Objects, name: str) -> None:
    """Deletes a folder, its manifest first, so that nobody finds half of it."""
    objects.delete(f"{name}/{MANIFEST}")
    for file, _ in list(objects.below(name)):
        objects.delete(file)


def move_tree(objects: Objects, name: str, to: str) -> None:
    """Moves a folder, its manifest first. What cannot be copied, since it vanished meanwhile, is left out."""
    with contextlib.suppress(FileNotFoundError):
        objects.copy(f"{name}/{MANIFEST}", f"{to}/{MANIFEST}")
    objects.delete(f"{name}/{MANIFEST}")
    for file, _ in list(objects.below(name)):
        with contextlib.suppress(FileNotFoundError):
            objects.copy(file, f"{to}/{file.removeprefix(f'{name}/')}")
        objects.delete(file)


def put_open_files(
    objects: Objects, name: str, folder: Path, known: dict[str, tuple[Any, str]], there: Collection[str]
) -> Content:
    """Uploads the files of a folder that is being written, and returns their content for the manifest.

    Files are replaced there as a whole, by renaming: each is read as it was when it was opened. Hidden folders and files that
    are about to be renamed (.tmp) are left out. known: digests by file, kept between calls; there: digests of what is
    uploaded already.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        file = path.relative_to(folder)
        if path.suffix == ".tmp" or any(part.startswith(".") for part in file.parts[:-1]) or not path.is_file():
            continue
        with contextlib.suppress(FileNotFoundError), path.open("rb") as opened:  # gone since it was listed
            stat = os.fstat(opened.fileno())
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            before, digest = known.get(file.as_posix(), (None, ""))
            if before != stamp:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
                opened.seek(0)
            if digest not in there:
                objects.upload(f"{name}/{digest}", opened)
            known[file.as_posix()] = (stamp, digest)
            files[file.as_posix()] = {"sha256": digest, "size": stat.st_size}
    return {"files": files}
