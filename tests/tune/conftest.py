from __future__ import annotations

import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tune.factorial import FactorialTable, Row
from tune.ray_session import prepare_ray_environment

# Before any test imports ray, which reads some of it once.
prepare_ray_environment()

# The science of the tests of whole studies: small, real functions of the parameters. Text, because a subprocess runs it as well.
SCIENCE = """
import json, math, os, sys, time
from pathlib import Path
from PIL import Image
from migvis.errors import InputError
from tune.context import DataSummary, Hooks
from tune.trial_result import FinalResult, Prepared, TrialResult

def open_data(config, storage):
    path = Path(config.data.path) if config.data.path else storage / "data.h5"
    if not path.exists() and config.data.path:
        raise InputError(f"{path}: no such file")
    path.touch()
    return DataSummary(path, "digest", 900)

def prepare(context):
    weights = context.folder / "denoiser.safetensors"
    weights.write_bytes(b"w")
    context.reporter("prepare").line("denoiser: fitted")
    return Prepared([{"kind": "denoiser", "key": "d", "seconds": 2.0, "reused": False}], {"models": weights})

def run_trial(context, configuration, params, number, vae_only=False):
    with open(context.folder / "calls.txt", "a") as handle:
        handle.write(json.dumps([number, params]) + "\\n")
    time.sleep(float(os.environ.get("TRIAL_SECONDS", "0")))
    if number == 1 and configuration.vae.epochs == 13:
        raise RuntimeError("non-finite loss")
    if configuration.vae.epochs == 14:
        raise InputError("weights.pt: not found")
    constraint = math.log10(params["pc_weight"]) + 2.5
    if constraint > 0:
        return TrialResult({"neural_r2": 0.5}, constraint=constraint, pruned=True)
    picture = context.trial_folder(number) / "edits.png"
    Image.new("L", (8, 8), number).save(picture)
    metrics = {"neural_r2": 0.9, "group_mig": 1 / params["group_rank"], "selectivity": params["edit_step"], "realism": 0.5}
    stages = [{"kind": "vae", "key": f"v{number}", "seconds": 1.0, "reused": False},
              {"kind": "denoiser", "key": "d", "seconds": 0.0, "reused": True}]
    return TrialResult(metrics, constraint=constraint, images={"edits": picture}, stages=stages, seconds={"vae": 1.0})

def finish(context, selected):
    bundle = context.folder / "bundle"
    bundle.mkdir(exist_ok=True)
    (bundle / "configuration.json").write_text(json.dumps(selected.params))
    picture = context.folder / "final.png"
    Image.new("L", (8, 8)).save(picture)
    return FinalResult({"neural_r2": 0.88}, bundle, images={"final": picture}, main_image=picture)

hooks = Hooks(open_data, prepare, run_trial, finish, plan=lambda context, space: f"plan of {context.study}: {space}",
              expected_seconds={"trial": 1.0, "final": 1.0})
"""


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory):
    """One local Ray of two CPUs for all tests of the session: a process cannot hold a second one."""
    os.environ["MIGVIS_CACHE"] = str(tmp_path_factory.mktemp("cache"))  # of all its processes
    from tune.ray_session import prepare_own_ray, prepare_ray_environment

    prepare_ray_environment()
    prepare_own_ray()
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def blank_mlflow(tmp_path_factory) -> Path:
    """One migrated MLflow database; MLflow takes seconds to make one."""
    from tune.tracking_writer import create_database

    folder = tmp_path_factory.mktemp("blank-mlflow")
    create_database(folder / "mlflow.db", folder / "mlflow-artifacts")
    return folder / "mlflow.db"


@pytest.fixture
def storage(blank_mlflow, tmp_path) -> Path:
    """A storage folder whose MLflow database exists already."""
    (tmp_path / "mlflow.db").write_bytes(blank_mlflow.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def science():
    """SCIENCE as functions that a Ray worker can be sent."""
    import ray.cloudpickle

    module = type(sys)("science_of_the_tests")
    exec(SCIENCE, module.__dict__)
    sys.modules[module.__name__] = module
    ray.cloudpickle.register_pickle_by_value(module)
    yield module.hooks
    ray.cloudpickle.unregister_pickle_by_value(module)
    del sys.modules[module.__name__]


@pytest.fixture
def driver_script(storage) -> Path:
    """A file that runs `main` with SCIENCE, for drivers in a process of their own."""
    path = storage / "driver.py"
    path.write_text(SCIENCE + "\nfrom tune.run import main\nsys.exit(main(sys.argv[1:], hooks))\n")
    return path


@pytest.fixture(scope="session")
def table() -> FactorialTable:
    """A table of invented values over a grid like that of the quick preset's, for what does not depend on them."""
    grid: dict[str, tuple[Any, ...]] = {
        "pc_weight": (5e-5, 1e-3, 1e-2),
        "group_count": (2, 4),
        "group_rank": (3, 6),
        "infonce_batch": (32, 64, 128),
        "edit_step": (0.6, 0.75, 0.9),
        "guidance_scale": (5.0, 20.0, 80.0),
    }
    costs = {"denoiser": 250.0, "trajectory": 20.0, "instruments": 25.0, "vae": 5.0, "standard_vae": 2.0, "representation": 1.0}
    costs |= {"critic": 9.0, "synthesis": 10.0, "evaluation": 4.0}
    rows = []
    for values in product(*grid.values()):
        params = dict(zip(grid, values, strict=True))
        beta, groups, rank, batch, step, scale = values
        vae = f"{beta:g}-{groups}-{rank}"
        keys = {"vae": vae, "standard_vae": f"{groups * rank}", "representation": vae}
        metrics = {"neural_r2": 0.95 - 10 * beta}
        constraint = 0.9 - metrics["neural_r2"]
        if constraint <= 0:
            edits = f"{vae}-{batch}-{step:g}-{scale:g}"
            keys |= {"denoiser": "0", "trajectory": "0", "instruments": "0", "critic": f"{vae}-{batch}"}
            keys |= {"synthesis": edits, "evaluation": edits}
            metrics |= {"group_mig": 1 / rank, "selectivity": step / groups, "realism": 1 / (1 + scale / 100)}
        rows.append(Row(params, metrics, constraint, tuple(keys.items())))
    return FactorialTable(
        grid, rows[0].params, tuple(rows), {(kind, key): costs[kind] for row in rows for kind, key in row.stages}
    )
