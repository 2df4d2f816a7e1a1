"""Which trial is selected: pure functions over the finished trials."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from migvis.errors import InputError

OBJECTIVES = ("group_mig", "selectivity", "realism")
"""What the search maximises, each on a fixed [0, 1]."""
OWN_MOVES = ("move_pose_group1", "move_category_group2")
"""How far edits of groups 1 and 2 carry their own attribute to the target's: 0 not at all, 1 all the way."""
LEAST_MOVE = 0.2
"""Mean own move from which edits count as edits: a fifth of the way. Two of 16 categories that change by chance make 0.06."""


@dataclass(frozen=True)
class Candidate:
    """A finished trial. constraint: feasible at 0 or below (None: none was asked); metrics may lack objectives."""

    number: int
    params: dict[str, Any]
    metrics: Mapping[str, float]
    constraint: float | None = None

    @property
    def feasible(self) -> bool:
        return self.constraint is None or self.constraint <= 0


@dataclass(frozen=True)
class Selected:
    """The selected trial, the rule that selected it, and a warning to be said loudly (empty: none)."""

    trial: int
    params: dict[str, Any]
    rule: str
    warning: str = ""


Rule = Callable[[Sequence[Candidate]], int]
"""A rule of one's own: candidates in, the selected trial's number out."""


def own_move(metrics: Mapping[str, float]) -> float | None:
    """Mean of OWN_MOVES; None where a data set has no labels to measure them."""
    known = [float(metrics[name]) for name in OWN_MOVES if math.isfinite(metrics.get(name, math.nan))]
    return sum(known) / len(known) if known else None


def edits_something(candidate: Candidate) -> bool:
    """Whether a trial's edits move what they should at all, as far as this was measured."""
    move = own_move(candidate.metrics)
    return move is None or move >= LEAST_MOVE


def clipped(metrics: Mapping[str, float], objectives: Sequence[str]) -> tuple[float, ...] | None:
    """The objectives on their fixed [0, 1], or None if one is absent or not finite."""
    values = [metrics.get(name, math.nan) for name in objectives]
    if not all(math.isfinite(value) for value in values):
        return None
    return tuple(min(max(float(value), 0.0), 1.0) for value in values)


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Rows of points [n, k] (all maximised) that no other row dominates: bool [n]; equal rows all stay."""
    at_least = np.all(points[None, :, :] >= points[:, None, :], axis=2)
    better = np.any(points[None, :, :] > points[:, None, :], axis=2)
    return np.asarray(~np.any(at_least & better, axis=1))


def ideal_corner(candidates: Sequence[Candidate], objectives: Sequence[str] = OBJECTIVES) -> Selected:
    """The feasible Pareto point nearest to the ideal corner (1, …, 1) of the clipped objectives.

    A stimulus returned as it was is perfectly real, so trials whose edits move nothing (own_move below LEAST_MOVE) stand
    back as long as another one's do. Equal distances: the lower trial number. With no feasible point, the trial of the
    highest neural_r2. The warning says if no trial was feasible, or none moved anything. Raises InputError without any
    candidate.
    """
    if not candidates:
        raise InputError("selection: the study has no finished trial")
    scored = [(candidate, values) for candidate in candidates if (values := clipped(candidate.metrics, objectives)) is not None]
    feasible = [(candidate, values) for candidate, values in scored if candidate.feasible]
    if feasible and objectives:
        moving = [(candidate, values) for candidate, values in feasible if edits_something(candidate)]
        warning = "" if moving else f"NO TRIAL'S EDITS MOVED THE ATTRIBUTE OF THEIR GROUP ({len(feasible)} feasible trials)."
        feasible = moving or feasible
        points = np.asarray([values for _, values in feasible])
        distance = np.where(pareto_front(points), np.linalg.norm(1.0 - points, axis=1), np.inf)
        order = sorted(range(len(feasible)), key=lambda index: (distance[index], feasible[index][0].number))
        chosen = feasible[order[0]][0]
        return Selected(chosen.number, dict(chosen.params), "ideal_corner", warning)
    best = max(candidates, key=_by_r2)
    warning = (
        f"NO TRIAL MET THE neural_r2 CONSTRAINT ({len(candidates)} finished): selected trial {best.number}, the highest neural_r2"
        f" ({best.metrics.get('neural_r2', math.nan):.3f}). Its latents lose too much of the responses to be trusted."
    )
    return Selected(best.number, dict(best.params), "ideal_corner (none feasible: highest neural_r2)", warning)


def _by_r2(candidate: Candidate) -> tuple[float, int]:
    value = candidate.metrics.get("neural_r2", -math.inf)
    return (value if math.isfinite(value) else -math.inf, -candidate.number)


def best_of(candidates: Sequence[Candidate], metric: str) -> Selected:
    """The feasible trial with the highest `metric` (any trial if none is feasible, and the warning says so)."""
    known = sorted({name for candidate in candidates for name in candidate.metrics})
    having = [candidate for candidate in candidates if math.isfinite(candidate.metrics.get(metric, math.nan))]
    if not having:
        close = difflib.get_close_matches(metric, known, 3) or [name for name in ("neural_r2", *OBJECTIVES) if name in known]
        there = f"such as {', '.join(close)}; summary.json lists all" if known else "none"
        raise InputError(f"selection: best:{metric}: no finished trial has that metric; they have {there}")
    feasible = [candidate for candidate in having if candidate.feasible]
    chosen = max(feasible or having, key=lambda candidate: (candidate.metrics[metric], -candidate.number))
    warning = "" if feasible else f"NO TRIAL MET THE neural_r2 CONSTRAINT: selected trial {chosen.number} by {metric} alone."
    return Selected(chosen.number, dict(chosen.params), f"best:{metric}", warning)


def load_rule(name: str) -> Rule:
    """The function of a dotted name "module:function". Raises InputError where there is none."""
    module, colon, function = name.partition(":")
    try:
        rule = getattr(importlib.import_module(module), function)
    except Exception as error:  # of a user's own module, which may raise anything
        raise InputError(f"search.rule: {name!r}: {' '.join(str(error).split()) or type(error).__name__}") from None
    if not colon or not callable(rule):
        raise InputError(f'search.rule: expected "ideal_corner", "best:METRIC" or "module:function", got {name!r}')
    return rule


def check_rule(name: str) -> None:
    """Raises InputError before a study starts rather than at its end."""
    if name != "ideal_corner" and not name.removeprefix("best:").strip():
        raise InputError("search.rule: best: needs a metric, such as best:group_mig")
    if name != "ideal_corner" and not name.startswith("best:"):
        load_rule(name)


def select(candidates: Sequence[Candidate], rule: str = "ideal_corner", objectives: Sequence[str] = OBJECTIVES) -> Selected:
    """The selected trial by `rule`: "ideal_corner", "best:METRIC", or "module:function" (a Rule).

    Raises InputError for an unknown rule, without candidates, or if a rule names a trial that is not there.
    """
    if not candidates:
        raise InputError("selection: the study has no finished trial")
    if rule == "ideal_corner":
        return ideal_corner(candidates, objectives)
    if rule.startswith("best:"):
        return best_of(candidates, rule.removeprefix("best:"))
    number = load_rule(rule)(candidates)
    for candidate in candidates:
        if candidate.number == number:
            return Selected(number, dict(candidate.params), rule)
    raise InputError(f"search.rule: {rule} selected trial {number!r}, which is not a finished trial")
