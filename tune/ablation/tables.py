"""The tables of an ablation: plain texts, written alike into the report and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch

from migvis.metrics.similarity import group_similarity, matched
from migvis.statistics import Interval, t_interval
from migvis.weights import load_vae_folder
from tune.ablation.outcome import Cell, Outcome
from tune.ablation.study import LEAST_REALISM, SPLIT, Column
from tune.pages.table import NOTHING, Table
from tune.selection import LEAST_MOVE


def values(outcome: Outcome, subject: str) -> Table:
    """Mean ± sd over seeds of every column, with the papers' figures beside ours where there are any."""
    columns, published = outcome.study.columns, outcome.study.published
    beside = [any((subject, one.name, column.metric) in published for one in outcome.cases) for column in columns]
    header = ["case"]
    for column, shown in zip(columns, beside, strict=True):
        header += [column.label, "paper"] if shown else [column.label]
    rows = []
    for one in outcome.cases:
        row = [one.name]
        for column, shown in zip(columns, beside, strict=True):
            row.append(mean_sd(outcome.interval(one.name, subject, column.metric), column))
            if shown:
                figure = published.get((subject, one.name, column.metric))
                row.append(NOTHING if figure is None else f"{figure:.{column.digits}f}")
        rows.append(row)
    counts = {len(outcome.seeds_of(one.name, subject, columns[0].metric)) for one in outcome.cases}
    seeds = "–".join(str(count) for count in sorted({min(counts), max(counts)}))
    title = f"{subject}: mean ± sd over {seeds} {'seed' if seeds == '1' else 'seeds'}, {SPLIT} images"
    return Table(title, f"values_{subject}", header, rows)


def differences(outcome: Outcome, subject: str) -> Table | None:
    """Differences to the base, paired by seed, with Student's 95 % intervals; selectivity also by bootstrap over stimuli."""
    base, columns = outcome.study.base, outcome.study.columns
    if base is None or len(outcome.cases) < 2:
        return None
    others = [one.name for one in outcome.cases if one.name != base]
    stimuli = {name: outcome.over_stimuli(name, base, subject) for name in others}
    header = ["case", *(column.label for column in columns)]
    if any(stimuli.values()):
        header.append("selectivity, over stimuli")
    rows, clear = [], set()
    for index, name in enumerate(others):
        row = [name]
        for place, column in enumerate(columns, start=1):
            interval = outcome.difference(name, base, subject, column.metric)
            row.append(_difference(interval, column))
            if interval is not None and interval.clear_of_zero:
                clear.add((index, place))
        if any(stimuli.values()):
            interval = stimuli[name]
            row.append(_difference(interval, Column("selectivity", "")))
            if interval is not None and interval.clear_of_zero:
                clear.add((index, len(row) - 1))
        rows.append(row)
    note = "Paired by seed, Student's 95 % intervals; bold: the interval is clear of 0."
    if any(stimuli.values()):
        note += " The last column resamples test pairs instead (bootstrap), with the seeds as they are."
    return Table(f"{subject}: difference to {base}", f"differences_{subject}", header, rows, note, frozenset(clear))


def mean_sd(interval: Interval | None, column: Column) -> str:
    """As a table shows it; the mean alone where there is one value."""
    if interval is None:
        return NOTHING
    mean = f"{interval.mean * column.factor:.{column.digits}f}"
    return mean if interval.count == 1 else f"{mean} ± {interval.sd * column.factor:.{column.digits}f}"


def _difference(interval: Interval | None, column: Column) -> str:
    if interval is None:
        return NOTHING
    mean, low, high = (f"{value * column.factor:+.{column.digits}f}" for value in (interval.mean, interval.low, interval.high))
    return mean if interval.count == 1 else f"{mean} [{low}, {high}]"


def at_its_best_scale(outcome: Outcome) -> list[Table]:
    """Each method at the scale that validation pairs choose: the most selective one whose edits are objects, and edits.

    The choice is by means over seeds on validation pairs, what is shown was measured on test pairs. Realism and own moves that
    were not measured (of recordings, without labels) do not count.
    """
    return [_at_its_best_scale(outcome, subject) for subject in outcome.subjects]


_REAL, _MOVED = f"realism of at least {LEAST_REALISM:g}", f"own move of at least {LEAST_MOVE:g}"


def _at_its_best_scale(outcome: Outcome, subject: str) -> Table:
    methods: dict[str, list[str]] = {}
    for one in outcome.cases:
        methods.setdefault(one.name.rpartition(", ")[0], []).append(one.name)
    chosen = {method: _best_scale(outcome, subject, names) for method, names in methods.items()}
    ours = next(iter(methods))
    first = chosen[ours][0]
    compared = (Column("own_move", "own move"), Column("selectivity", "selectivity"))
    rows, clear, found = [], set(), []
    for index, (method, (name, reason)) in enumerate(chosen.items()):
        if name is None:
            rows.append([method, f"none: {reason}", *[NOTHING] * 8])
            found.append(f"{subject}, {method}: {reason} on validation pairs.")
            continue
        row = [method, name.rpartition(", ")[2]]
        for metric in ("realism", "training_distance", "move_pose_group1", "move_category_group2", "own_move", "selectivity"):
            row.append(mean_sd(outcome.interval(name, subject, metric), Column(metric, "")))
        differs = []
        for column in compared:
            against = None if first is None or method == ours else outcome.difference(name, first, subject, column.metric)
            row.append(_difference(against, column))
            if against is not None and against.clear_of_zero:
                clear.add((index, len(row) - 1))
                differs.append(f"{column.label} {row[-1]}")
        if differs:
            found.append(f"{subject}, {method} at {row[1]}: {'; '.join(differs)}, to {ours} at its own scale.")
        elif first is not None and method != ours and len(outcome.seeds) > 1:
            found.append(f"{subject}, {method} at {row[1]}: no clear difference to {ours} at its own scale.")
        rows.append(row)
    header = ["method", "scale", "realism", "distance to training pictures", "group 1 moves pose", "group 2 moves category"]
    header += ["own move", "selectivity", f"own move, to {ours}", f"selectivity, to {ours}"]
    note = (
        f"Scale: the one with the highest selectivity on validation pairs, of those with a mean {_REAL} and a mean {_MOVED} "
        "there; the figures are of test pairs. Own move: mean of how far group 1 moves the pose and group 2 the category; an "
        "edit that does nothing has a selectivity of about 0, too. Last columns: paired by seed, Student's 95 % intervals. "
        "Distance: median over edits to the nearest training picture."
    )
    title = f"{subject}: each method at its best scale, of edits that are objects and move their own attribute"
    return Table(title, f"best_scale_{subject}", header, rows, note, frozenset(clear), tuple(found))


def _best_scale(outcome: Outcome, subject: str, names: Sequence[str]) -> tuple[str | None, str]:
    """The case of a method that validation pairs choose, or why there is none."""

    def largest(metric: str, among: Sequence[str]) -> str:
        return f"{max(_validation(outcome, name, subject, metric) for name in among):.2f}"

    def reaches(name: str, metric: str, least: float) -> bool:
        unknown = outcome.interval(name, subject, f"validation/{metric}") is None
        return unknown or _validation(outcome, name, subject, metric) >= least

    real = [name for name in names if reaches(name, "realism", LEAST_REALISM)]
    if not real:
        return None, f"no scale reaches a {_REAL} (at most {largest('realism', names)})"
    moving = [name for name in real if reaches(name, "own_move", LEAST_MOVE)]
    if not moving:
        return None, f"no scale with a {_REAL} reaches an {_MOVED} (at most {largest('own_move', real)})"
    return max(moving, key=lambda name: _validation(outcome, name, subject, "selectivity")), ""


def region_of_realism(outcome: Outcome) -> list[Table]:
    """Of a dose study: for each edit step the guidance scales whose edits are real enough, and the best of them."""
    tables = []
    for subject in outcome.subjects:
        steps: dict[float, list[tuple[float, str]]] = {}
        for one in outcome.cases:
            step, scale = (one.changes[f"synthesis.{name}"] for name in ("edit_step", "guidance_scale"))
            steps.setdefault(step, []).append((scale, one.name))
        rows = []
        for step, doses in steps.items():
            real = [(scale, name) for scale, name in doses if _mean(outcome, name, subject, "realism") >= LEAST_REALISM]
            best = max(real, key=lambda dose: _mean(outcome, dose[1], subject, "selectivity"), default=None)
            row = [f"{step:g} T", ", ".join(f"{scale:g}" for scale, _ in real) or "none"]
            if best is not None:
                row += [f"{best[0]:g}", mean_sd(outcome.interval(best[1], subject, "selectivity"), Column("selectivity", ""))]
            rows.append(row + [NOTHING] * (4 - len(row)))
        header = [
            "edit step t′",
            f"γ with realism of at least {LEAST_REALISM:g}",
            "most selective of them",
            "its selectivity",
        ]
        note = "Means over seeds on test pairs, which also say which is the most selective: that figure is optimistic."
        tables.append(Table(f"{subject}: where edits are objects", f"realism_{subject}", header, rows, note))
    return tables


def _mean(outcome: Outcome, case: str, subject: str, metric: str) -> float:
    interval = outcome.interval(case, subject, metric)
    return -np.inf if interval is None else interval.mean


def _validation(outcome: Outcome, case: str, subject: str, metric: str) -> float:
    return _mean(outcome, case, subject, f"validation/{metric}")


@torch.no_grad()
def similarity_over_seeds(outcome: Outcome) -> list[Table]:
    """How similar the groups of one case are between two seeds, group by group and after the best matching."""
    tables = []
    rows_of = outcome.dataset.split[SPLIT].copy()
    for subject in outcome.subjects:
        responses = torch.tensor(outcome.dataset.subjects[subject].response[rows_of])
        rows, header = [], []
        for one in outcome.cases:
            paths = [outcome.path(Cell(one.name, subject, seed), "vae") for seed in outcome.seeds]
            vaes = [load_vae_folder(path) for path in paths if path is not None]
            latents = [vae.encode(responses)[0].numpy() for vae in vaes]
            if len(latents) < 2:
                continue
            count = vaes[0].group_count
            pairs = [group_similarity(a, b, count) for a, b in combinations(latents, 2)]
            same = np.stack([np.diagonal(matrix) for matrix in pairs])
            best = [float(matched(matrix)[1].mean()) for matrix in pairs]
            others = [float(matrix[~np.eye(count, dtype=bool)].mean()) for matrix in pairs]
            header = ["case", *(f"group {g}" for g in range(1, count + 1)), "best matching", "different groups"]
            columns = [*same.T.tolist(), best, others]
            rows.append([one.name, *(mean_sd(t_interval(column), Column("", "", digits=2)) for column in columns)])
        note = (
            "Linear CKA of posterior means of test stimuli between two seeds, mean ± sd over pairs of seeds (pairs share seeds, "
            "so there is no interval): 1 for the same up to a rotation within the group. Best matching: groups of one seed "
            "assigned to those of the other; different groups: what two groups have in common that are not the same."
        )
        if rows:
            tables.append(Table(f"{subject}: groups over seeds", f"similarity_{subject}", header, rows, note))
    return tables
