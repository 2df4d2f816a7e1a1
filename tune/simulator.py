"""A search on paper: any Optuna sampler over a factorial table, with the seconds that its stages would cost on some machines.

Trials start and end in simulated time, so a study of a thousand trials on 64 machines takes seconds to try.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.trial import Trial, TrialState

from tune.factorial import FactorialTable, Row, StageName
from tune.finished_trials import OBSERVED, VAE_ONLY, observed
from tune.hypervolume import hypervolume
from tune.samplers import ends_after_vae
from tune.selection import OBJECTIVES, clipped

STUDY_KINDS = frozenset({"denoiser", "pool", "embeddings", "instruments", "trajectory"})
"""Kinds of the stages that all trials share; they are built before the first one."""


@dataclass(frozen=True)
class Ended:
    """A simulated trial: when it ended, in seconds from the first one's start; hypervolume of all that ended until then.

    vae_only: it was to end after its VAE.
    """

    seconds: float
    row: Row
    hypervolume: float
    vae_only: bool = False

    @property
    def stages(self) -> tuple[StageName, ...]:
        """Those that it used."""
        return self.row.stages_of_vae if self.vae_only else self.row.stages


def distributions(table: FactorialTable) -> dict[str, IntDistribution]:
    """The grid as samplers see it: the places of a hyperparameter's values, in their order."""
    return {name: IntDistribution(0, len(values) - 1) for name, values in table.grid.items()}


def simulate(
    table: FactorialTable,
    sampler: Callable[[int], optuna.samplers.BaseSampler],
    *,
    machines: int = 1,
    reused: Callable[[str], bool] = lambda kind: True,
) -> Iterator[Ended]:
    """An endless search; yields trials in the order in which they end. Trial 0 is the table's start, as in a study.

    sampler: what proposes trial 0, 1, …
    machines: trials at once. reused: whether stages of a kind are kept for
    later trials; those of a kind that is not are built by every trial anew. A stage that another trial builds is waited for.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize"] * len(OBJECTIVES))
    study.enqueue_trial({name: values.index(table.start[name]) for name, values in table.grid.items()})
    rows = {tuple(row.params[name] for name in table.grid): row for row in table.rows}
    ready: dict[StageName, float] = {stage: 0.0 for row in table.rows for stage in row.stages if stage[0] in STUDY_KINDS}
    points: list[tuple[float, ...]] = []
    under_way: list[tuple[float, int, Trial, Row, bool]] = []
    number, now, total = 0, 0.0, 0.0
    while True:
        while len(under_way) < machines:
            study.sampler = sampler(number)
            trial = study.ask()
            row = rows[
                tuple(table.grid[name][trial.suggest_int(name, one.low, one.high)] for name, one in distributions(table).items())
            ]
            vae_only = ends_after_vae(study, trial)
            if vae_only:
                trial.set_user_attr(VAE_ONLY, True)
            end = _run(table, row.stages_of_vae if vae_only else row.stages, now, ready, reused)
            heapq.heappush(under_way, (end, number, trial, row, vae_only))
            number += 1
        now, _, trial, row, vae_only = heapq.heappop(under_way)
        ended = Ended(now, row, total, vae_only)
        costs = ((stage[0], table.seconds[stage]) for stage in ended.stages)
        metrics = row.metrics_of_vae if vae_only else row.metrics
        trial.set_user_attr(OBSERVED, observed(metrics, OBJECTIVES, costs))
        trial.set_constraint("neural_r2", row.constraint)
        values = None if row.pruned or vae_only else clipped(row.metrics, OBJECTIVES)
        if values is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, list(values))
            if values not in points:
                points.append(values)
                total = hypervolume(np.array(points))
        yield replace(ended, hypervolume=total)


def _run(
    table: FactorialTable,
    stages: Iterable[StageName],
    start: float,
    ready: dict[StageName, float],
    reused: Callable[[str], bool],
) -> float:
    """When a trial of some stages that starts at `start` ends. Updates when stages are ready."""
    now = start
    for stage in stages:
        if stage in ready:
            now = max(now, ready[stage])
            continue
        now += table.seconds[stage]
        if reused(stage[0]):
            ready[stage] = now
    return now
