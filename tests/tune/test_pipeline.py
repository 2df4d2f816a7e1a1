"""Stages: what a key depends on, what is built and what is not, estimates."""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import replace

import pytest

from migvis.errors import InputError
from tune.pipeline import Stage, ensure, ensure_together, plan, source_digest, topological
from tune.stage_graph import Together
from tune.store import StageStore


def write_value(context):
    """Adds its config's value to the sum of its inputs' values."""
    total = context.stage.config["value"] + sum(int((path / "value").read_text()) for path in context.inputs.values())
    (context.folder / "value").write_text(str(total))
    context.log["total"] = total
    context.progress("halfway")


def stage(kind="vae", value=1, **fields):
    return Stage(kind, {"value": value, "weights": (1.0, 2.0)}, write_value, **fields)


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


def test_the_key_depends_on_each_part_and_on_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "first_source.py").write_text("x = 1\n")
    (tmp_path / "second_source.py").write_text("x = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    base = stage(inputs={"denoiser": stage("denoiser", 3)}, seed=0, modules=("first_source",))
    different = [
        replace(base, kind="critic"),
        replace(base, config={"value": 2, "weights": (1.0, 2.0)}),
        replace(base, config={"value": 1}),
        replace(base, inputs={"denoiser": stage("denoiser", 4)}),
        replace(base, inputs={"pool": stage("denoiser", 3)}),
        replace(base, inputs={}),
        replace(base, seed=1),
        replace(base, seed=None),
        replace(base, dtype="bfloat16"),
        replace(base, modules=("second_source",)),
    ]
    keys = {base.key, *(other.key for other in different)}
    assert len(keys) == 1 + len(different)
    same = [
        replace(base, label="M1"),
        replace(base, scope="study"),
        replace(base, build=lambda context: None),
        replace(base, config={"weights": [1.0, 2.0], "value": 1}),
    ]
    assert {other.key for other in same} == {base.key}
    assert len(base.key) >= 20
    assert int(base.key, 16) >= 0
    assert "first_source" not in sys.modules
    (tmp_path / "first_source.py").write_text("x = 1 \n")
    source_digest.cache_clear()
    assert replace(base).key != base.key


def test_sources_are_found_without_import_and_a_package_counts_whole(tmp_path, monkeypatch):
    package = tmp_path / "sample_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')\n")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "core.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    single, whole = source_digest(("sample_package.inner.core",)), source_digest(("sample_package",))
    (package / "inner" / "core.py").write_text("a = 2\n")
    source_digest.cache_clear()
    assert source_digest(("sample_package.inner.core",)) != single
    assert source_digest(("sample_package",)) != whole
    with pytest.raises(ModuleNotFoundError, match=r"sample_package\.absent"):
        source_digest(("sample_package.absent",))


def test_config_must_be_json():
    with pytest.raises(ValueError, match="Out of range"):
        _ = stage(value=float("nan")).key
    with pytest.raises(TypeError):
        _ = stage(value=object()).key


def test_topological_order_lists_each_stage_once_after_its_inputs():
    denoiser = stage("denoiser")
    pool = stage("pool", inputs={"denoiser": denoiser})
    critic = stage("critic", inputs={"pool": pool, "denoiser": stage("denoiser")})
    assert [item.kind for item in topological([critic, pool])] == ["denoiser", "pool", "critic"]


def test_a_stage_is_built_once_with_its_inputs_and_then_reused(store):
    chain = stage("critic", 10, inputs={"pool": stage("pool", 5, inputs={"denoiser": stage("denoiser", 2)})}, label="M1")
    uses, updates = [], []
    first = ensure(chain, store, uses=uses, progress=lambda which, update: updates.append((which.kind, update)))
    assert (first.path / "value").read_text() == "17"
    assert first.log == {"total": 17}
    assert not first.reused
    assert [(use.kind, use.reused) for use in uses] == [("denoiser", False), ("pool", False), ("critic", False)]
    assert updates == [("denoiser", "halfway"), ("pool", "halfway"), ("critic", "halfway")]

    again = ensure(chain, StageStore(store.root), uses=uses)
    assert again.reused
    assert (again.path, again.key, again.seconds, again.log) == (first.path, first.key, first.seconds, first.log)
    assert [(use.kind, use.label, use.reused, use.seconds) for use in uses[3:]] == [("critic", "M1", True, first.seconds)]


def test_a_hit_does_not_build_its_inputs(store):
    chain = stage("critic", 10, inputs={"pool": stage("pool", 5)})
    ensure(chain, store)
    store.quarantine("pool", chain.inputs["pool"].key)
    assert ensure(chain, store).reused
    assert not store.exists("pool", chain.inputs["pool"].key)


def test_a_failed_build_leaves_no_stage_and_keeps_its_scratch_for_one_retry(store):
    def fail(context):
        (context.folder / "half").write_text("half")
        (context.scratch / "checkpoint").write_text("3")
        raise RuntimeError("no luck")

    broken = replace(stage(), build=fail)
    scratch = store.scratch("vae", broken.key)
    with pytest.raises(RuntimeError, match="no luck"):
        ensure(broken, store)
    assert not store.exists("vae", broken.key)
    assert (scratch / "checkpoint").exists()
    assert list((store.root / ".writing").iterdir()) == []
    with pytest.raises(RuntimeError, match="no luck"):
        ensure(broken, store)
    assert not scratch.exists()  # resumed and failed again: the checkpoint may be to blame
    assert ensure(stage(), store).path.is_dir()


def test_a_damaged_input_is_rebuilt_only_when_needed_and_reported(store, caplog):
    chain = stage("critic", 10, inputs={"pool": stage("pool", 5)})
    path = ensure(chain, store).path
    (path / "value").write_text("99")
    uses = []
    with caplog.at_level(logging.WARNING):
        result = ensure(chain, StageStore(store.root), uses=uses)
    assert (result.path / "value").read_text() == "15"
    assert [(use.kind, use.reused, bool(use.damage)) for use in uses] == [("pool", True, False), ("critic", False, True)]
    assert uses[1].damage in caplog.text
    assert "digest" in caplog.text
    assert ".damaged" in caplog.text


def test_the_plan_says_what_exists_and_estimates_the_rest_without_writing(store):
    missing = [stage("vae", value) for value in (1, 2)]
    before = plan([stage("critic", 7, inputs={"vae": missing[0]}), missing[1]], store, {"vae": 4.0})
    assert [(row.kind, row.exists, row.seconds, row.source) for row in before] == [
        ("vae", False, 4.0, "expected"),
        ("critic", False, 0.0, "expected"),
        ("vae", False, 4.0, "expected"),
    ]
    assert not store.root.exists()
    built = ensure(missing[0], store)
    after = plan([*missing, stage("vae", 1)], store, {"vae": 4.0})
    assert [(row.exists, row.seconds, row.source) for row in after] == [
        (True, built.seconds, "stored"),
        (False, built.seconds, "observed"),
    ]


def test_what_is_missing_of_a_bucket_is_built_by_one_program(store):
    calls = []

    def write_all(contexts):
        calls.append(sorted(context.stage.config["value"] for context in contexts))
        time.sleep(0.3)
        for context in contexts:
            write_value(context)

    first, second = (Together(bucket, write_all) for bucket in ("first", "second"))
    below = stage("denoiser", 10)
    stages = [stage(value=value, together=first, inputs={"below": below}) for value in (1, 2, 3, 4)]
    alone, other = stage(value=5, together=second), stage(value=6)
    ensure(stages[2], store)
    uses = []
    ensure_together([*stages, alone, other, stages[0]], store, uses=uses)
    assert calls == [[1, 2, 4]]
    built = {use.key: use for use in uses if use.kind == "vae"}
    assert built.keys() == {stages[index].key for index in (0, 1, 3)}
    assert not any(use.reused for use in built.values())
    # Each has its share of the seconds.
    assert 0.3 <= sum(use.seconds for use in built.values()) < 0.6
    for one in stages:
        result = ensure(one, store)
        assert result.reused
        assert (result.path / "value").read_text() == str(10 + one.config["value"])
        assert store.read("vae", one.key).inputs == {"below": below.key}
    assert not store.exists("vae", alone.key)
    assert not store.exists("vae", other.key)
    ensure_together(stages, store)
    assert len(calls) == 1


def test_two_who_build_overlapping_buckets_at_once_build_each_stage_once(store):
    built, failures = [], []

    def write_all(contexts):
        time.sleep(0.2)
        for context in contexts:
            built.append(context.stage.config["value"])
            write_value(context)

    def build_one(context):
        write_all([context])

    together = Together("bucket", write_all)

    def work(values):
        try:
            stages = [replace(stage(value=value, together=together), build=build_one) for value in values]
            ensure_together(stages, store)
            for one in stages:
                ensure(one, store)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(values,), daemon=True) for values in ((1, 2, 3, 4), (4, 3, 5, 2), (5, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not failures
    assert sorted(built) == [1, 2, 3, 4, 5]


def test_a_program_that_fails_leaves_nothing_and_the_next_call_builds(store):
    failing = [True]

    def write_all(contexts):
        for context in contexts:
            (context.scratch / "checkpoint").write_text("half")
            write_value(context)
        if failing:
            failing.clear()
            raise RuntimeError("no memory")

    stages = [stage(value=value, together=Together("bucket", write_all)) for value in (1, 2)]
    with pytest.raises(RuntimeError, match="no memory"):
        ensure_together(stages, store)
    assert not any(store.exists("vae", one.key) for one in stages)
    ensure_together(stages, store)
    assert all(store.exists("vae", one.key) for one in stages)
    assert not any(store.scratch("vae", one.key).exists() for one in stages)


def test_of_several_that_are_built_at_once_only_one_whose_lease_is_lost_is_built_again(store, monkeypatch):
    stages = [stage(value=value) for value in (1, 2, 3)]
    stages = [replace(one, together=Together("bucket", lambda contexts: write_each(contexts))) for one in stages]
    second = sorted(stages, key=lambda one: one.key)[1]

    def write_each(contexts):
        for context in contexts:
            write_value(context)
            if context.stage.key == second.key:
                for name in store.lease_folder("vae", second.key).iterdir():
                    number = int(name.name)
                # Another host takes over, and clears what we wrote.
                (store.lease_folder("vae", second.key) / str(number + 1)).write_text("0")
                (context.folder / "value").unlink()

    uses = []
    ensure_together(stages, store, uses=uses, heartbeat=0.05)
    assert {use.key for use in uses} == {one.key for one in stages} - {second.key}
    assert not store.exists("vae", second.key)


def test_storage_that_refuses_a_stage_before_it_is_built_keeps_its_checkpoint(store, monkeypatch):
    one = stage(value=1)
    scratch = store.scratch("vae", one.key)
    scratch.mkdir(parents=True)
    (scratch / "fit.pt").write_text("hours of work")

    def refuse(kind, key):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "start_writing", refuse)
        with pytest.raises(InputError, match="No space left"):
            ensure(one, store)
    assert (scratch / "fit.pt").read_text() == "hours of work"
    assert ensure(one, store).reused is False
