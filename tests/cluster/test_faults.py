"""A handful of faults on three test hosts; tests/cluster/faults.py injects more of them, and more often."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.fault_bench import Bench
from tests.cluster.faults import Faults
from tests.cluster.hosts import unavailable

REASON = unavailable()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.fixture(scope="module")
def faults() -> Iterator[Faults]:
    with tempfile.TemporaryDirectory(prefix="mf", dir="/tmp") as folder, Bench(Path(folder)) as bench:
        bench.start_cluster()
        yield Faults(bench)


@pytest.mark.parametrize("fault", ["driver", "second driver", "worker host", "head", "truncated file", "flipped file"])
def test_nothing_is_lost_and_the_selection_is_that_of_an_undisturbed_study(faults: Faults, fault: str) -> None:
    row = faults.inject(fault, seed=1)
    assert row.times > 0
    assert row.lost == []
    assert row.equal
    assert row.twice <= row.times  # at most the trial that was running
