"""The cluster at hand: how a study's trials share it, and its own long parts brought to where the GPUs are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray

from tune.context import StudyContext
from tune.resources import Placing, nodes_of, notes, place
from tune.stores import is_object_store
from tune.study_config import SearchConfig
from tune.study_folder import StudyFailed

Result = TypeVar("Result")


def placing_of(search: SearchConfig) -> tuple[Placing, list[str]]:
    """How the trials of a study share the cluster as it is now, and what its user should know of that.

    Raises InputError where the cluster cannot place `search.fit_workers`.
    """
    nodes, concurrent, workers = nodes_of(ray.nodes()), search.concurrent_trials, search.fit_workers
    placing = place(nodes, threads=search.threads_per_trial, concurrent=concurrent, workers=workers)
    return placing, notes(nodes, placing, concurrent=concurrent, workers=workers)


def near_gpus(function: Callable[..., Result], context: StudyContext, *arguments: Any) -> Result:
    """function(context, *arguments) in this process; where only other nodes have GPUs, on one of these, with a trial's share.

    There it must not wait for a fit that takes more than the workers which its context tells it to use. Function and arguments
    are sent by pickle. Raises what the function raises, and StudyFailed where its process dies again and again.
    """
    # Where hosts share no folder, what is read afterwards has to be on this one.
    if not ray.is_initialized() or is_object_store(context.stages_root) or not _only_elsewhere():
        return function(context, *arguments)
    search = context.config.search
    placing, _ = placing_of(search)
    share = placing.trial
    task: Any = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=search.retries)(function)
    try:
        result: Result = ray.get(task.remote(context.of_trials(placing.threads, placing.workers), *arguments))
        return result
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise StudyFailed(f"its process on a node with GPUs died: {(str(error).splitlines() or [''])[0]}") from None


def _only_elsewhere() -> bool:
    """Whether the cluster has GPUs, but none on this process' node."""
    own = ray.get_runtime_context().get_node_id()
    gpus = {node["NodeID"]: node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]}
    return gpus.get(own, 0.0) < 1 <= max(gpus.values(), default=0.0)
