"""A process' connection to Ray: a cluster that it joins, or a Ray of its own on this machine."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path

import ray

from migvis.errors import InputError
from tune.ray_session import prepare_own_ray, prepare_ray_environment
from tune.shared_storage import check_shared

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The study shows its own progress and keeps its own records.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Ctrl-C is the driver's to handle.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
_ATTEMPTS = 3
_NEWS_SECONDS = 10.0


def connect(address: str | None, storage: Path | None) -> bool:
    """Joins the cluster at `address` (auto, HOST:PORT), or at RAY_ADDRESS, or starts a local Ray.

    Returns False where this process is connected already, so that whoever connected it disconnects it.
    Raises InputError where no cluster answers, one of its hosts does not share the `storage` folder (None: none need to), or a
    local Ray does not come up, and KeyboardInterrupt at SIGTERM.
    """
    prepare_ray_environment()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return False
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        _connect(address)
    except SystemExit:
        # Its handler, where a SIGTERM came while it was starting.
        raise KeyboardInterrupt from None
    finally:
        # Ray puts a handler of its own there, which exits on the spot.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
    if storage is not None:
        check_shared(storage)
    return True


def disconnect() -> None:
    """Ends the connection, and the Ray that `connect` started; may run beside other work of this process.

    Meanwhile nothing is looked for as garbage, by whichever thread: an object reference found there would be told to a core
    worker that has just gone, and that ends the process at once, with exit code 1 and not a word (Ray 2.60).
    """
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def starts_one(address: str | None) -> bool:
    """Whether `connect` would start a Ray of this process' own."""
    return not (ray.is_initialized() or address or os.environ.get("RAY_ADDRESS"))


def _connect(address: str | None) -> None:
    named = f"--address {address}" if address else f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS')}"
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address, named)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            raise InputError(f"{named}: no Ray cluster answers: {_first_line(error)}") from None
        return
    prepare_own_ray()
    attempt = 0
    while True:
        attempt += 1
        try:
            # Without "local" Ray would join any cluster that it finds on this machine.
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:
            # Ray waits 30 s for its own processes, which a busy machine may exceed.
            ray.shutdown()
            if attempt == _ATTEMPTS:
                raise InputError(f"Ray did not start on this machine: {_first_line(error)}") from None
            time.sleep(2.0)


def _check_answers(address: str, named: str, timeout: float = 5.0) -> None:
    """Raises InputError, which begins with `named`, where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the last one for a host's name that cannot be one
        raise InputError(f"{named}: no Ray cluster answers: {_first_line(error)}") from None


def is_lost(node: str) -> bool:
    """Whether the cluster has lost a node, by its id.

    Waits a little for the news: of a host that dies, a process may be missed before its node is.
    """
    deadline = time.monotonic() + _NEWS_SECONDS
    while True:
        alive = {entry["NodeID"] for entry in ray.nodes() if entry["Alive"]}
        if node not in alive:
            return True
        if len(alive) == 1 or time.monotonic() > deadline:  # the only one is the driver's own
            return False
        time.sleep(0.2)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
