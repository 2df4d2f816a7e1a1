"""Processes for trials, started while the longest fit runs: what one imports takes as long as a short trial does.

A node of Ray starts processes ahead when it is asked to, and gives them to actors of the same environment. Ray has no public
function for that, nor for the environment of Tune's actors. Should a later one answer differently, trials start as they do
on a cluster: in new processes.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import ray

from tune.context import StudyContext
from tune.placing import placing_of
from tune.ray_session import is_own_ray_prepared
from tune.resources import nodes_of

_KEPT_SECONDS = 7 * 24 * 3600
"""How long a process waits for its trial, at most."""


def start_processes(context: StudyContext) -> None:
    """Has the node start as many processes as the study runs trials at once; does not wait for them.

    Only in a Ray of this machine's own, and not where it has GPUs: what is imported before a process was given one might find
    that there is none.
    """
    nodes, search = [node for node in ray.nodes() if node["Alive"]], context.config.search
    shares = nodes_of(nodes)
    if not is_own_ray_prepared() or len(nodes) > 1 or shares[0].gpus:
        return
    trial = placing_of(search)[0].trial
    count = min(search.concurrent_trials, search.trials, int(shares[0].cpus // trial.cpus))
    with contextlib.suppress(Exception):
        _ask(f"{nodes[0]['NodeManagerAddress']}:{nodes[0]['NodeManagerPort']}", count)


def _ask(address: str, count: int) -> None:
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.utils import get_runtime_env_info
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc
    from ray.runtime_env import RuntimeEnv
    from ray.tune.execution.class_cache import DEFAULT_ENV_VARS, ENV_VARS_TO_PROPAGATE

    passed = {name: os.environ[name] for name in ENV_VARS_TO_PROPAGATE if name in os.environ}
    messages: Any = node_manager_pb2
    request = messages.PrestartWorkersRequest(
        language="PYTHON",
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        runtime_env_info=get_runtime_env_info(RuntimeEnv(env_vars={**DEFAULT_ENV_VARS, **passed})),
        keep_alive_duration_secs=_KEPT_SECONDS,
        num_workers=count,
    )
    with init_grpc_channel(address) as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=10)
