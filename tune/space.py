"""The search space: six hyperparameters of the method, and where each of them goes in a configuration.

Values are rounded (two significant digits on the log scales, steps of 0.05 for t'), because values that never
repeat give the stage store nothing to reuse.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import optuna

from migvis.config import Configuration
from migvis.errors import InputError
from tune.study_config import StudyConfig

EDIT_STEP_GRID = 0.05

PARAMETERS: dict[str, str] = {
    "pc_weight": "vae",
    "group_count": "vae",
    "group_rank": "vae",
    "infonce_batch": "critic",
    "edit_step": "synthesis",
    "guidance_scale": "synthesis",
}
"""The six searched hyperparameters, each with its section of the configuration."""


def two_digits(value: float) -> float:
    """`value` rounded to two significant digits."""
    return float(f"{value:.1e}")


def _on_grid(low: float, high: float) -> tuple[float, float]:
    """The least and largest multiples of EDIT_STEP_GRID inside low…high."""
    first, last = math.ceil(low / EDIT_STEP_GRID - 1e-9), math.floor(high / EDIT_STEP_GRID + 1e-9)
    if first > last:
        raise InputError(f"search.edit_step: no multiple of {EDIT_STEP_GRID} inside {[low, high]}")
    return round(first * EDIT_STEP_GRID, 2), round(last * EDIT_STEP_GRID, 2)


@dataclass(frozen=True)
class SearchSpace:
    """Inclusive ranges of the six hyperparameters; `infonce_batch` holds the choices."""

    pc_weight: tuple[float, float]
    group_count: tuple[int, int]
    group_rank: tuple[int, int]
    infonce_batch: tuple[int, ...]
    edit_step: tuple[float, float]
    guidance_scale: tuple[float, float]

    @classmethod
    def of(cls, config: StudyConfig, training_pictures: int) -> SearchSpace:
        """The space of a study whose training set has `training_pictures` distinct pictures.

        InfoNCE batches hold each distinct picture once, so they can be no larger than that; a diagonal pose
        read-out fixes the group rank. Raises InputError where nothing is left to choose from, or where the
        configuration itself asks for a larger batch.
        """
        search = config.search
        batch = config.critic.infonce_batch
        if batch > training_pictures:
            raise InputError(f"critic.infonce_batch: at most the {training_pictures} distinct training pictures, got {batch}")
        batches = tuple(sorted(choice for choice in search.infonce_batch if choice <= training_pictures))
        if not batches:
            raise InputError(
                f"search.infonce_batch: no choice is at most the {training_pictures} distinct training pictures, "
                f"got {list(search.infonce_batch)}"
            )
        fixed_rank = config.vae.readout == "diagonal"
        return cls(
            pc_weight=(two_digits(search.pc_weight[0]), two_digits(search.pc_weight[1])),
            group_count=search.group_count,
            group_rank=(config.vae.group_rank,) * 2 if fixed_rank else search.group_rank,
            infonce_batch=batches,
            edit_step=_on_grid(*search.edit_step),
            guidance_scale=(two_digits(search.guidance_scale[0]), two_digits(search.guidance_scale[1])),
        )

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """The six values of an Optuna trial, rounded."""
        low, high = self.edit_step
        values = {
            "pc_weight": trial.suggest_float("pc_weight", *self.pc_weight, log=True),
            "group_count": trial.suggest_int("group_count", *self.group_count),
            "group_rank": trial.suggest_int("group_rank", *self.group_rank),
            "infonce_batch": trial.suggest_categorical("infonce_batch", self.infonce_batch),
            "edit_step": trial.suggest_float("edit_step", low, high, step=EDIT_STEP_GRID),
            "guidance_scale": trial.suggest_float("guidance_scale", *self.guidance_scale, log=True),
        }
        return self.rounded(values)

    def rounded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values as they are used: two significant digits on log scales, two decimals for t'; still inside the ranges."""
        result = dict(values)
        for name in ("pc_weight", "guidance_scale"):
            if name in result:
                result[name] = two_digits(result[name])
        if "edit_step" in result:
            result["edit_step"] = round(result["edit_step"], 2)
        return result

    def start(self, configuration: Configuration) -> dict[str, Any]:
        """The six values of a configuration (trial 0), each moved to the nearest value of the space."""

        def clip(value: float, bounds: tuple[float, float]) -> float:
            return min(max(value, bounds[0]), bounds[1])

        given = parameters_of(configuration)
        step = round(clip(round(given["edit_step"] / EDIT_STEP_GRID) * EDIT_STEP_GRID, self.edit_step), 2)
        return {
            "pc_weight": clip(two_digits(given["pc_weight"]), self.pc_weight),
            "group_count": int(clip(given["group_count"], self.group_count)),
            "group_rank": int(clip(given["group_rank"], self.group_rank)),
            "infonce_batch": min(self.infonce_batch, key=lambda batch: abs(math.log(batch / given["infonce_batch"]))),
            "edit_step": step,
            "guidance_scale": clip(two_digits(given["guidance_scale"]), self.guidance_scale),
        }

    def digest(self) -> str:
        """SHA-256 (hex) of the space; a study is only ever continued in the space that it began in."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def parameters_of(configuration: Configuration) -> dict[str, Any]:
    """The six hyperparameters of a configuration, by their short names."""
    return {name: getattr(getattr(configuration, section), name) for name, section in PARAMETERS.items()}


def apply(configuration: Configuration, params: Mapping[str, Any]) -> Configuration:
    """`configuration` with the searched values put in their sections, validated again.

    Raises InputError for a name that is not searched.
    """
    values = configuration.model_dump()
    for name, value in params.items():
        if name not in PARAMETERS:
            raise InputError(f"params: {name} is not one of {', '.join(PARAMETERS)}")
        values[PARAMETERS[name]][name] = value
    return Configuration.model_validate(values)
