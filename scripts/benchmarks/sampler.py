"""Seconds until a search is as good as TPE's in the end: on tables of 324 evaluated configurations, with the same stage store.

Every sampler proposes on the table's grid, stages cost what they cost when the table was made, and what is built once is reused
by all samplers alike. What is best in a table is partly the luck of its fits and pairs, so there are seven tables of the same
grid, each from another seed, with 20 searches on each; the reference point of the hypervolume is fixed in tune/hypervolume.py.
Our sampler was made while looking at tables 0 to 5; table 6 was made and looked at afterwards only.
TPE's own seconds are those until it first had what it has in the end. It begins with ten random trials, as Optuna's own default
does; beside it stands one with as few as the quick preset's, and, at equal trials instead of seconds, the default study, in which
a look at a VAE counts. The bounds are of another search on these tables; tables differ more than the searches on one of them do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, median

import optuna
from optuna.distributions import BaseDistribution

from benchmarks._frame import Options, Result, Row
from benchmarks._material import factorials
from benchmarks._searches import SEEDS, STARTUP, first_at, median_bounds, reach, search
from tune.factorial import FactorialTable
from tune.levels import LEVELS
from tune.simulator import Ended, simulate
from tune.study_config import STUDY_PRESETS

TRIALS = (50, 12, 25, 100)
"""Trials of TPE, whose end is to be reached: the benchmark's own figure first, the others beside it."""
LONGEST = 10.0
"""A search that is not there after so many times the seconds of TPE's whole study is ended, and counts as if it were."""


class GriddedSampler(optuna.samplers.RandomSampler):
    """Random search for pipelines: each VAE is followed by some critics, and each of those by some edits, before the next."""

    CRITICS, EDITS = 2, 3

    def __init__(self, names: Sequence[Sequence[str]], seed: int) -> None:
        super().__init__(seed=seed)
        self._level = {name: level for level, level_names in enumerate(names) for name in level_names}
        self._last: dict[str, int] = {}

    def sample_independent(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, name: str, distribution: BaseDistribution
    ) -> int:
        kept = {0: trial.number % (self.CRITICS * self.EDITS), 1: trial.number % self.EDITS, 2: 0}[self._level[name]]
        if not kept or name not in self._last:
            self._last[name] = super().sample_independent(study, trial, name, distribution)
        return self._last[name]


@dataclass(frozen=True)
class Searched:
    """Seconds that the samplers took to what TPE had in the end, by seed; TPE's own first."""

    tpe: list[float]
    other: dict[str, list[float]]

    def ratios(self, name: str) -> list[float]:
        """TPE's seconds over those of `name`, by seed."""
        return [base / own for base, own in zip(self.tpe, self.other[name], strict=True)]


def searches(table: FactorialTable, seed: int, startup: int = STARTUP) -> dict[str, Callable[[], Iterator[Ended]]]:
    """A search by each sampler, by name. startup: of TPE."""

    def gridded(sampler: GriddedSampler) -> Iterator[Ended]:
        return simulate(table, lambda number: sampler)

    return {
        "reuse": lambda: search(table, "reuse", seed),
        "tpe": lambda: search(table, "tpe", seed, startup),
        "nsga2": lambda: search(table, "nsga2", seed),
        "gridded random": lambda: gridded(GriddedSampler(LEVELS, seed)),
        "random": lambda: search(table, "random", seed),
    }


def compare(
    tables: Sequence[FactorialTable], trials: int, seeds: int, names: Sequence[str] = (), startup: int = STARTUP
) -> list[Searched]:
    """All samplers, or those named, against TPE's `trials` trials of which `startup` are random, by table."""
    found = []
    for table in tables:
        tpe: list[float] = []
        other: dict[str, list[float]] = {}
        for seed in range(seeds):
            ways = searches(table, seed, startup)
            history = list(islice(ways.pop("tpe")(), trials))
            goal = history[-1].hypervolume
            tpe.append(first_at(history, goal))
            for name, way in ways.items():
                if names and name not in names:
                    continue
                other.setdefault(name, []).append(reach(way(), goal, LONGEST * history[-1].seconds))
        found.append(Searched(tpe, other))
    return found


def at_equal_trials(tables: Sequence[FactorialTable], trials: int, seeds: int, startup: int) -> dict[str, float]:
    """Mean hypervolumes and seconds of ours and of TPE after as many trials, and in what share of searches ours is ahead."""
    ends = []
    for table in tables:
        for seed in range(seeds):
            ours, tpe = search(table, "reuse", seed, trials=trials), search(table, "tpe", seed, startup)
            ends.append([list(islice(one, trials))[-1] for one in (ours, tpe)])
    found = {"ahead": fmean(ours.hypervolume > tpe.hypervolume for ours, tpe in ends)}
    for place, name in enumerate(("reuse", "tpe")):
        found[f"{name}, hypervolume"] = fmean(pair[place].hypervolume for pair in ends)
        found[f"{name}, seconds"] = fmean(pair[place].seconds for pair in ends)
    return {f"{trials} trials each: {name}": value for name, value in found.items()}


def run(options: Options) -> Result:
    """Rows: each sampler against TPE of 50 trials, then the reuse-aware one against TPE of 12, 25 and 100; medians over all
    searches. Figures: median ratios and their lower bounds, of all tables and of each; and `at_equal_trials`."""
    import torch

    torch.set_num_threads(1)
    tables = factorials()[:1] if options.small else factorials()
    rows, figures = [], {}
    seeds = 2 if options.small else SEEDS

    def tell(name: str, ratios: Sequence[float]) -> None:
        figures[f"median ratio, {name}"] = median(ratios)
        figures[f"its lower 95 % bound, {name}"] = median_bounds(ratios)[0]

    for trials in TRIALS[:1] if options.small else TRIALS:
        count = 12 if options.small else trials
        searched = compare(tables, count, seeds, () if trials == TRIALS[0] else ["reuse"])
        tpe = [seconds for one in searched for seconds in one.tpe]
        for name in searched[0].other:
            label = f"{name}, to TPE's end of {count} trials"
            rows.append(Row(label, median(seconds for one in searched for seconds in one.other[name]), median(tpe)))
            tell(label, [ratio for one in searched for ratio in one.ratios(name)])
        for number, one in enumerate(searched):
            tell(f"reuse, to TPE's end of {count} trials, table {number}", one.ratios("reuse"))
    quick = STUDY_PRESETS["quick"].search
    count = 12 if options.small else TRIALS[0]
    eager = compare(tables, count, seeds, ["reuse"], quick.startup_trials)
    name = f"reuse, to the end of {count} trials of TPE of which {quick.startup_trials} are random"
    tell(name, [ratio for one in eager for ratio in one.ratios("reuse")])
    figures |= at_equal_trials(tables, count if options.small else quick.trials, seeds, quick.startup_trials)
    return Result(rows, figures, ratio=figures[f"median ratio, {rows[0].name}"])
