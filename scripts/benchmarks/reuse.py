"""What it saves to build each stage once: 32 configurations run for real, and 100 trials of the paper preset on paper.

First the recorded random sequence (sequence.json) by the quick preset, against the sum of its distinct stages' seconds, against
no reuse, and against a reuse of the denoiser and the study's other stages alone; a quarter of an hour. Then our sampler with the
stage store, against TPE where every trial builds its own VAE, critic and edits: searches over the sampler's tables, whose
outcomes are those of the quick preset, at the costs of the paper preset, extrapolated from a few steps here (see _paper.py).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from benchmarks._frame import Options, Result, Row
from benchmarks._material import configuration, factorials
from benchmarks._paper import configuration as paper_configuration
from benchmarks._paper import priced, study_seconds
from benchmarks._paper_steps import measure
from benchmarks._searches import SEEDS, at_equal_hypervolume, charged, median_bounds, search
from benchmarks._sequence import Played, play, recorded
from benchmarks._studies import SMALL_BATCH, small_study
from tune.factorial import FactorialTable
from tune.study_config import STUDY_PRESETS

TRIALS = 100
SMALL_TRIALS, SMALL_SEEDS, SMALL_SEQUENCE = 12, 2, 3
RIVALS = {
    "keeping the study's stages": lambda kind: False,
    "keeping these and edits": lambda kind: kind in ("synthesis", "evaluation"),
    "keeping all stages": lambda kind: True,
}
"""What TPE may keep for later trials beside the study's stages: kinds of a trial's own. The second pays for no edit twice that it
proposes twice, as it often does on a grid."""
DENOISER_ALONE = "keeping the denoiser alone"
EARLIER = {25: "keeping the study's stages, its first 25 trials", 50: "keeping the study's stages, its first 50 trials"}
"""Shorter searches, whose end is to be reached instead: after 100 of the table's 324 configurations any search nears its best."""
WITH_STUDY = "keeping the study's stages, which both pay for"


def run(options: Options) -> Result:
    """Rows: the sequence against its three baselines, then the searches: medians over seeds, whose ratios are figures."""
    played = sequence(options)
    tables, study, steps = paper(options)
    torch.set_num_threads(1)
    trials, seeds = (SMALL_TRIALS, SMALL_SEEDS) if options.small else (TRIALS, SEEDS)
    on_paper = OnPaper.compared(tables, study, trials, seeds)
    label = f"paper scale (extrapolated from {min(steps.values())} to {max(steps.values())} steps here), {trials} trials, TPE"
    figures = {**figures_of(played), **on_paper.figures(label), **{f"measured_steps_{name}": n for name, n in steps.items()}}
    return Result([*rows_of(played), *on_paper.rows(label)], figures)


def sequence(options: Options) -> Played:
    """The recorded sequence, run; small: its first configurations on a tiny data set."""
    chosen, config = recorded(), STUDY_PRESETS["quick"]
    if options.small:
        chosen = [{**params, "infonce_batch": SMALL_BATCH} for params in chosen[:SMALL_SEQUENCE]]
        config = small_study(config, configuration(True))
    with tempfile.TemporaryDirectory() as folder:
        return play(config, chosen, Path(folder))


def rows_of(played: Played) -> list[Row]:
    """The sequence against the sum of its distinct stages, which nothing beats, and against less reuse."""
    name = f"reuse: one recorded random sequence of {len(played.configurations)} configurations (quick)"
    return [
        Row(name, played.seconds, played.each_once()),
        Row("the same, against no reuse at all", played.seconds, played.without_reuse()),
        Row("the same, against reusing the study's stages alone", played.seconds, played.with_study_reuse()),
    ]


def figures_of(played: Played) -> dict[str, float]:
    """How much of the sequence is the denoiser, what lies between stages, and how many distinct stages there are."""
    kinds = sorted({kind for kind, _ in played.distinct()})
    return {
        "denoiser_share": played.of_kind("denoiser") / played.seconds,
        "seconds_between_stages": played.seconds - played.each_once(),
        **{f"distinct_{kind}": played.count(kind) for kind in kinds},
        **{f"seconds_{kind}": played.of_kind(kind) for kind in kinds},
    }


def paper(options: Options) -> tuple[list[FactorialTable], Mapping[str, float], Mapping[str, int]]:
    """The tables at the costs of the paper preset, seconds of the study's stages, and from how many steps both are known."""
    config, tables = paper_configuration(options.small), factorials()[: 1 if options.small else None]

    def say(what: str) -> None:
        print(f"measuring the paper preset: {what}", file=sys.stderr, flush=True)

    measured = measure(tables[0], config, say)
    return [priced(table, measured, config) for table in tables], study_seconds(measured, config), measured.steps


@dataclass(frozen=True)
class OnPaper:
    """Seconds (ours, TPE's) at equal hypervolume, by what TPE keeps, of each search; and what a fit of a stage's kind costs."""

    pairs: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)

    @classmethod
    def compared(cls, tables: Sequence[FactorialTable], study: Mapping[str, float], trials: int, seeds: int) -> OnPaper:
        """Our sampler with the stage store against TPE with less: `seeds` searches on each table."""
        found = cls({}, {**study, **_typical(tables[0])})
        searches = [(table, seed) for table in tables for seed in range(seeds)]
        for number, (table, seed) in enumerate(searches, 1):
            ours = list(islice(search(table, "reuse", seed), trials))
            rival = list(islice(search(table, "tpe", seed), trials))
            for name, kept in RIVALS.items():
                found.pairs.setdefault(name, []).append(at_equal_hypervolume(ours, charged(rival, table, kept)))
            for count, name in EARLIER.items():
                part = charged(rival[:count], table, lambda kind: False)
                found.pairs.setdefault(name, []).append(at_equal_hypervolume(ours, part))
            alone = charged(rival, _with_study_stages(table, study), lambda kind: False)
            found.pairs.setdefault(DENOISER_ALONE, []).append(at_equal_hypervolume(ours, alone))
            before, (mine, others) = sum(study.values()), found.pairs[next(iter(RIVALS))][-1]
            found.pairs.setdefault(WITH_STUDY, []).append((before + mine, before + others))
            print(f"searched {number} of {len(searches)} times", file=sys.stderr, flush=True)
        return found

    def rows(self, label: str) -> list[Row]:
        """Medians over the searches."""
        return [
            Row(f"{label} {name}", *(median(of_seeds) for of_seeds in zip(*pairs, strict=True)))
            for name, pairs in self.pairs.items()
        ]

    def figures(self, label: str) -> dict[str, float]:
        """The median ratio of each row with its 95 % bounds, and seconds of the stages."""
        result: dict[str, float] = {}
        for name, pairs in self.pairs.items():
            ratios = [rival / ours for ours, rival in pairs]
            low, high = median_bounds(ratios)
            result |= {f"median ratio, {label} {name}": median(ratios)}
            result |= {f"its lower 95 % bound, {label} {name}": low, f"its upper 95 % bound, {label} {name}": high}
        return result | {f"extrapolated_seconds_{kind}": seconds for kind, seconds in self.costs.items()}


def _with_study_stages(table: FactorialTable, study: Mapping[str, float]) -> FactorialTable:
    """The table where edits cost what the study's stages but the denoiser do, too: nobody keeps them."""
    more = sum(seconds for kind, seconds in study.items() if kind != "denoiser")
    seconds = {stage: cost + more * (stage[0] == "synthesis") for stage, cost in table.seconds.items()}
    return FactorialTable(table.grid, table.start, table.rows, seconds)


def _typical(table: FactorialTable) -> dict[str, float]:
    """The median seconds of the stages of each kind that trials build."""
    by_kind: dict[str, list[float]] = {}
    for (kind, _), seconds in table.seconds.items():
        if seconds > 0:
            by_kind.setdefault(kind, []).append(seconds)
    return {kind: median(costs) for kind, costs in by_kind.items()}
