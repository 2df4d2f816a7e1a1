"""The stage store, in a folder and on an object store: complete or absent, single flight, takeover after kill -9, damage,
storage that refuses."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from migvis.errors import InputError
from tests.tune.kept_stages import S3, Kept, counting_stage, kept_in, slow_count, steps_done
from tune import manifest as manifest_module
from tune import scratch_copies
from tune.leases import Holder
from tune.manifest import MANIFEST, DamagedStage
from tune.objects import open_objects
from tune.pipeline import ensure
from tune.store import StageStore


@pytest.fixture(params=["folder", "objects", S3])
def kept(request, tmp_path, monkeypatch):
    """Each kind of store; s3 is a real server, its leases in a real PostgreSQL."""
    return kept_in(request.param, request, tmp_path, monkeypatch)


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
