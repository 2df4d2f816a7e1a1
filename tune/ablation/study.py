"""What a named ablation is: its question, its cases, what is read of each, and how that is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tune.ablation.algebra import Cases
from tune.stage_graph import Stage
from tune.stages import Stages

if TYPE_CHECKING:
    from tune.ablation.outcome import Outcome
    from tune.pages.table import Table

LEAST_REALISM = 0.7
"""Realism at which methods and doses are compared: below it most of what is scored is no object."""
SPLIT = "test"
"""Where ablations are read: their cases are fixed beforehand, nothing is chosen by these images."""


@dataclass(frozen=True)
class Reading:
    """A stage of a case that is read: its metrics.json, if it writes one, with `prefix` before the names."""

    stage: Stage
    prefix: str = ""


Read = Callable[[Stages, str, int], list[Reading]]
"""(stages of a case, subject, seed) -> what is read of it."""
Figure = Callable[["Outcome", Path], dict[str, Path]]
"""(outcome, folder for PNG files) -> pictures by caption."""


MoreTables = Callable[["Outcome"], "list[Table]"]
"""outcome -> tables beside those of values and differences."""


@dataclass(frozen=True)
class Column:
    """A metric as a table shows it: times `factor`, with `digits` decimals."""

    metric: str
    label: str
    factor: float = 1.0
    digits: int = 3


@dataclass(frozen=True)
class Study:
    """A named ablation. `base` is the case that all others are compared with, paired by seed; none: no comparison.

    published: the papers' figures by (subject, case, metric), in the column's units. remark: where definitions differ from
    the papers', and what the figures do not show. subjects: places in the data set's list of them, from 0, as far as they
    exist, and at least `least_subjects`; none: those of the configuration.
    """

    name: str
    question: str
    cases: Cases
    read: Read
    columns: tuple[Column, ...]
    base: str | None = "full"
    subjects: tuple[int, ...] | None = None
    least_subjects: int = 1
    published: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    remark: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[MoreTables, ...] = ()


def representation(stages: Stages, subject: str, seed: int) -> list[Reading]:
    """What the VAE keeps of the responses, and how its groups are disentangled."""
    return [Reading(stages.representation(subject, seed, SPLIT))]


def edits(stages: Stages, subject: str, seed: int) -> list[Reading]:
    """`representation`, and the scores of the `target` edits of test pairs."""
    pairs = stages.configuration.synthesis.final_pairs
    return [*representation(stages, subject, seed), Reading(stages.evaluation(subject, seed, SPLIT, pairs))]


def edits_and_choice(stages: Stages, subject: str, seed: int) -> list[Reading]:
    """`edits`, and the scores on validation pairs, by which one case of several may be chosen."""
    return [*edits(stages, subject, seed), Reading(stages.evaluation(subject, seed), "validation/")]


def gallery(stages: Stages, subject: str, seed: int) -> list[Reading]:
    """`edits`, and the edits that are only shown: all groups, a sweep of scales, and both protocols."""
    return [*edits(stages, subject, seed), Reading(stages.gallery(subject, seed))]


def dimensions(group: int) -> Read:
    """`edits`, and what pairs of dimensions of a group do; a configuration with fewer groups has its last one shown."""

    def read(stages: Stages, subject: str, seed: int) -> list[Reading]:
        shown = min(group, stages.configuration.vae.group_count)
        return [*edits(stages, subject, seed), Reading(stages.dimension_gallery(subject, seed, shown))]

    return read
