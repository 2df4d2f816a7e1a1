"""What single units tell about pose and category, as tables and pictures of an ablation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from migvis.charts import scatter_chart
from migvis.metrics.single_units import SingleUnits, single_units
from tune.ablation.figures import Pictures
from tune.ablation.outcome import Outcome
from tune.ablation.study import SPLIT
from tune.pages.table import NOTHING, Table


def units_of(outcome: Outcome, subject: str) -> SingleUnits | None:
    """Single-unit decoding of a subject's responses; none where the data set lacks pose or category labels."""
    dataset = outcome.dataset
    stimuli, response = dataset.stimuli, dataset.subjects[subject].response
    if stimuli.category_id is None or stimuli.pose is None:
        return None
    posed = np.ones(len(response), dtype=bool) if stimuli.variation is None else stimuli.variation > 0
    train, test = (dataset.split[name][posed[dataset.split[name]]] for name in ("train", SPLIT))
    return single_units(
        *(response[train], stimuli.pose[train, :3], stimuli.category_id[train]),
        *(response[test], stimuli.pose[test, :3], stimuli.category_id[test]),
    )


def unit_pictures(outcome: Outcome, folder: Path) -> Pictures:
    """Pose against category of every unit: those beyond both lines have mixed selectivity."""
    found: Pictures = {}
    for subject in outcome.subjects:
        units = units_of(outcome, subject)
        if units is None:
            continue
        caption = f"{subject}: what each of {len(units.pose)} units tells by itself; dotted: the 99 % quantile of shuffled labels"
        found[caption] = scatter_chart(
            *(units.category, units.pose, folder / f"units_{subject}.png", "category accuracy", "pose R²"),
            chance=(units.category_chance, units.pose_chance),
        )
    return found


def unit_tables(outcome: Outcome) -> list[Table]:
    """How many units are selective for what, and the best of them."""
    rows = []
    for subject in outcome.subjects:
        units = units_of(outcome, subject)
        if units is None:
            rows.append([f"{subject}: not labelled", *[NOTHING] * 7])
            continue
        counts = [str(count) for count in units.counts.values()]
        rows.append([subject, *counts, f"{units.pose.max():.3f}", f"{units.category.max():.3f}", f"{units.category_chance:.3f}"])
    header = [
        "subject",
        "both",
        "pose only",
        "category only",
        "neither",
        "best pose R²",
        "best category accuracy",
        "chance of it",
    ]
    note = (
        f"Linear decoding from one unit at a time, fitted on training and scored on {SPLIT} stimuli with varied pose; selective: "
        "above the 99 % quantile of all units when fitted to shuffled labels."
    )
    return [Table("units by what they tell", "units", header, rows, note)]
