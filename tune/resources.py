"""What a trial and a worker of a fit ask of a cluster: pure functions of its nodes.

A trial's process holds its share as long as it lives, also while its fits run in workers of their own. Ray places the workers
of one fit all at once or not at all, so fits that wait for each other come to their turn; a fit that waited for what the
trials hold would wait for ever. So a trial's share is chosen such that one fit can always be placed beside all trials,
however these happen to lie; where no share does that, a trial fits in its own process.

Where a cluster has GPUs, trials run on its nodes with GPUs only. A trial without one takes some hundred times as long, and
the study would end with it; and it computes in float32 what the others compute in bfloat16, so that a configuration's score
would depend on where it was tried. Nodes without GPUs then serve the driver alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from migvis.errors import InputError

NEXT_TO_NOTHING = 0.01
"""CPUs of a trial that leaves its CPUs to its workers: on every node some are left, so trials still spread over the nodes."""
ROOM_FOR_TRIALS = 0.1
"""CPUs that a worker on CPUs does not ask for, so that such trials find room beside it."""
BESIDE_A_GPU = 0.25
"""CPUs of a worker that computes on a GPU, at most."""


@dataclass(frozen=True)
class Share:
    """CPUs and GPUs that a node has, or that one process asks for."""

    cpus: float
    gpus: float = 0.0

    def __str__(self) -> str:
        return f"{self.gpus:g} GPU" if self.gpus else f"{self.cpus:g} CPU"


@dataclass(frozen=True)
class Placing:
    """trial: what each trial asks for. threads: CPU threads of a trial. workers: of each of its fits; 1: in its own process."""

    trial: Share
    threads: int
    workers: int


def place(nodes: Sequence[Share], *, threads: int, concurrent: int, workers: int) -> Placing:
    """How the trials of a study, `concurrent` at a time, each of `threads` CPU threads, share a cluster of `nodes`.

    Where there is not enough for all of them at once, each takes fewer CPUs or a fraction of a GPU; but a whole CPU, so that
    on fewer CPUs than trials some wait. workers: of a fit. Raises InputError where not even one fit's workers can be placed.
    """
    worker = worker_share(nodes, threads=threads, workers=workers)
    computing = [node for node in nodes if node.gpus >= 1] or list(nodes)
    if workers > 1:
        for trial in _trial_shares(computing, threads, concurrent, worker):
            if _room_beside(computing, worker, trial, concurrent) >= workers:
                return Placing(trial, _threads(trial, threads), workers)
    trial = next(_trial_shares(computing, threads, concurrent, None))
    return Placing(trial, _threads(trial, threads), 1)


def nodes_of(listed: Iterable[Mapping[str, Any]]) -> list[Share]:
    """The nodes that are alive, of what `ray.nodes()` lists."""
    alive = (node["Resources"] for node in listed if node["Alive"])
    return [Share(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def notes(nodes: Sequence[Share], placing: Placing, *, concurrent: int, workers: int) -> list[str]:
    """What a user may not expect of a placing, a sentence each."""
    result = []
    without = sum(node.gpus < 1 for node in nodes)
    if placing.trial.gpus and without:
        result.append(f"{without} of {len(nodes)} nodes have no GPU and run no trials")
    if placing.workers < workers:
        result.append(f"beside {concurrent} trials {workers} workers find no room, so a trial's fits run in its own process")
    return result


def worker_share(nodes: Sequence[Share], *, threads: int, workers: int) -> Share:
    """What each of the `workers` of a fit asks for: a whole GPU where there are any, else a CPU per thread.

    Fewer than `threads` CPUs where not all workers could be placed otherwise. Raises InputError where they cannot at all.
    """
    _check_any(nodes)
    with_gpus = [node for node in nodes if node.gpus >= 1]
    if with_gpus:
        cpus = min(BESIDE_A_GPU, *(node.cpus / node.gpus for node in with_gpus))
        shares = [Share(_rounded(cpus), 1.0)]
    else:
        shares = [Share(cpus - ROOM_FOR_TRIALS) for cpus in range(threads, 0, -1)]
    for share in shares:
        if sum(_places(node, share) for node in nodes) >= workers:
            return share
    has = ", ".join(f"{count} × {node}" for node, count in _counted(with_gpus or nodes))
    each = "a GPU" if with_gpus else "a CPU"
    raise InputError(f"search.fit_workers={workers}: so many workers with {each} each cannot be placed; the cluster has {has}")


def _check_any(nodes: Sequence[Share]) -> None:
    """Raises InputError where nothing can be placed: a cloud's head is there before its workers are."""
    if any(node.cpus >= 1 or node.gpus >= 1 for node in nodes):
        return
    hosts = "1 host" if len(nodes) == 1 else f"{len(nodes)} hosts"
    cpus = sum(node.cpus for node in nodes)
    raise InputError(f"--address: the cluster has no CPU for trials yet: {hosts} with {cpus:g} CPUs; wait for its workers")


def _trial_shares(nodes: Sequence[Share], threads: int, concurrent: int, worker: Share | None) -> Iterator[Share]:
    """What a trial may ask for, the largest first; at least one. worker: must find its CPUs beside the trials of a GPU."""
    gpus = sum(math.floor(node.gpus) for node in nodes)
    if gpus:
        reserved = 0.0 if worker is None else worker.cpus
        for per_gpu in range(math.ceil(concurrent / gpus), concurrent + 1):
            # So many CPUs that they never keep a trial from a GPU that has room for it.
            cpus = min((node.cpus - reserved * node.gpus) / min(concurrent, per_gpu * node.gpus) for node in nodes)
            yield Share(_rounded(max(0.0, min(threads, cpus))), _rounded(1 / per_gpu))
        return
    for cpus in range(threads, 0, -1):
        share = Share(float(cpus))
        # Not of more CPUs than leave room for all; a single CPU is what even the smallest machine has for one at a time.
        if cpus == 1 or sum(_places(node, share) for node in nodes) >= concurrent:
            yield share
    if worker is not None:
        yield Share(NEXT_TO_NOTHING)


def _room_beside(nodes: Sequence[Share], worker: Share, trial: Share, trials: int) -> int:
    """How many workers can be placed at once beside `trials` trials, wherever these lie."""
    fewest = {0: 0}  # by the number of trials on the nodes so far
    for node in nodes:
        extended: dict[int, int] = {}
        for here in range(min(trials, _places(node, trial)) + 1):
            # Ray fills up a GPU before it begins another one.
            left = Share(node.cpus - here * trial.cpus, node.gpus - math.ceil(here * trial.gpus - 1e-9))
            room = _places(left, worker)
            for before, count in fewest.items():
                if before + here <= trials:
                    extended[before + here] = min(count + room, extended.get(before + here, count + room))
        fewest = extended
    return fewest[max(fewest)]


def _places(node: Share, share: Share) -> int:
    """How many processes that ask for `share` a node has room for."""
    on_cpus = math.floor(node.cpus / share.cpus + 1e-9) if share.cpus > 0 else math.inf
    each_gpu = math.floor(1 / share.gpus + 1e-9) if share.gpus > 0 else 0
    on_gpus = math.floor(node.gpus) * each_gpu if each_gpu else math.inf
    return int(max(0, min(on_cpus, on_gpus, 1_000_000)))


def _threads(trial: Share, threads: int) -> int:
    """CPU threads of a trial: as many as it has CPUs, or all that are wanted if it leaves its CPUs to its workers."""
    return threads if trial.cpus == NEXT_TO_NOTHING else max(1, math.floor(trial.cpus))


def _rounded(amount: float) -> float:
    """Down to what Ray tells apart: three thirds of a GPU must not be more than one."""
    whole = math.floor(amount)
    return float(whole) if whole >= 1 else math.floor(amount * 10_000) / 10_000


def _counted(nodes: Sequence[Share]) -> list[tuple[Share, int]]:
    return [(node, list(nodes).count(node)) for node in dict.fromkeys(nodes)]
