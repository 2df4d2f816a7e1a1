"""What trials and workers ask of clusters, over invented nodes; and one study on real, unequal ones in test_clusters.py."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from migvis.errors import InputError
from tune.resources import NEXT_TO_NOTHING, Placing, Share, nodes_of, notes, place, worker_share

LAPTOP = [Share(2)]
SMALL = [Share(1)] * 3
MIXED = [Share(4), Share(8, 1), Share(16)]
EIGHT = [Share(32, 8)]


@pytest.mark.parametrize(
    ("nodes", "concurrent", "workers", "trial", "threads", "of_fit"),
    [
        pytest.param(LAPTOP, 1, 1, Share(2), 2, 1, id="laptop"),
        pytest.param(LAPTOP, 2, 1, Share(1), 1, 1, id="laptop, two trials at once have one core each"),
        pytest.param(LAPTOP, 4, 1, Share(1), 1, 1, id="laptop, two of four trials wait"),
        pytest.param(LAPTOP, 2, 2, Share(NEXT_TO_NOTHING), 2, 2, id="laptop, both cores are the workers'"),
        pytest.param([Share(1)], 2, 1, Share(1), 1, 1, id="one core"),
        pytest.param(SMALL, 1, 1, Share(1), 1, 1, id="no node has two CPUs"),
        pytest.param(SMALL, 3, 2, Share(NEXT_TO_NOTHING), 2, 2, id="three nodes, three trials, fits of two workers"),
        pytest.param([Share(8), Share(8)], 3, 2, Share(2), 2, 2, id="trials keep their CPUs where the workers find theirs"),
        pytest.param([Share(4), Share(2), Share(1)], 3, 1, Share(2), 2, 1, id="unequal nodes, room for all with two CPUs"),
        pytest.param([Share(4), Share(2), Share(1)], 7, 1, Share(1), 1, 1, id="unequal nodes, all of them needed"),
        pytest.param(MIXED, 1, 1, Share(2, 1), 2, 1, id="one GPU"),
        pytest.param(MIXED, 2, 1, Share(2, 0.5), 2, 1, id="two trials share a GPU"),
        pytest.param(MIXED, 3, 1, Share(2, 0.3333), 2, 1, id="three thirds are not more than a GPU"),
        pytest.param(MIXED, 6, 1, Share(1, 0.1666), 1, 1, id="six trials share the CPUs beside the GPU, too"),
        pytest.param(EIGHT, 4, 1, Share(2, 1), 2, 1, id="a GPU for each of four trials"),
        pytest.param(EIGHT, 4, 4, Share(2, 1), 2, 4, id="four GPUs for trials, four for a fit"),
        pytest.param(EIGHT, 4, 6, Share(2, 0.5), 2, 6, id="two GPUs for trials, six for a fit"),
        pytest.param(EIGHT, 4, 7, Share(2, 0.25), 2, 7, id="all trials on one GPU, seven for a fit"),
        pytest.param(EIGHT, 4, 8, Share(2, 1), 2, 1, id="a fit of all GPUs leaves none for trials"),
        pytest.param([Share(8, 1), Share(8, 1)], 2, 2, Share(2, 1), 2, 1, id="two GPUs, no third one for a trial"),
        pytest.param([Share(1, 4)], 4, 1, Share(0.25, 1), 1, 1, id="fewer CPUs than GPUs"),
    ],
)
def test_a_trial_takes(nodes, concurrent, workers, trial, threads, of_fit) -> None:
    assert place(nodes, threads=2, concurrent=concurrent, workers=workers) == Placing(trial, threads, of_fit)


@pytest.mark.parametrize(
    ("nodes", "threads", "workers", "share"),
    [
        pytest.param(LAPTOP, 2, 1, Share(1.9), id="all of a laptop, but for the room of trials"),
        pytest.param(LAPTOP, 2, 2, Share(0.9), id="a core each"),
        pytest.param(SMALL, 4, 3, Share(0.9), id="no more than a node has"),
        pytest.param([Share(4), Share(1)], 2, 3, Share(0.9), id="no more than there is room for all"),
        pytest.param(MIXED, 2, 1, Share(0.25, 1), id="a whole GPU"),
        pytest.param([Share(1, 8)], 2, 8, Share(0.125, 1), id="fewer CPUs than GPUs"),
    ],
)
def test_a_worker_takes(nodes, threads, workers, share) -> None:
    taken = worker_share(nodes, threads=threads, workers=workers)
    assert taken.cpus == pytest.approx(share.cpus)
    assert taken.gpus == share.gpus


@pytest.mark.parametrize(
    ("nodes", "workers", "message"),
    [
        (LAPTOP, 3, "search.fit_workers=3: so many workers with a CPU each cannot be placed; the cluster has 1 × 2 CPU"),
        (SMALL, 4, "search.fit_workers=4: so many workers with a CPU each cannot be placed; the cluster has 3 × 1 CPU"),
        (MIXED, 2, "search.fit_workers=2: so many workers with a GPU each cannot be placed; the cluster has 1 × 1 GPU"),
        ([Share(0)], 1, "--address: the cluster has no CPU for trials yet: 1 host with 0 CPUs; wait for its workers"),
        ([Share(0), Share(0)], 3, "--address: the cluster has no CPU for trials yet: 2 hosts with 0 CPUs; wait for its workers"),
        ([], 1, "--address: the cluster has no CPU for trials yet: 0 hosts with 0 CPUs; wait for its workers"),
    ],
)
def test_more_workers_than_there_is_room_for_are_refused(nodes, workers, message) -> None:
    with pytest.raises(InputError) as refused:
        place(nodes, threads=2, concurrent=2, workers=workers)
    assert str(refused.value) == message


def test_what_a_user_may_not_expect_is_said() -> None:
    def said(nodes: Sequence[Share], concurrent: int, workers: int) -> list[str]:
        placing = place(nodes, threads=2, concurrent=concurrent, workers=workers)
        return notes(nodes, placing, concurrent=concurrent, workers=workers)

    assert said(LAPTOP, 2, 2) == []
    assert said(MIXED, 2, 1) == ["2 of 3 nodes have no GPU and run no trials"]
    assert said(EIGHT, 4, 8) == ["beside 4 trials 8 workers find no room, so a trial's fits run in its own process"]


def test_only_living_nodes_count() -> None:
    alive = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0, "memory": 1e9}}
    assert nodes_of([alive, {"Alive": False, "Resources": {"CPU": 8.0}}, {"Alive": True, "Resources": {}}]) == [
        Share(4, 2),
        Share(0),
    ]


class Cluster:
    """What Ray would do: whatever is asked for takes any node with room; a GPU is filled up before the next one is begun."""

    def __init__(self, nodes: Sequence[Share], chance: random.Random) -> None:
        self.cpus, self.gpus, self.chance = [n.cpus for n in nodes], [[1.0] * int(n.gpus) for n in nodes], chance

    def put(self, share: Share) -> bool:
        """Whether there was room for it."""
        order = list(range(len(self.cpus)))
        self.chance.shuffle(order)
        for node in order:
            free = sorted((left, gpu) for gpu, left in enumerate(self.gpus[node]) if left >= share.gpus - 1e-9)
            if self.cpus[node] >= share.cpus - 1e-9 and (free or not share.gpus):
                self.cpus[node] -= share.cpus
                if share.gpus:
                    self.gpus[node][free[0][1]] -= share.gpus
                return True
        return False


def test_a_fit_always_finds_room_beside_the_trials_however_they_lie() -> None:
    for seed in range(500):
        check_room(random.Random(seed), with_gpus=seed % 2 == 1)


def check_room(chance: random.Random, *, with_gpus: bool) -> None:
    some = [Share(0), Share(1), Share(2), Share(3), Share(8)]
    some += [Share(4, 1), Share(3, 2), Share(16, 4), Share(1, 2)] if with_gpus else []
    nodes = [chance.choice(some) for _ in range(chance.randint(1, 6))]
    concurrent, workers, threads = chance.randint(1, 9), chance.randint(1, 5), chance.randint(1, 4)
    try:
        placing = place(nodes, threads=threads, concurrent=concurrent, workers=workers)
    except InputError:
        capacity = Cluster(nodes, chance)
        smallest = Share(0.01, 1) if any(node.gpus for node in nodes) else Share(1)
        assert sum(capacity.put(smallest) for _ in range(workers)) < workers
        return
    cluster = Cluster(nodes, chance)
    trials = sum(cluster.put(placing.trial) for _ in range(concurrent))
    if placing.trial.gpus or placing.trial.cpus == NEXT_TO_NOTHING:
        assert trials == concurrent
    else:
        assert trials == min(concurrent, sum(int(node.cpus // placing.trial.cpus) for node in nodes))
    assert trials >= 1
    assert 1 <= placing.threads <= threads
    if placing.workers > 1:
        assert placing.workers == workers
        worker = worker_share(nodes, threads=placing.threads, workers=workers)
        assert all(cluster.put(worker) for _ in range(workers))
