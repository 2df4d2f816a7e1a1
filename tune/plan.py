"""The text of `--dry-run`: which stages a study would find, which it would build, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tune.context import StudyContext
from tune.pipeline import PlanRow
from tune.pipeline import plan as rows_of
from tune.progress import duration
from tune.space import PARAMETERS, SearchSpace, apply
from tune.stages import EXPECTED_SECONDS
from tune.trial import seeds_of, stages_of

_SOURCES = "stored: what this stage cost; observed: the median of its kind here; expected: the quick preset's on 2 CPU cores"


def plan(context: StudyContext, space: SearchSpace) -> str:
    """The stages of the study and of trial 0, hits and misses, and an estimate of the whole; builds nothing.

    A trial that shares nothing with trial 0, and its final stage, stand for all others.
    """
    store, search = context.store(), context.config.search
    configuration, start = context.config.configuration, space.start(context.config.configuration)
    first, other = (stages_of(context, apply(configuration, params)) for params in (start, another(space, start)))
    seeds = seeds_of(context, search.seeds_per_trial)
    study = rows_of(first.study_stages(), store, EXPECTED_SECONDS)
    trial = _without(rows_of(first.trial_stages(seeds), store, EXPECTED_SECONDS), study)
    full = _without(rows_of(other.trial_stages(seeds), store, EXPECTED_SECONDS), study)
    ends = [
        rows_of(stages.final_stages(seeds_of(context, search.final_seeds)), store, EXPECTED_SECONDS) for stages in (first, other)
    ]
    shared = {row.key for row in ends[0] if row.exists}
    final = [row for row in _without(ends[1], [*study, *full]) if row.key not in shared]
    lines = ["study stages, built before the first trial:", *map(_line, study)]
    lines += [f"trial 0 ({', '.join(f'{name} {value:g}' for name, value in start.items())}):", *map(_line, trial)]
    lines += _hits_and_misses([*study, *trial])
    left, missing = [row for row in study if not row.exists], [row for row in trial if not row.exists]
    ended = len(list(context.folder.glob("trials/*/result.json")))  # of a study that is resumed
    each, end, others = _seconds(full), _seconds(final), max(search.trials - max(ended, 1), 0)
    total = _seconds(left) + _seconds(missing) + others * each + end
    guessed = _expected(left) + _expected(missing) + others * _expected(full) + _expected(final)
    lines.append(
        f"estimate: {_seconds(left):.0f} s for the study stages, {_seconds(missing):.0f} s for trial 0, about {each:.0f} s for "
        f"each of the other {others} trials (less what it reuses), about {end:.0f} s for the final stage: "
        f"up to {duration(total)} in all, {(total - guessed) / max(total, 1e-9):.0%} of it from observed seconds"
    )
    return "\n".join(lines)


def another(space: SearchSpace, start: dict[str, Any]) -> dict[str, Any]:
    """A point of the space that differs from `start` in every value that is searched."""
    ends = {name: (getattr(space, name)[-1], getattr(space, name)[0]) for name in PARAMETERS}
    return {name: high if high != start[name] else low for name, (high, low) in ends.items()}


def _without(rows: Iterable[PlanRow], known: Iterable[PlanRow]) -> list[PlanRow]:
    keys = {row.key for row in known}
    return [row for row in rows if row.key not in keys]


def _seconds(rows: Iterable[PlanRow]) -> float:
    return sum(row.seconds for row in rows)


def _expected(rows: Iterable[PlanRow]) -> float:
    return _seconds(row for row in rows if row.source == "expected")


def _hits_and_misses(rows: list[PlanRow]) -> list[str]:
    hits, misses = [row for row in rows if row.exists], [row for row in rows if not row.exists]
    guessed = _expected(misses)
    return [
        f"hits: {len(hits)} of {len(rows)} stages exist, {_seconds(hits):.0f} s saved (stored)",
        f"misses: {len(misses)} of {len(rows)} stages are missing, {_seconds(misses):.0f} s to come "
        f"({_seconds(misses) - guessed:.0f} s observed, {guessed:.0f} s expected)",
        f"({_SOURCES})",
    ]


def _line(row: PlanRow) -> str:
    state = "exists " if row.exists else "missing"
    return f"  {row.kind:<15} {row.label:<16} {row.key[:12]}  {state}  {row.seconds:7.1f} s ({row.source})"
