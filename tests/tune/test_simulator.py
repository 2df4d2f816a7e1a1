from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any

import optuna
import pytest

from tune.factorial import FactorialTable
from tune.hypervolume import hypervolume
from tune.selection import OBJECTIVES, clipped
from tune.simulator import STUDY_KINDS, simulate


def random(sampler: type[optuna.samplers.RandomSampler] = optuna.samplers.RandomSampler) -> Callable[[int], Any]:
    lasting = sampler(seed=3)
    return lambda number: lasting


def test_one_machine_pays_for_every_distinct_stage_once(table: FactorialTable) -> None:
    trials = list(islice(simulate(table, random()), 40))
    distinct = {stage for trial in trials for stage in trial.row.stages if stage[0] not in STUDY_KINDS}
    assert trials[-1].seconds == pytest.approx(sum(table.seconds[stage] for stage in distinct))
    points = [clipped(trial.row.metrics, OBJECTIVES) for trial in trials if not trial.row.pruned]
    assert trials[-1].hypervolume == pytest.approx(hypervolume([point for point in points if point is not None]))


def test_what_is_not_reused_is_paid_for_by_every_trial(table: FactorialTable) -> None:
    trials = list(islice(simulate(table, random(), reused=lambda kind: False), 40))
    paid = sum(table.seconds[stage] for trial in trials for stage in trial.row.stages if stage[0] not in STUDY_KINDS)
    assert trials[-1].seconds == pytest.approx(paid)
    some = list(islice(simulate(table, random(), reused=lambda kind: kind == "vae"), 40))
    once = {stage for trial in trials for stage in trial.row.stages if stage[0] == "vae"}
    saved = sum(table.seconds[stage] for trial in trials for stage in trial.row.stages if stage[0] == "vae")
    assert some[-1].seconds == pytest.approx(paid - saved + sum(table.seconds[stage] for stage in once))


def test_machines_wait_for_a_stage_that_another_builds(table: FactorialTable) -> None:
    class Same(optuna.samplers.RandomSampler):
        """Always the first configuration of the grid."""

        def sample_independent(self, *arguments: object) -> int:
            return 0

    row = table.rows[0]
    alone = sum(table.seconds[stage] for stage in row.stages if stage[0] not in STUDY_KINDS)
    trials = list(islice(simulate(table, random(Same), machines=5), 20))
    assert [trial.seconds for trial in trials] == pytest.approx([alone] * 20)


def test_a_thousand_trials_on_64_machines(table: FactorialTable) -> None:
    trials = list(islice(simulate(table, random(), machines=64), 1000))
    times = [trial.seconds for trial in trials]
    assert times == sorted(times)
    volumes = [trial.hypervolume for trial in trials]
    assert all(after >= before - 1e-12 for before, after in pairwise(volumes))
    one = next(islice(simulate(table, random()), 999, None)).seconds
    assert one / 64 <= times[-1] <= one
