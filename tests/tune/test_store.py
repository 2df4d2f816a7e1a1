"""The stage store, in a folder and on an object store: complete or absent, single flight, takeover after kill -9, damage,
storage that refuses."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from migvis.errors import InputError
from tune import manifest as manifest_module
from tune import scratch_copies
from tune.database import sqlite_url
from tune.leases import Holder
from tune.manifest import MANIFEST, DamagedStage
from tune.object_store import ObjectStore
from tune.object_trees import manifest_of
from tune.objects import ObjectsAway, open_objects
from tune.pipeline import Stage, ensure
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


@pytest.fixture(params=["folder", "objects", S3])
def kept(request, tmp_path, monkeypatch):
    """Each kind of store; s3 is a real server, its leases in a real PostgreSQL."""
    return kept_in(request.param, request, tmp_path, monkeypatch)


@pytest.fixture(params=["objects", S3])
def bucket(request, tmp_path, monkeypatch):
    """An object store."""
    return kept_in(request.param, request, tmp_path, monkeypatch)


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


def run_ensure(stage, kept, host, queue):
    result = ensure(stage, kept.open(host), heartbeat=0.1, patience=20)
    queue.put((os.getpid(), result.reused, result.seconds))


def start(stage, kept, host="host"):
    queue = kept.processes.Queue()
    process = kept.processes.Process(target=run_ensure, args=(stage, kept, host, queue), daemon=True)
    process.start()
    return process, queue


def test_racing_processes_build_once(tmp_path, kept):
    stage = counting_stage(tmp_path)
    runs = [start(stage, kept, host) for host in ("a", "a", "b")]
    results = [queue.get(timeout=60) for _, queue in runs]
    for process, _ in runs:
        process.join()
    assert sorted(reused for _, reused, _ in results) == [False, True, True]
    assert [int(step) for _, step in steps_done(tmp_path)] == list(range(10))
    for host in ("a", "b"):
        assert not kept.open(host).scratch("vae", stage.key).exists()
        assert ensure(stage, kept.open(host)).path.joinpath("result.bin").read_bytes() == bytes(range(10))
    assert not [name for name in kept.names() if name.startswith(".partial")]


@pytest.mark.parametrize("other", ["host", "another host"])
def test_after_kill_9_in_mid_build_a_waiter_takes_over_and_resumes(tmp_path, kept, monkeypatch, other):
    monkeypatch.setattr(scratch_copies, "COPY_EVERY", 0.1)
    stage = counting_stage(tmp_path, pause=1.5 if kept.kind == "s3" else 0.15)
    builder, _ = start(stage, kept)
    deadline = time.monotonic() + 120
    while kept.resumable(stage) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    waiter, queue = start(stage, kept, other)
    time.sleep(0.3)
    os.kill(builder.pid, signal.SIGKILL)
    pid, reused, seconds = queue.get(timeout=60)
    waiter.join()
    builder.join()
    steps = steps_done(tmp_path)
    assert not reused
    assert int(next(step for who, step in steps if int(who) == pid)) >= 3  # from the checkpoint, not from 0
    assert [int(step) for who, step in steps if int(who) == pid][-1] == 9
    assert seconds > 8 * stage.config["pause"]  # the killed attempt's seconds are part of the cost
    assert list((kept.folder / (other if kept.kind != "folder" else "") / ".writing").iterdir()) == []
    assert kept.read(stage, "result.bin") == bytes(range(10))


def test_a_holder_that_was_only_slow_yields_to_the_one_that_took_over(tmp_path, kept):
    store, stage = kept.open(), counting_stage(tmp_path, pause=0.0)

    def overtaken(context):
        place = store.lease("vae", stage.key)  # another takes the lease, builds and releases
        assert place.claim(place.look().generation + 1, "released".ljust(20), Holder.this_process())
        ensure(stage, kept.open("elsewhere"))
        slow_count(context)

    result = ensure(replace(stage, build=overtaken), store)
    assert result.reused or kept.kind != "folder"  # where nothing was cleared away, it goes on to the end for nothing
    assert (result.path / "result.bin").read_bytes() == bytes(range(10))
    assert store.read("vae", stage.key) == kept.open("elsewhere").read("vae", stage.key)


def test_of_two_writers_the_second_is_discarded(tmp_path, kept):
    store, stage = kept.open(), counting_stage(tmp_path, 0.0)
    first = ensure(stage, store)
    manifest = store.read("vae", first.key)
    for host in ("host", "slow host"):
        slow = kept.open(host)
        folder = slow.start_writing("vae", first.key)
        (folder / "result.bin").write_bytes(b"another")
        assert slow.commit(folder, manifest).seconds == manifest.seconds
        assert not folder.exists()
        assert (slow.path("vae", first.key) / "result.bin").read_bytes() == bytes(range(10))
        assert kept.open(host).read("vae", first.key) == manifest


def flip_a_bit(kept, stage):
    content = bytearray(kept.read(stage, "result.bin"))
    content[3] ^= 1
    kept.change(stage, "result.bin", bytes(content))


def truncate(kept, stage):
    kept.change(stage, "result.bin", b"12")


def remove_file(kept, stage):
    kept.change(stage, "result.bin", None)


def alter_manifest(kept, stage):
    content = json.loads(kept.read(stage, MANIFEST))
    content["seconds"] = 0.5
    kept.change(stage, MANIFEST, json.dumps(content).encode())


def truncate_manifest(kept, stage):
    kept.change(stage, MANIFEST, kept.read(stage, MANIFEST)[:40])


def of_another_stage(kept, stage):
    content = json.loads(kept.read(stage, MANIFEST))
    content["key"] = "0" * 24
    content.pop("seal")
    kept.change(stage, MANIFEST, manifest_module.sealed(content).encode())


DAMAGES = [flip_a_bit, truncate, remove_file, alter_manifest, truncate_manifest, of_another_stage]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_set_aside_rebuilt_and_reported(tmp_path, kept, damage, caplog):
    stage = counting_stage(tmp_path, 0.0)
    ensure(stage, kept.open())
    damage(kept, stage)
    with pytest.raises(DamagedStage, match=stage.key):
        kept.open("reader").read("vae", stage.key)
    with caplog.at_level(logging.WARNING):
        result = ensure(stage, kept.open("reader"))
    assert not result.reused
    assert (result.path / "result.bin").read_bytes() == kept.read(stage, "result.bin") == bytes(range(10))
    (record,) = [record.getMessage() for record in caplog.records if record.name == "tune.pipeline"]
    assert ".damaged" in record
    assert len({name.split("/")[1] for name in kept.names() if name.startswith(".damaged/")}) == 1
    for host in ("host", "reader", "another"):
        assert ensure(stage, kept.open(host)).reused
        assert (kept.open(host).path("vae", stage.key) / "result.bin").read_bytes() == bytes(range(10))


def test_a_folder_without_its_manifest_is_damage(tmp_path):
    stage, kept = counting_stage(tmp_path, 0.0), Kept("folder", tmp_path / "stages")
    ensure(stage, kept.open())
    kept.change(stage, MANIFEST, None)
    with pytest.raises(DamagedStage, match=r"manifest\.json is missing"):
        kept.open().read("vae", stage.key)
    assert not ensure(stage, kept.open()).reused


def test_what_a_host_has_is_checked_as_well_and_fetched_again(tmp_path, bucket, caplog):
    stage = counting_stage(tmp_path, 0.0)
    path = ensure(stage, bucket.open()).path
    for harm in (lambda: (path / "result.bin").write_bytes(b"12"), lambda: (path / MANIFEST).write_text("{"), path_gone(path)):
        caplog.clear()
        harm()
        with caplog.at_level(logging.WARNING):
            assert ensure(stage, bucket.open()).reused
        assert (path / "result.bin").read_bytes() == bytes(range(10))
        assert f"fetched again from {bucket.uri}" in caplog.text or harm.__name__ == "gone"
    assert [int(step) for _, step in steps_done(tmp_path)] == list(range(10))
    assert not list((bucket.folder / "host" / ".fetching").glob("[!v]*"))


def path_gone(path):
    def gone():
        path.rename(path.with_name("elsewhere"))

    return gone


def test_a_host_takes_the_newer_stage_where_the_one_that_it_has_was_replaced(tmp_path, bucket):
    def build(context):
        (context.folder / "result.bin").write_bytes(os.urandom(16))

    stage = Stage("vae", {}, build)
    first = ensure(stage, bucket.open("a")).path / "result.bin"
    before = first.read_bytes()
    bucket.open("b").quarantine("vae", stage.key)
    second = ensure(stage, bucket.open("b")).path / "result.bin"
    assert second.read_bytes() != before
    assert ensure(stage, bucket.open("a")).reused
    assert first.read_bytes() == second.read_bytes()


def test_digests_are_checked_once_in_a_store_s_life_and_sizes_always(tmp_path, kept, monkeypatch):
    stage = counting_stage(tmp_path, 0.0)
    path = ensure(stage, kept.open()).path
    calls = []
    real = manifest_module.file_digest
    monkeypatch.setattr(manifest_module, "file_digest", lambda file: calls.append(file) or real(file))
    reader = kept.open()
    reader.read("vae", stage.key)
    reader.read("vae", stage.key)
    assert len(calls) == 1
    (path / "result.bin").write_bytes(b"12")
    if kept.kind == "folder":
        with pytest.raises(DamagedStage):
            reader.read("vae", stage.key)
    else:
        reader.read("vae", stage.key)
        assert (path / "result.bin").read_bytes() == bytes(range(10))


@pytest.mark.parametrize("name", ["../../log.txt", "/tmp/x", "a/../../x", ""])
def test_a_manifest_cannot_name_a_file_outside_its_folder(tmp_path, kept, name):
    stage = counting_stage(tmp_path, 0.0)
    ensure(stage, kept.open())
    content = json.loads(kept.read(stage, MANIFEST))
    content["files"] = {name: content["files"]["result.bin"]}
    content.pop("seal")
    kept.change(stage, MANIFEST, manifest_module.sealed(content).encode())
    before = (tmp_path / "log.txt").read_bytes()
    with pytest.raises(DamagedStage, match="outside"):
        kept.open("reader").read("vae", stage.key)
    assert (tmp_path / "log.txt").read_bytes() == before


def test_a_manifest_names_objects_by_digests_only(tmp_path, bucket):
    stage = counting_stage(tmp_path, 0.0)
    ensure(stage, bucket.open())
    content = json.loads(bucket.read(stage, MANIFEST))
    content["files"]["result.bin"]["sha256"] = "../../secret"
    content.pop("seal")
    bucket.change(stage, MANIFEST, manifest_module.sealed(content).encode())
    with pytest.raises(DamagedStage, match="by no digest"):
        bucket.open("reader").read("vae", stage.key)


def test_an_upload_that_fails_on_the_way_leaves_nothing_that_is_found_and_the_manifest_is_last(tmp_path, bucket, monkeypatch):
    def build(context):
        for name in ("first", "second"):
            (context.folder / name).write_text(name)

    stage, seen = Stage("vae", {}, build), []
    store = bucket.open()
    objects = store.objects
    upload, write = objects.upload, objects.write

    def failing(name, file):
        upload(name, file)
        seen.append(name)
        assert not bucket.open("other").exists("vae", stage.key)
        assert list(bucket.open("other").stages()) == []
        if len(seen) == 2:
            raise ObjectsAway("Quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(objects, "upload", failing)
        with pytest.raises(InputError, match=f"^--stages {bucket.uri}: Quota exceeded$"):
            ensure(stage, store)
    assert (bucket.open("other").read("vae", stage.key), list(bucket.open("other").stages())) == (None, [])

    def manifest_fails(name, content):
        if name.startswith("vae/"):
            assert len([name for name in bucket.names() if not name.startswith(".")]) == 2
            raise ObjectsAway("Connection refused")
        write(name, content)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "write", manifest_fails)
        with pytest.raises(InputError, match="Connection refused"):
            ensure(stage, store)
    assert not bucket.open("other").exists("vae", stage.key)
    assert not ensure(stage, bucket.open()).reused
    assert ensure(stage, bucket.open("other")).reused


def test_a_checkpoint_that_was_damaged_on_its_way_is_left_out(tmp_path, bucket, caplog):
    stage = counting_stage(tmp_path, 0.0)

    def interrupted(context):
        (context.scratch / "step").write_text("7")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(replace(stage, build=interrupted), bucket.open())
    (copy,) = [name for name in bucket.names() if "/" in name and not name.endswith(MANIFEST)][:1]
    bucket_objects = open_objects(bucket.uri)
    for name, size in bucket_objects.below(".partial"):
        if name.endswith(copy.rpartition("/")[2]):
            bucket_objects.write(name, b"x" * size)
    with caplog.at_level(logging.WARNING):
        ensure(stage, bucket.open("another host"))
    assert "begun anew" in caplog.text
    assert [int(step) for _, step in steps_done(tmp_path)] == list(range(10))


def test_of_two_hosts_checkpoints_the_later_one_is_resumed(tmp_path, bucket):
    stage = counting_stage(tmp_path, 0.0)

    def up_to(step):
        def interrupted(context):
            assert not (context.scratch / "step").exists() or int((context.scratch / "step").read_text()) == step - 2
            (context.scratch / "step").write_text(str(step))
            raise KeyboardInterrupt

        return replace(stage, build=interrupted)

    for host, step in (("a", 1), ("b", 3), ("b", 5), ("a", 7)):
        with pytest.raises(KeyboardInterrupt):
            ensure(up_to(step), bucket.open(host))
    ensure(stage, bucket.open("b"))
    assert [int(step) for _, step in steps_done(tmp_path)] == [7, 8, 9]
    assert not [name for name in bucket.names() if name.startswith(".partial")]


def test_a_manifest_that_is_replaced_while_it_is_read_is_read_again(tmp_path, bucket, monkeypatch):
    stage = counting_stage(tmp_path, 0.0)
    ensure(stage, bucket.open())
    store = bucket.open("reader")
    whole, texts = bucket.read(stage, MANIFEST), []

    def torn(name):
        texts.append(whole[: 50 + len(texts)] if len(texts) < 2 else whole)
        return texts[-1]

    monkeypatch.setattr(store.objects, "read", torn)
    assert store.read("vae", stage.key) is not None
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("s3://key:secret@bucket/x", "credentials belong in the environment"),
        ("gs://bucket", "expected a folder, s3://BUCKET/PREFIX or file:///FOLDER"),
        ("s3:///x", "expected s3://BUCKET/PREFIX"),
        ("file://host/x", "expected file:///FOLDER"),
        ("s3://bucket/x?a=b", "expected a folder"),
    ],
)
def test_a_uri_that_is_none_is_one_line(uri, line):
    with pytest.raises(InputError, match=r"^--stages ") as refusal:
        open_objects(uri)
    assert line in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".leases", "A"])
def test_names_that_would_leave_the_store_are_refused(kept, name):
    for call in (kept.open().path, kept.open().read, kept.open().exists):
        with pytest.raises(ValueError, match="lower-case"):
            call(name, "00")


def test_a_stage_must_write_plain_files(tmp_path, kept):
    def link(context):
        (context.folder / "link").symlink_to("/etc/hostname")

    stage = counting_stage(tmp_path)
    with pytest.raises(ValueError, match="plain file"):
        ensure(replace(stage, build=link), kept.open())
    with pytest.raises(ValueError, match="no file"):
        ensure(replace(stage, build=lambda context: None), kept.open())


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "stages", Path("/proc/stages")):
        store = StageStore(root)
        with pytest.raises(InputError, match=f"{root}: the storage folder cannot be written") as refusal:
            ensure(counting_stage(tmp_path, 0.0), store)
        assert "\n" not in str(refusal.value)


def test_a_full_disk_is_bad_input_and_the_next_attempt_resumes(tmp_path, kept):
    store = kept.open()
    stage = counting_stage(tmp_path, 0.0)

    def full(context):
        (context.scratch / "step").write_text("9")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for _ in range(2):
        with pytest.raises(InputError, match="cannot be written: No space left on device"):
            ensure(replace(stage, build=full), store)
    ensure(stage, store)
    assert [int(step) for _, step in steps_done(tmp_path)] == [9]
