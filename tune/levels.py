"""The levels at which trials share stages: a VAE, a critic of it, edits with both."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

Params = Mapping[str, Any]

LEVELS: tuple[tuple[str, ...], ...] = (
    ("pc_weight", "group_count", "group_rank"),
    ("infonce_batch",),
    ("edit_step", "guidance_scale"),
)
"""The hyperparameters that are first read by the VAE, by the critic and by the synthesis."""
LEVEL_OF_OBJECTIVE = {"neural_r2": 0, "group_mig": 0, "selectivity": 2, "realism": 2}
"""The level after which each is known."""
LEVEL_OF_KIND = {"vae": 0, "standard_vae": 0, "representation": 0, "critic": 1, "synthesis": 2, "evaluation": 2}

_PREFIXES = [itemgetter(*(name for names in LEVELS[: level + 1] for name in names)) for level in range(len(LEVELS))]


def prefix(params: Params, level: int) -> tuple[Any, ...]:
    """What decides the stages up to a level, so that configurations with equal prefixes share them."""
    values: tuple[Any, ...] = _PREFIXES[level](params)
    return values
