from __future__ import annotations

import sys
from pathlib import Path

import pytest

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

def run_trial(context, configuration, params, number):
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
def local_ray():
    """One local Ray of two CPUs for all tests of the session: a process cannot hold a second one."""
    from tune.ray_session import prepare_ray_environment

    prepare_ray_environment()
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
