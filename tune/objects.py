"""Objects, as an object store has them: written whole or not at all, never renamed, listed by the beginning of their names."""

from __future__ import annotations

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from migvis.errors import InputError
from tune.redact import redact

SCHEMES = ("s3", "file")


class ObjectsAway(OSError):
    """The object store refuses, is full, or does not answer; the message is one line without credentials."""


class Objects(ABC):
    """Objects below a URI, by name ("a/b/c"). All methods raise ObjectsAway."""

    uri: str

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of an object; none if there is none."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The content of a small object; none if there is none."""

    @abstractmethod
    def download(self, name: str, path: Path) -> bool:
        """Writes an object to a file; false if there is none. What fails on this host's own disk is its own OSError."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Makes or replaces an object: who reads meanwhile has the one before, or the new one."""

    @abstractmethod
    def upload(self, name: str, file: BinaryIO) -> None:
        """The same, from a file that is open at its beginning."""

    @abstractmethod
    def copy(self, name: str, to: str) -> None:
        """Copies an object that is there."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Deletes an object, if it is there."""

    @abstractmethod
    def below(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Name and size of all objects whose names begin with `prefix`/ (all: ""), by name."""


def open_objects(uri: str) -> Objects:
    """The objects at s3://BUCKET/PREFIX or file:///FOLDER. Raises InputError for another URI."""
    try:
        parts = urlsplit(uri)
        credentials = parts.username is not None or parts.password is not None
    except ValueError as error:
        raise InputError(f"--stages: not a URI: {error}") from None
    if credentials:
        raise InputError(f"--stages {parts.scheme}://…: credentials belong in the environment (AWS_ACCESS_KEY_ID, …)")
    if parts.query or parts.fragment or parts.scheme not in SCHEMES:
        raise InputError(f"--stages {redact(uri)}: expected a folder, s3://BUCKET/PREFIX or file:///FOLDER")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise InputError(f"--stages {uri}: expected file:///FOLDER")
        return FolderObjects(uri, Path(unquote(parts.path)))
    if not parts.netloc:
        raise InputError(f"--stages {uri}: expected s3://BUCKET/PREFIX")
    from tune.s3_objects import S3Objects

    return S3Objects(uri, parts.netloc, parts.path.strip("/"))


class FolderObjects(Objects):
    """Objects in a folder, such as a gateway's mount: a stand-in for a bucket, without its network."""

    def __init__(self, uri: str, root: Path) -> None:
        self.uri, self._root = uri, root

    def size(self, name: str) -> int | None:
        path = self._root / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ObjectsAway(f"{error.strerror}") from None

    def download(self, name: str, path: Path) -> bool:
        try:
            shutil.copyfile(self._root / name, path)
        except FileNotFoundError:
            return False
        return True

    def write(self, name: str, content: bytes) -> None:
        self._put(name, lambda file: file.write(content))

    def upload(self, name: str, file: BinaryIO) -> None:
        self._put(name, lambda target: shutil.copyfileobj(file, target))

    def _put(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        aside = self._root / ".put" / uuid.uuid4().hex
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("wb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                (self._root / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside, self._root / name)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            raise ObjectsAway(f"{error.strerror}") from None

    def copy(self, name: str, to: str) -> None:
        with (self._root / name).open("rb") as file:
            self.upload(to, file)

    def delete(self, name: str) -> None:
        try:
            (self._root / name).unlink(missing_ok=True)
        except OSError as error:
            raise ObjectsAway(f"{error.strerror}") from None

    def below(self, prefix: str) -> Iterator[tuple[str, int]]:
        for path in sorted((self._root / prefix).rglob("*")):
            name = path.relative_to(self._root).as_posix()
            if path.is_file() and not name.startswith(".put/"):
                yield name, path.stat().st_size
