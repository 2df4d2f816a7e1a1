"""A trial's process is started ahead, by a real Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import ray
from ray import tune

from tests.tune.small_studies import context_of
from tune.ray_session import OWN_RAY_ENVIRONMENT
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


NO_GPU_IS_LOOKED_FOR = """
import os, sys, torch
def refuse(*arguments):
    raise AssertionError("a trial's process looks for GPUs before it was given one")
torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = refuse
os.environ["PL_DISABLE_FORK"] = "1"
import tune.preloaded
assert {"tune.trial", "matplotlib.figure"} <= set(sys.modules)
"""


def test_what_is_imported_ahead_looks_for_no_gpu() -> None:
    subprocess.run([sys.executable, "-c", NO_GPU_IS_LOOKED_FOR], check=True)


CHECKOUT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tune.ray_connection import connect
import ray
assert connect(None, None)
print(ray.get(ray.remote(lambda: sys.modules["tune"].__file__).remote()))
"""


def test_processes_import_the_code_of_the_checkout_that_runs(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for name in ("tune", "migvis"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "script.py"
    script.write_text(CHECKOUT.format(root=str(tmp_path)))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", *OWN_RAY_ENVIRONMENT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "tune" / "__init__.py")


def test_a_ray_that_does_not_start_processes_ahead_stops_no_study(local_ray, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray._private.grpc_utils", None)
    before = processes()
    start_processes(context_of(tmp_path, "study"))
    assert processes() == before
    assert ray.is_initialized()


def test_none_are_started_in_a_ray_of_somebody_else(local_ray, tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("tune.trial_processes._ask", lambda address, count: asked.append(count))
    start_processes(context_of(tmp_path, "study"))
    assert asked == [1]
    monkeypatch.delenv("RAY_preload_python_modules")
    start_processes(context_of(tmp_path, "study"))
    assert asked == [1]
