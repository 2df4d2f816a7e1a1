"""What a user should know of a study before believing its figures: plain sentences for the summary and the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from migvis.config import Configuration
from migvis.data import Dataset
from migvis.metrics.probes import LEAST_CATEGORY_ACCURACY, LEAST_ROTATION_R2
from tune.selection import LEAST_MOVE, own_move

SCORES = ("selectivity", "realism")
"""What is measured on edits of a trial's pairs, so that chance is in it."""
SATURATED = 0.8
"""Share of its largest possible value above which the estimated partial correlation has lost its gradient."""
SELECTIVE = 0.05
"""Selectivity on test pairs from which edits carry their own attribute clearly further than the other one."""


def damage_notes(stages: Iterable[Mapping[str, Any]]) -> list[str]:
    """Which stored stages (records as in TrialResult) were found damaged, each once."""
    damaged = (stage for stage in stages if stage.get("damage"))
    return list(dict.fromkeys(f"a stored {stage['kind']} was damaged: {stage['damage']}" for stage in damaged))


def cautions(configuration: Configuration, dataset: Dataset) -> list[str]:
    """What a user should know before a study begins: what its data or its settings leave out."""
    found = []
    for group, name, labels in ((1, "pose", dataset.stimuli.pose), (2, "category", dataset.stimuli.category_id)):
        if labels is None:
            found.append(f"the data set has no {name} labels: group {group} is fitted without supervision")
    if configuration.synthesis.guidance == "gradient" and configuration.critic.training_images == "clean":
        found.append(
            "synthesis.guidance=gradient asks the critic about blurred estimates, and critic.training_images=clean never "
            "showed it any: edits may fool it and be no objects (pool is the remedy)"
        )
    return found


def instrument_notes(metrics: Mapping[str, float]) -> list[str]:
    """Whether what reads the edits is too inaccurate to decide anything, by its accuracy on held-out stimuli."""
    category, rotation = metrics.get("instrument/category_accuracy", 1.0), metrics.get("instrument/pose_r2", 1.0)
    if category >= LEAST_CATEGORY_ACCURACY and rotation >= LEAST_ROTATION_R2:
        return []
    return [
        f"the instrument reads the category of {category:.2f} of held-out stimuli and their rotation with R² {rotation:.2f}, "
        f"below {LEAST_CATEGORY_ACCURACY:g} or {LEAST_ROTATION_R2:g}: selectivity decides nothing here"
    ]


def luck_notes(metrics: Mapping[int, Mapping[str, float]], selected: int) -> list[str]:
    """How many trials' edits score too much like the selected one's to be told from them, by standard errors over the pairs.

    metrics: of each finished trial, by its number; of them `SCORES` and their standard errors are read.
    """
    own = metrics.get(selected, {})
    scored = [name for name in SCORES if f"{name}_se" in own]
    rest = (other for number, other in metrics.items() if number != selected)
    others = [other for other in rest if all(f"{name}_se" in other for name in scored)]

    def alike(other: Mapping[str, float], name: str) -> bool:
        return abs(other[name] - own[name]) <= 2 * math.hypot(other[f"{name}_se"], own[f"{name}_se"])

    count = sum(all(alike(other, name) for name in scored) for other in others)
    if not scored or not count:
        return []
    figures = " and ".join(f"{name} {own[name]:.2f} ± {own[f'{name}_se']:.2f}" for name in scored)
    return [
        f"{count} of the {len(others)} other trials with edits are within two standard errors of the selected one "
        f"({figures} over its pairs): these pairs do not tell them apart (synthesis.trial_pairs)"
    ]


def notes(saturation: Sequence[float], final: Mapping[str, float]) -> list[str]:
    """Notes on pc_saturation of the trials, and on the final metrics of the selected configuration (empty before the end)."""
    found = []
    saturated = sum(value > SATURATED for value in saturation)
    if saturated:
        found.append(
            f"in {saturated} of {len(saturation)} trials the partial correlation was saturated "
            f"(pc_saturation above {SATURATED:g}): pc_weight had nothing to act on there"
        )
    found += instrument_notes(final)
    selectivity, move = final.get("selectivity"), own_move(final)
    if selectivity is None or selectivity >= SELECTIVE:
        return found
    realism = f", realism {final['realism']:.2f}" if "realism" in final else ""
    figures = f"selectivity {selectivity:.3f}{realism} on test pairs"
    if move is None or move < LEAST_MOVE:
        found.append(
            f"the selected edits do not move the attributes of their groups ({figures}): look at the grids before believing them"
        )
    else:
        found.append(
            f"the selected edits carry their own attribute {move:.2f} of the way to the target's, but change the other one "
            f"about as much ({figures}): read the selectivity matrix before naming a group"
        )
    return found
