"""What only a stage store on an object store does: uploads, names by digest, each host's copies, two hosts' checkpoints."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace

import pytest

from migvis.errors import InputError
from tests.tune.kept_stages import S3, counting_stage, kept_in, steps_done
from tune import manifest as manifest_module
from tune.manifest import MANIFEST, DamagedStage
from tune.objects import ObjectsAway, open_objects
from tune.pipeline import Stage, ensure


@pytest.fixture(params=["objects", S3])
def bucket(request, tmp_path, monkeypatch):
    """An object store."""
    return kept_in(request.param, request, tmp_path, monkeypatch)


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
