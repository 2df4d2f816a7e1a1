"""Objects of an S3 bucket, of Amazon or of any server that speaks its protocol, through pyarrow."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from migvis.errors import InputError
from tune.objects import Objects, ObjectsAway

_ATTEMPTS = 8
"""Of a request, with growing waits between them (25 s or so in all): a server may be restarted under a study."""
_CHUNK = 8 * 2**20


def _file_system() -> Any:
    """From the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    options: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"AWS_ENDPOINT_URL={endpoint.rpartition('@')[2]}: expected http(s)://HOST:PORT")
        options |= {"endpoint_override": parts.netloc.rpartition("@")[2], "scheme": parts.scheme}
        region = region or "us-east-1"  # what such servers expect; unset, it would be asked for on the network
    if region:
        options["region"] = region
    return S3FileSystem(
        # A small object is then one request, which is whole or not there.
        allow_delayed_open=True,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        connect_timeout=10,
        request_timeout=60,
        **options,
    )


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ObjectsAway((str(error).strip().splitlines() or ["it does not answer"])[0]) from None


class S3Objects(Objects):
    """Objects of a bucket whose names begin with a prefix."""

    def __init__(self, uri: str, bucket: str, prefix: str) -> None:
        self.uri = uri
        self._root = f"{bucket}/{prefix}".rstrip("/")
        self._system = _file_system()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def size(self, name: str) -> int | None:
        from pyarrow.fs import FileType

        with _errors():
            info = self._system.get_file_info(self._path(name))
        return info.size if info.type == FileType.File else None

    def read(self, name: str) -> bytes | None:
        try:
            with _errors(), self._system.open_input_stream(self._path(name)) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None

    def download(self, name: str, path: Path) -> bool:
        try:
            with _errors():
                stream = self._system.open_input_stream(self._path(name))
        except FileNotFoundError:
            return False
        with stream, path.open("wb") as file:
            while chunk := self._next(stream):
                file.write(chunk)
        return True

    @staticmethod
    def _next(stream: Any) -> bytes:
        with _errors():
            chunk: bytes = stream.read(_CHUNK)
            return chunk

    def write(self, name: str, content: bytes) -> None:
        with _errors(), self._system.open_output_stream(self._path(name)) as stream:
            stream.write(content)

    def upload(self, name: str, file: BinaryIO) -> None:
        # What is cut off by an error may be published all the same: its digest tells.
        with _errors(), self._system.open_output_stream(self._path(name)) as stream:
            shutil.copyfileobj(file, stream, _CHUNK)

    def copy(self, name: str, to: str) -> None:
        with _errors():
            self._system.copy_file(self._path(name), self._path(to))

    def delete(self, name: str) -> None:
        try:
            with _errors():
                self._system.delete_file(self._path(name))
        except FileNotFoundError:
            return

    def below(self, prefix: str) -> Iterator[tuple[str, int]]:
        from pyarrow.fs import FileSelector, FileType

        with _errors():
            selector = FileSelector(self._path(prefix), recursive=True, allow_not_found=True)
            found = self._system.get_file_info(selector)
        # Names that end with a slash stand for folders, and are none of ours.
        files = ((info.path.removeprefix(f"{self._root}/"), info.size) for info in found if info.type == FileType.File)
        yield from sorted(files)
