"""Searches over a factorial table, and when one of them is as good as another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from scipy.stats import binom

from tune.factorial import FactorialTable
from tune.samplers import sampler_by_number
from tune.selection import OBJECTIVES
from tune.simulator import STUDY_KINDS, Ended, distributions, simulate
from tune.store import StageName
from tune.study_config import SamplerName

STARTUP = 10
"""Random trials before TPE learns, as in Optuna's own default."""
SEEDS = 20
_EQUAL = 1e-12


def search(
    table: FactorialTable, sampler: SamplerName, seed: int, startup: int = STARTUP, trials: int | None = None
) -> Iterator[Ended]:
    """An endless search by one of the samplers that a study may use, on one machine, with the same stage store.

    trials: after how many it thinks that it ends.
    """
    asked = sampler_by_number(sampler, distributions(table), OBJECTIVES, seed=seed, startup_trials=startup, trials=trials)
    return simulate(table, asked)


class Tried(Protocol):
    """A trial that ended, simulated or real: when, and the hypervolume of all that ended until then."""

    @property
    def seconds(self) -> float: ...

    @property
    def hypervolume(self) -> float: ...


def there(trial: Tried, goal: float) -> bool:
    """Whether a search has the hypervolume `goal`; sums that differ by their order only are equal."""
    return trial.hypervolume >= goal - _EQUAL


def first_at(history: Sequence[Tried], goal: float) -> float:
    """Seconds at which a search first had the hypervolume `goal`, which it has in the end."""
    return next(trial.seconds for trial in history if there(trial, goal))


def reach(trials: Iterator[Ended], goal: float, longest: float) -> float:
    """Seconds until an endless search has the hypervolume `goal`, at most `longest`."""
    for trial in trials:
        if there(trial, goal) or trial.seconds > longest:
            return min(trial.seconds, longest)
    raise AssertionError("a search does not end")


def at_equal_hypervolume(ours: Sequence[Ended], rival: Sequence[Ended]) -> tuple[float, float]:
    """Seconds at which each of two searches first had what the rival has in the end; or we, if we never had that."""
    goal = min(ours[-1].hypervolume, rival[-1].hypervolume)
    return first_at(ours, goal), first_at(rival, goal)


def charged(history: Sequence[Ended], table: FactorialTable, kept: Callable[[str], bool]) -> list[Ended]:
    """The same trials on one machine at the prices of `table`, where stages of the kinds `kept` are paid once.

    As `simulate` does, for proposals that do not look at the prices: the stages of the study are there before.
    """
    built: set[StageName] = set()
    now, result = 0.0, []
    for trial in history:
        for stage in trial.stages:
            if stage[0] in STUDY_KINDS or stage in built:
                continue
            now += table.seconds[stage]
            if kept(stage[0]):
                built.add(stage)
        result.append(replace(trial, seconds=now))
    return result


def median_bounds(values: Sequence[float]) -> tuple[float, float]:
    """The two-sided 95 % interval of the median, by order statistics: no distribution is assumed."""
    rank = max(int(binom.ppf(0.025, len(values), 0.5)) - 1, 0)
    ordered = sorted(values)
    return ordered[rank], ordered[-1 - rank]
