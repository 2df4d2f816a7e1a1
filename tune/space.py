"""The search space: six hyperparameters of the method, and where each of them goes in a configuration.

Values are rounded (two significant digits on the log scales, steps of 0.05 for t'), because values that never
repeat give the stage store nothing to reuse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

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


def _outside(name: str, value: float, searched: tuple[float, ...]) -> str:
    """That a value of trial 0 is outside its range (or choices), and what would widen that."""
    wider = sorted({*searched, value})
    if name != "infonce_batch":
        wider = [wider[0], wider[-1]]
    hint = f"; --set search.{name}=[{','.join(f'{bound:g}' for bound in wider)}] widens it" if value > 0 else ""
    return f"outside search.{name} {list(searched)}{hint}"


def check_batch(configuration: Configuration, training_pictures: int) -> None:
    """Raises InputError where a batch of the critic would hold a picture twice."""
    batch = configuration.critic.infonce_batch
    if batch > training_pictures:
        raise InputError(f"critic.infonce_batch: at most the {training_pictures} distinct training pictures, got {batch}")


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
        read-out fixes the group rank. Raises InputError where nothing is left to choose from, or where one of the
        configuration's own values lies outside.
        """
        search = config.search
        check_batch(config, training_pictures)
        batches = tuple(sorted(choice for choice in search.infonce_batch if choice <= training_pictures))
        if not batches:
            raise InputError(
                f"search.infonce_batch: no choice is at most the {training_pictures} distinct training pictures, "
                f"got {list(search.infonce_batch)}"
            )
        fixed_rank = config.vae.readout == "diagonal"
        space = cls(
            pc_weight=(two_digits(search.pc_weight[0]), two_digits(search.pc_weight[1])),
            group_count=search.group_count,
            group_rank=(config.vae.group_rank,) * 2 if fixed_rank else search.group_rank,
            infonce_batch=batches,
            edit_step=_on_grid(*search.edit_step),
            guidance_scale=(two_digits(search.guidance_scale[0]), two_digits(search.guidance_scale[1])),
        )
        space.start(config.configuration)
        return space

    def distributions(self) -> dict[str, BaseDistribution]:
        """The six as Optuna knows them."""
        low, high = self.edit_step
        return {
            "pc_weight": FloatDistribution(*self.pc_weight, log=True),
            "group_count": IntDistribution(*self.group_count),
            "group_rank": IntDistribution(*self.group_rank),
            "infonce_batch": CategoricalDistribution(self.infonce_batch),
            "edit_step": FloatDistribution(low, high, step=EDIT_STEP_GRID),
            "guidance_scale": FloatDistribution(*self.guidance_scale, log=True),
        }

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """The six values of an Optuna trial, rounded."""
        values: dict[str, Any] = {}
        for name, one in self.distributions().items():
            if isinstance(one, CategoricalDistribution):
                values[name] = trial.suggest_categorical(name, one.choices)
            elif isinstance(one, IntDistribution):
                values[name] = trial.suggest_int(name, one.low, one.high)
            elif isinstance(one, FloatDistribution):
                values[name] = trial.suggest_float(name, one.low, one.high, step=one.step, log=one.log)
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
        """The six values of a configuration (trial 0), rounded as the space rounds them.

        Raises InputError for a value outside the space: trial 0 could not run it.
        """
        given = parameters_of(configuration)
        step = round(given["edit_step"] / EDIT_STEP_GRID) * EDIT_STEP_GRID
        values = self.rounded({**given, "edit_step": step})
        for name, value in values.items():
            searched = getattr(self, name)
            inside = value in searched if name == "infonce_batch" else searched[0] <= value <= searched[1]
            if not inside:
                raise InputError(f"{PARAMETERS[name]}.{name}={given[name]:g}: {_outside(name, value, searched)}")
        return values

    def ranges(self) -> dict[str, list[Any]]:
        """By field of the configuration; a study is only ever continued in the space that it began in."""
        return {f"search.{name}": list(getattr(self, name)) for name in PARAMETERS}


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
