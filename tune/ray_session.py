"""How this project's processes start or join Ray."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

RAY_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # the workers share this environment: nothing to rebuild under `uv run`
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the controller's only clock: 2 s by default, at every turn of it
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # importing torch on a busy machine takes more than the default 60
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less; a vanished node is seen by its dead worker anyway
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Defaults that this project sets for Ray; a value already in the environment wins."""


def prepare_ray_environment() -> None:
    """Sets RAY_ENVIRONMENT's defaults, and token authentication; call it before `ray.init`, for all processes inherit them.

    A process reads RAY_AUTH_MODE when it imports ray. If that has happened, it is left alone: set now, it would reach
    the servers only, and they would refuse this process.
    """
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def start_ray(address: str | None = None, *, attempts: int = 4, **options: Any) -> None:
    """Joins the cluster at `address`, or starts a local Ray quietly; `options` go to `ray.init`.

    A local start is tried again: Ray gives its own processes a fixed 30 s, too few on a machine that is busy with others.
    Raises what `ray.init` raises.
    """
    prepare_ray_environment()
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", **options}
    if address is not None:
        ray.init(address=address, **quiet)
        return
    import psutil  # found only once ray, which brings it along, is imported

    mine = psutil.Process()
    before = set(mine.children(recursive=True))
    for attempt in range(1, attempts + 1):
        try:
            ray.init(include_dashboard=False, **quiet)
            return
        except Exception as error:
            # What a failed start leaves running would slow down the next one.
            for process in set(mine.children(recursive=True)) - before:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if attempt == attempts or "timed out during startup" not in str(error):
                raise
