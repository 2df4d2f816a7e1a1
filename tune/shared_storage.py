"""A study's storage folder has to be the same one on all hosts of a cluster: each is asked once, before anything runs."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from migvis.errors import InputError


def check_shared(storage: Path, timeout: float = 120.0) -> None:
    """Raises InputError naming each host of the cluster that does not see `storage` as this one does, or cannot write there.

    A host that dies meanwhile, or has not answered after `timeout` seconds, is passed over: it may be back later.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    with tempfile.NamedTemporaryFile(dir=storage, prefix=".shared-") as mark:
        asked = [_ask(node, mark.name) for node in nodes]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout)
        problems = []
        for answer in answered:
            with contextlib.suppress(ray.exceptions.RayError):
                problems.append(ray.get(answer))
    found = sorted(problem for problem in problems if problem)
    if found:
        raise InputError(f"--storage {storage}: has to be one folder on all hosts: {'; '.join(found)}")


def _ask(node: dict[str, Any], mark: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_problem)
    return task.options(scheduling_strategy=there).remote(mark)


def _problem(mark: str) -> str:
    """What is wrong with the folder that should have the file `mark` in it, as the host that this runs on sees it; or nothing."""
    host = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
    if not Path(mark).exists():
        return f"{host} does not see what is in it here"
    try:
        with tempfile.TemporaryFile(dir=Path(mark).parent):
            return ""
    except OSError as error:
        return f"{host} cannot write there: {error.strerror}"
