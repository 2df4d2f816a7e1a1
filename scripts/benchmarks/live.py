"""The sampler in real searches: seconds to what TPE has after 25 trials of the quick preset, three seeds; about half an hour.

Nothing is simulated: trials are fitted, synthesized and judged, over the quick preset's own ranges. Each search has a stage
store of its own, in which only the study's stages are from before; what it builds once it reuses. Seeds are those of the search;
all fits have seed 0, as in one study. Ours ends where it has TPE's hypervolume, or after twice the seconds of all of TPE's
trials, and then counts as if it were there: the row's ratio is then too high, and its figure `reached` is 0.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks._frame import Options, Result, Row
from benchmarks._material import configuration
from benchmarks._searches import STARTUP, first_at, there
from benchmarks._studies import build_study_stages, opened, small_study
from tune.context import DataSummary, StudyContext
from tune.database import sqlite_url
from tune.hypervolume import hypervolume
from tune.ledger import Ledger
from tune.selection import OBJECTIVES, clipped
from tune.space import SearchSpace, apply
from tune.study_config import STUDY_PRESETS, SamplerName, StudyConfig
from tune.study_data import open_data
from tune.trial import run_trial

TRIALS, SEEDS = 25, 3
SMALL_TRIALS, SMALL_SEEDS = 3, 1
LONGEST = 2.0
"""A search that is not there after so many times the seconds of TPE's trials is ended."""


@dataclass(frozen=True)
class Ended:
    """A trial that ended: seconds of all trials until then, and the hypervolume of what they found."""

    seconds: float
    hypervolume: float


@dataclass(frozen=True)
class Raced:
    """Two searches with one seed: TPE's seconds to what it had in the end, ours to the same, and whether we had it."""

    tpe: float
    reuse: float
    reached: bool


def run(options: Options) -> Result:
    """A row for each seed; the benchmark's own ratio is their median."""
    config, trials, seeds = STUDY_PRESETS["quick"], TRIALS, SEEDS
    if options.small:
        config, trials, seeds = small_study(config, configuration(True)), SMALL_TRIALS, SMALL_SEEDS
    search = config.search.model_copy(update={"threads_per_trial": options.threads})
    config = config.model_copy(update={"search": search})
    with tempfile.TemporaryDirectory() as folder:
        searches = Searches(config, open_data(config, Path(folder)), Path(folder))
        say("building the stages that all trials share")
        build_study_stages(searches.opened("shared"))
        raced = [race(searches, seed, trials) for seed in range(seeds)]
    rows = [Row(f"seed {seed}: reuse, to TPE's end of {trials} trials", one.reuse, one.tpe) for seed, one in enumerate(raced)]
    reached = {f"reached, seed {seed}": float(one.reached) for seed, one in enumerate(raced)}
    return Result(rows, reached, ratio=median(row.ratio for row in rows))


def race(searches: Searches, seed: int, trials: int) -> Raced:
    """TPE first, then ours until it is as good."""
    tpe = list(islice(searches.search("tpe", seed), trials))
    goal, longest = tpe[-1].hypervolume, LONGEST * tpe[-1].seconds
    for trial in searches.search("reuse", seed):
        reached = there(trial, goal)
        if reached or trial.seconds > longest:
            return Raced(first_at(tpe, goal), min(trial.seconds, longest), reached)
    raise AssertionError("a search does not end")


@dataclass(frozen=True)
class Searches:
    """Searches over one data set, each in a storage folder of its own."""

    config: StudyConfig
    data: DataSummary
    folder: Path

    def opened(self, name: str) -> StudyContext:
        """A study in a folder of its own."""
        return opened(self.config, self.data, self.folder / name, name)

    def search(self, sampler: SamplerName, seed: int) -> Iterator[Ended]:
        """An endless search whose trials are run as they are asked for. seconds: of wall time, of the trials alone."""
        context = self.opened(f"{sampler}-{seed}")
        shutil.copytree(self.folder / "shared" / "stages", context.stages_root)
        space = SearchSpace.of(self.config, self.data.training_pictures)
        ledger = Ledger(
            sqlite_url(context.storage / "trials.db"), context.study, space=space, objectives=OBJECTIVES, identity={}, seed=seed,
            trials=sys.maxsize, startup_trials=STARTUP, sampler=sampler, start=space.start(self.config.configuration),
        )  # fmt: skip
        points: list[tuple[float, ...]] = []
        total, seconds = 0.0, 0.0
        while (proposal := ledger.propose()) is not None:
            began = time.perf_counter()
            configuration = apply(self.config.configuration, proposal.params)
            result = run_trial(context, configuration, proposal.params, proposal.number, proposal.vae_only)
            seconds += time.perf_counter() - began
            ledger.finish(proposal.number, result)
            values = None if result.pruned else clipped(result.metrics, OBJECTIVES)
            if values is not None:
                points.append(values)
                total = hypervolume(np.array(points))
            say(f"seed {seed}, {sampler}: {proposal.number + 1} trials, {seconds:.0f} s, hypervolume {total:.3f}")
            yield Ended(seconds, total)


def say(what: str) -> None:
    """To stderr."""
    print(what, file=sys.stderr, flush=True)
