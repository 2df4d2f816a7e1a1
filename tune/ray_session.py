"""The environment in which this project's processes start or join Ray."""

from __future__ import annotations

import os
import sys
from pathlib import Path

RAY_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # the workers share this environment: nothing to rebuild under `uv run`
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the controller's only clock: 2 s by default, at every turn of it
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # a wait for room for a fit's workers: other fits may hold it
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less; a vanished node is seen by its dead worker anyway
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Defaults that this project sets for Ray; a value already in the environment wins."""

OWN_RAY_ENVIRONMENT = {
    "RAY_prestart_worker_first_driver": "0",  # processes that neither fits nor trials can use, whose environment is another
    "RAY_preload_python_modules": "tune.preloaded",
}
"""The same, of a Ray that is started on this machine."""


def prepare_ray_environment() -> None:
    """Sets RAY_ENVIRONMENT's defaults, and token authentication; call it before `ray.init`, for all processes inherit them.

    A process reads RAY_AUTH_MODE when it imports ray. If that has happened, it is left alone: set now, it would reach
    the servers only, and they would refuse this process.
    """
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def prepare_own_ray() -> None:
    """Sets what a Ray needs that is started from here: its processes import this very code, wherever else some is installed."""
    for name, value in OWN_RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    here = str(Path(__file__).resolve().parents[1])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", here)]
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *paths])


def is_own_ray_prepared() -> bool:
    """Whether prepare_own_ray was called, so that Ray's processes import `tune.preloaded`."""
    return OWN_RAY_ENVIRONMENT.items() <= os.environ.items()


def job_server(address: str | None) -> str | None:
    """The cluster that a command line is sent to, named by `--address` or RAY_ADDRESS; None: it runs where it is."""
    named = address or os.environ.get("RAY_ADDRESS", "")
    return named.rstrip("/") if named.startswith(("http://", "https://")) else None
