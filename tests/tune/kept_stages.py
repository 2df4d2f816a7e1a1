"""Stores of every kind, and a stage that counts what is done for it, for the tests of what stores do."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tune.database import sqlite_url
from tune.manifest import MANIFEST
from tune.object_store import ObjectStore
from tune.object_trees import manifest_of
from tune.objects import open_objects
from tune.pipeline import Stage
from tune.store import StageStore
from tune.store_base import Store


@dataclass(frozen=True)
class Kept:
    """Where a store is kept, for the tests of what all stores do. open: the store as the named host sees it."""

    kind: str
    folder: Path
    uri: str = ""
    database: str = ""

    def open(self, host: str = "host") -> Store:
        if self.kind == "folder":
            return StageStore(self.folder)
        return ObjectStore(self.uri, self.database, self.folder / host)

    def read(self, stage: Stage, name: str) -> bytes:
        """A file of a stage as it is stored."""
        if self.kind == "folder":
            return (self.folder / stage.kind / stage.key / name).read_bytes()
        content = open_objects(self.uri).read(self._object(stage, name))
        assert content is not None
        return content

    def resumable(self, stage: Stage) -> int:
        """The step that another host would go on from."""
        if self.kind == "folder":
            path = self.open().scratch(stage.kind, stage.key) / "step"
            return int(path.read_text() or 0) if path.exists() else 0
        objects, place = open_objects(self.uri), f".partial/{stage.kind}-{stage.key}"
        found = manifest_of(objects, place)
        entry = {} if found is None else found[0]["files"].get("step", {})
        return int(objects.read(f"{place}/{entry['sha256']}") or 0) if entry else 0

    @property
    def processes(self) -> Any:
        """How a test starts processes: a fork would lack the threads of pyarrow's S3."""
        return multiprocessing.get_context("spawn" if self.kind == "s3" else "fork")

    def change(self, stage: Stage, name: str, content: bytes | None) -> None:
        """Stores other bytes for a file, or none; behind the store's back."""
        if self.kind == "folder":
            path = self.folder / stage.kind / stage.key / name
            path.unlink() if content is None else path.write_bytes(content)
        elif content is None:
            open_objects(self.uri).delete(self._object(stage, name))
        else:
            open_objects(self.uri).write(self._object(stage, name), content)

    def _object(self, stage: Stage, name: str) -> str:
        if name != MANIFEST:
            text = open_objects(self.uri).read(f"{stage.kind}/{stage.key}/{MANIFEST}")
            assert text is not None
            name = json.loads(text)["files"][name]["sha256"]
        return f"{stage.kind}/{stage.key}/{name}"

    def names(self) -> list[str]:
        """All that is kept, by name."""
        if self.kind == "folder":
            return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return [name for name, _ in open_objects(self.uri).below("")]


def kept_in(kind, request, tmp_path, monkeypatch):
    if kind == "folder":
        return Kept(kind, tmp_path / "stages")
    if kind == "objects":
        return Kept(kind, tmp_path / "caches", (tmp_path / "bucket").as_uri(), sqlite_url(tmp_path / "leases.db"))
    service, database = request.getfixturevalue("object_store"), request.getfixturevalue("postgres")
    environment = {**service.environment, "PGPASSWORD": database.password}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url = database.uri(database.create_database()).replace(f":{database.password}", "")
    return Kept(kind, tmp_path / "caches", f"s3://{service.create_bucket()}/some/stages", url)


S3 = pytest.param("s3", marks=pytest.mark.slow)


def slow_count(context):
    """A fit of ten steps that resumes from its scratch folder and notes each step it does in `log_file`."""
    checkpoint = context.scratch / "step"
    start = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(start, 10):
        with Path(context.stage.config["log_file"]).open("a") as file:
            file.write(f"{os.getpid()} {step}\n")
        time.sleep(context.stage.config["pause"])
        checkpoint.write_text(str(step + 1))
    (context.folder / "result.bin").write_bytes(bytes(range(10)))


def counting_stage(tmp_path, pause=0.02):
    return Stage("vae", {"log_file": str(tmp_path / "log.txt"), "pause": pause}, slow_count)


def steps_done(tmp_path):
    return [line.split() for line in (tmp_path / "log.txt").read_text().splitlines()]
