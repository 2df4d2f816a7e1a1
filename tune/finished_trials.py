"""What a sampler reads of a study's trials: plain values, from the study's database alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tune.levels import LEVEL_OF_KIND, Params

OBSERVED = "observed"
"""User attribute of a finished trial: {"values": raw objectives and ALIGNMENT by name, "seconds": of its stages, by level}."""
VAE_ONLY = "vae_only"
"""User attribute of a trial that ends after its VAE, true or absent: the sampler wants to see what that tells."""
VOID = "void"
"""User attribute of a failed attempt, true or absent: it says nothing of its configuration, for it never ran or is run again."""
ALIGNMENT = "alignment"
"""What a VAE tells of the selectivity of its edits."""
MEMORY = 100
"""Trials that are learnt from, at most, so that a proposal costs the same however many there are."""


@dataclass(frozen=True)
class Finished:
    """A trial that ended: its parameters, raw objectives (none: it ended after its VAE), constraint, and seconds by level.

    told: of the objectives and ALIGNMENT what was measured, by name.
    """

    params: Params
    values: tuple[float, ...] | None
    constraint: float | None
    seconds: Mapping[int, float]
    told: Mapping[str, float] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Whether the gate ended it."""
        return self.constraint is not None and self.constraint > 0


@dataclass(frozen=True)
class Running:
    """A trial under way. vae_only: as VAE_ONLY."""

    params: Params
    vae_only: bool = False


def observed(metrics: Mapping[str, float], objectives: Sequence[str], stages: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """What OBSERVED holds of a trial's metrics and of its stages' kinds and seconds, whoever built them and when."""
    seconds: dict[str, float] = {}
    for kind, cost in stages:
        if kind in LEVEL_OF_KIND:
            level = str(LEVEL_OF_KIND[kind])
            seconds[level] = seconds.get(level, 0.0) + cost
    values = {name: metrics[name] for name in (*objectives, ALIGNMENT) if math.isfinite(metrics.get(name, math.nan))}
    return {"values": values, "seconds": seconds}


def finished_trial(trial: FrozenTrial, objectives: Sequence[str]) -> Finished:
    """A COMPLETE or PRUNED trial of the study as samplers read it."""
    known = trial.user_attrs.get(OBSERVED, {})
    raw = known.get("values", {})
    values = None
    if trial.state == TrialState.COMPLETE:
        values = tuple(raw.get(name, value) for name, value in zip(objectives, trial.values, strict=True))
        raw = {**dict(zip(objectives, values, strict=True)), **raw}
    constraint = next(iter(trial.constraints.values()), None)
    seconds = {int(level): cost for level, cost in known.get("seconds", {}).items()}
    return Finished(trial.params, values, constraint, seconds, raw)


def remembered(complete: list[Finished]) -> list[Finished]:
    """The best of them by the sum of their objectives, one half, and the latest, in their order."""
    if len(complete) <= MEMORY:
        return complete
    latest, before = complete[-MEMORY // 2 :], complete[: -MEMORY // 2]
    order = sorted(range(len(before)), key=lambda row: -worth(before[row]))
    return [before[row] for row in sorted(order[: MEMORY // 2])] + latest


def worth(one: Finished) -> float:
    """Of a trial's objectives, each counted in [0, 1]."""
    return sum(min(max(value, 0.0), 1.0) for value in one.values or ())
