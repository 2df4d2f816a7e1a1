"""A recorded sequence of configurations, run for real one after another, and what it would cost with less reuse.

sequence.json holds uniform draws, each hyperparameter by itself, from the grid of factorial-0.json. Draws from the whole space
would share hardly a VAE, as its β alone takes hundreds of values; a grid is what people search by hand, and what a sampler that
returns to the VAEs it knows comes close to.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._studies import build_study_stages, opened
from tune.context import StudyContext
from tune.manifest import StageName
from tune.progress import Display
from tune.space import apply
from tune.stage_graph import topological
from tune.study_config import StudyConfig
from tune.study_data import open_data
from tune.trial import EXPECTED_SECONDS, run_trial, seeds_of, stages_of

FILE = Path(__file__).parent / "sequence.json"
STUDY = "sequence"


def drawn(grid: Mapping[str, Sequence[Any]], seed: int, count: int) -> list[dict[str, Any]]:
    """`count` configurations of a grid, every value drawn uniformly and by itself."""
    generator = np.random.default_rng(seed)
    return [{name: values[int(generator.integers(len(values)))] for name, values in grid.items()} for _ in range(count)]


def recorded() -> list[dict[str, Any]]:
    """The configurations of sequence.json, in their order."""
    return list(json.loads(FILE.read_text(encoding="utf-8"))["configurations"])


@dataclass(frozen=True)
class Played:
    """A sequence that was run. seconds: of wall time, the study's stages and all else between two stages included.

    study: the stages that are built before the first trial. configurations: all stages that each needs, the study's among
    them (one that the gate ended needs its VAEs only). costs: seconds of each stage, from its manifest.
    """

    seconds: float
    study: frozenset[StageName]
    configurations: Sequence[Sequence[StageName]]
    costs: Mapping[StageName, float]

    def distinct(self) -> set[StageName]:
        """Every stage once."""
        return set(self.study).union(*self.configurations)

    def each_once(self) -> float:
        """Seconds of the distinct stages: no order of building them costs less."""
        return sum(self.costs[stage] for stage in self.distinct())

    def without_reuse(self) -> float:
        """Seconds if every configuration paid for all of its stages."""
        return sum(self.costs[stage] for stages in self.configurations for stage in stages)

    def with_study_reuse(self) -> float:
        """Seconds if only the study's stages were built once, and every configuration paid for its others."""
        others = sum(self.costs[stage] for stages in self.configurations for stage in stages if stage not in self.study)
        return sum(self.costs[stage] for stage in self.study) + others

    def of_kind(self, kind: str) -> float:
        """Seconds of the distinct stages of a kind."""
        return sum(self.costs[stage] for stage in self.distinct() if stage[0] == kind)

    def count(self, kind: str) -> int:
        """Distinct stages of a kind."""
        return sum(stage[0] == kind for stage in self.distinct())


def play(config: StudyConfig, sequence: Sequence[dict[str, Any]], storage: Path) -> Played:
    """Runs the configurations as trials of a study, in this process and a fresh storage folder; progress goes to stderr.

    The data set is made before the clock starts, which runs while Ray starts and ends: the denoiser is fitted through it.
    """
    context = opened(config, open_data(config, storage), storage, STUDY)
    expected = {name: EXPECTED_SECONDS[name] for name in ("prepare", "trial")}
    gated = []
    with Display(context.folder / "progress", expected, sys.stderr) as display:
        display.phase("prepare")
        display.trials(0, len(sequence))
        began = time.perf_counter()
        build_study_stages(context)
        context.reporter("prepare").done()
        display.phase("search")
        for number, params in enumerate(sequence):
            start = time.perf_counter()
            gated.append(run_trial(context, apply(config.configuration, params), params, number).pruned)
            context.reporter(f"trial-{number:03d}").done()
            display.trials(number + 1, len(sequence))
            display.trial_took(time.perf_counter() - start)
        seconds = time.perf_counter() - began
    return _played(context, sequence, gated, seconds)


def _played(context: StudyContext, sequence: Sequence[dict[str, Any]], gated: Sequence[bool], seconds: float) -> Played:
    seeds = seeds_of(context, context.config.search.seeds_per_trial)
    study = topological(stages_of(context, context.config.configuration).study_stages())
    needed = []
    for params, ended in zip(sequence, gated, strict=True):
        stages = stages_of(context, apply(context.config.configuration, params))
        gate = [stages.representation(subject, seed) for subject in context.config.data.subjects for seed in seeds]
        needed.append(topological(gate if ended else stages.trial_stages(seeds)))
    store, costs = context.store(), {}
    for stage in {(stage.kind, stage.key) for stages in [study, *needed] for stage in stages}:
        manifest = store.peek(*stage)
        assert manifest is not None, stage
        costs[stage] = manifest.seconds
    names = [[(stage.kind, stage.key) for stage in stages] for stages in needed]
    return Played(seconds, frozenset((stage.kind, stage.key) for stage in study), names, costs)
