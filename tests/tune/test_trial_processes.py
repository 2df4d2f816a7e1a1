"""A trial's process is started ahead, by a real Ray."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import ray
from ray import tune

from tests.tune.small_studies import context_of
from tune.trial_processes import start_processes


def processes() -> set[int]:
    """The ids of Ray's processes on this host that wait for work or do some, by the names that it gives them."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if path.read_bytes().startswith(b"ray::"):
                found.add(int(path.parent.name))
    return found


def own_process(config) -> None:
    tune.report({"process": os.getpid(), "imported": "tune.trial" in sys.modules})


def test_a_trial_gets_the_process_that_was_started_for_it(local_ray, tmp_path: Path) -> None:
    before = processes()
    start_processes(context_of(tmp_path, "study"))
    deadline = time.monotonic() + 60
    while not (started := processes() - before):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (result,) = tune.Tuner(
        tune.with_resources(own_process, {"cpu": 1}), run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0)
    ).fit()
    assert result.metrics["process"] in started
    assert result.metrics["imported"]


def test_a_ray_that_does_not_start_processes_ahead_stops_no_study(local_ray, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray._private.grpc_utils", None)
    before = processes()
    start_processes(context_of(tmp_path, "study"))
    assert processes() == before
    assert ray.is_initialized()
