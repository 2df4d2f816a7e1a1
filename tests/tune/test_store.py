"""The stage store: complete or absent, single flight, takeover after kill -9, damage, storage that refuses."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from migvis.errors import InputError
from tune import store as store_module
from tune.pipeline import Stage, ensure
from tune.store import MANIFEST, DamagedStage, StageStore

FORK = multiprocessing.get_context("fork")


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


def run_ensure(stage, root, queue):
    result = ensure(stage, StageStore(root), heartbeat=0.1, patience=20)
    queue.put((os.getpid(), result.reused, result.seconds))


def start(stage, root):
    queue = FORK.Queue()
    process = FORK.Process(target=run_ensure, args=(stage, root, queue))
    process.start()
    return process, queue


def test_racing_processes_build_once(tmp_path):
    stage = counting_stage(tmp_path)
    runs = [start(stage, tmp_path / "stages") for _ in range(3)]
    results = [queue.get(timeout=30) for _, queue in runs]
    for process, _ in runs:
        process.join()
    assert sorted(reused for _, reused, _ in results) == [False, True, True]
    assert [int(step) for _, step in steps_done(tmp_path)] == list(range(10))
    assert not StageStore(tmp_path / "stages").scratch("vae", stage.key).exists()


def test_after_kill_9_in_mid_build_a_waiter_takes_over_and_resumes(tmp_path):
    stage, root = counting_stage(tmp_path, pause=0.15), tmp_path / "stages"
    builder, _ = start(stage, root)
    while not (tmp_path / "log.txt").exists() or len(steps_done(tmp_path)) < 4:
        time.sleep(0.01)
    waiter, queue = start(stage, root)
    time.sleep(0.3)
    os.kill(builder.pid, signal.SIGKILL)
    pid, reused, seconds = queue.get(timeout=30)
    waiter.join()
    builder.join()
    steps = steps_done(tmp_path)
    assert not reused
    assert int(next(step for who, step in steps if int(who) == pid)) >= 3  # from the checkpoint, not from 0
    assert seconds > 1.3  # the killed attempt's seconds are part of the cost
    assert list((root / ".writing").iterdir()) == []
    assert (root / "vae" / stage.key / "result.bin").read_bytes() == bytes(range(10))


def test_a_holder_that_was_only_slow_yields_to_the_one_that_took_over(tmp_path, monkeypatch):
    store = StageStore(tmp_path / "stages")
    stage = counting_stage(tmp_path, pause=0.0)

    def overtaken(context):
        lease = store.lease_folder("vae", stage.key)
        (lease / "7").write_text("released".ljust(20) + "\n{}")  # another took the lease, built and released
        ensure(stage, StageStore(store.root))
        slow_count(context)

    result = ensure(replace(stage, build=overtaken), store)
    assert result.reused
    assert (result.path / "result.bin").exists()


def test_of_two_writers_the_second_is_discarded(tmp_path):
    store = StageStore(tmp_path)
    first = ensure(counting_stage(tmp_path, 0.0), store)
    manifest = store.read("vae", first.key)
    folder = store.start_writing("vae", first.key)
    (folder / "result.bin").write_bytes(b"another")
    store.commit(folder, manifest)
    assert not folder.exists()
    assert (first.path / "result.bin").read_bytes() == bytes(range(10))
    assert StageStore(tmp_path).read("vae", first.key) == manifest


def flip_a_bit(path):
    content = bytearray((path / "result.bin").read_bytes())
    content[3] ^= 1
    (path / "result.bin").write_bytes(content)


def truncate(path):
    (path / "result.bin").write_bytes(b"12")


def remove_file(path):
    (path / "result.bin").unlink()


def alter_manifest(path):
    content = json.loads((path / MANIFEST).read_text())
    content["seconds"] = 0.5
    (path / MANIFEST).write_text(json.dumps(content))


def truncate_manifest(path):
    (path / MANIFEST).write_text((path / MANIFEST).read_text()[:40])


def remove_manifest(path):
    (path / MANIFEST).unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove_file, alter_manifest, truncate_manifest, remove_manifest])
def test_damage_is_found_set_aside_and_rebuilt(tmp_path, damage):
    stage, root = counting_stage(tmp_path, 0.0), tmp_path / "stages"
    path = ensure(stage, StageStore(root)).path
    damage(path)
    with pytest.raises(DamagedStage, match=stage.key):
        StageStore(root).read("vae", stage.key)
    result = ensure(stage, StageStore(root))
    assert not result.reused
    assert (path / "result.bin").read_bytes() == bytes(range(10))
    assert len(list((root / ".damaged").iterdir())) == 1
    assert ensure(stage, StageStore(root)).reused


def test_digests_are_checked_once_in_a_store_s_life_and_sizes_always(tmp_path, monkeypatch):
    stage = counting_stage(tmp_path, 0.0)
    path = ensure(stage, StageStore(tmp_path)).path
    calls = []
    real = store_module.file_digest
    monkeypatch.setattr(store_module, "file_digest", lambda file: calls.append(file) or real(file))
    reader = StageStore(tmp_path)
    reader.read("vae", stage.key)
    reader.read("vae", stage.key)
    assert len(calls) == 1
    truncate(path)
    with pytest.raises(DamagedStage):
        reader.read("vae", stage.key)


def test_a_manifest_cannot_name_a_file_outside_its_folder(tmp_path):
    path = ensure(counting_stage(tmp_path, 0.0), StageStore(tmp_path)).path
    content = json.loads((path / MANIFEST).read_text())
    content["files"] = {"../../log.txt": {"sha256": "0", "size": 1}}
    content.pop("seal")
    (path / MANIFEST).write_text(json.dumps({**content, "seal": store_module._seal(content)}))
    with pytest.raises(DamagedStage, match="outside"):
        StageStore(tmp_path).read("vae", path.name)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".leases", "A"])
def test_names_that_would_leave_the_store_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="lower-case"):
        StageStore(tmp_path).path(name, "00")


def test_a_stage_must_write_plain_files(tmp_path):
    def link(context):
        (context.folder / "link").symlink_to("/etc/hostname")

    stage = counting_stage(tmp_path)
    with pytest.raises(ValueError, match="plain file"):
        ensure(replace(stage, build=link), StageStore(tmp_path))
    with pytest.raises(ValueError, match="no file"):
        ensure(replace(stage, build=lambda context: None), StageStore(tmp_path))


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "stages", Path("/proc/stages")):
        store = StageStore(root)
        with pytest.raises(InputError, match=f"{root}: the storage folder cannot be written") as refusal:
            ensure(counting_stage(tmp_path, 0.0), store)
        assert "\n" not in str(refusal.value)


def test_a_full_disk_is_bad_input_and_the_next_attempt_resumes(tmp_path):
    store = StageStore(tmp_path / "stages")
    stage = counting_stage(tmp_path, 0.0)

    def full(context):
        (context.scratch / "step").write_text("9")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for _ in range(2):
        with pytest.raises(InputError, match="cannot be written: No space left on device"):
            ensure(replace(stage, build=full), store)
    ensure(stage, store)
    assert [int(step) for _, step in steps_done(tmp_path)] == [9]
