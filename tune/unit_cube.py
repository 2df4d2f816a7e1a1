"""Hyperparameters as places in the unit cube: each range, linear or logarithmic, from 0 to 1."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


class Axis:
    """One hyperparameter's range. Discrete values, choices included, have equal shares of it, in their order."""

    def __init__(self, distribution: BaseDistribution) -> None:
        self._choices: tuple[Any, ...] | None = None
        self._low, self._high, self._log = 0.0, 1.0, False
        if isinstance(distribution, CategoricalDistribution):
            self._choices = distribution.choices
        elif isinstance(distribution, IntDistribution):
            self._choices = tuple(range(distribution.low, distribution.high + 1, distribution.step))
        elif isinstance(distribution, FloatDistribution):
            self._log, self._low, self._high = distribution.log, distribution.low, distribution.high
            if distribution.step is not None:
                steps = round((self._high - self._low) / distribution.step)
                self._choices = tuple(self._low + distribution.step * number for number in range(steps + 1))
        else:
            raise TypeError(f"a float, int or categorical distribution, got {type(distribution).__name__}")

    @cached_property
    def _places(self) -> dict[Any, float]:
        """Where each discrete value lies: in their order."""
        assert self._choices is not None
        last = len(self._choices) - 1
        return {value: number / last if last else 0.5 for number, value in enumerate(self._choices)}

    def place(self, value: Any) -> float:
        """From 0 to 1. Raises ValueError for a choice that does not exist."""
        if self._choices is not None:
            places = self._places
            if value in places:
                return places[value]
            near = [known for known in places if isinstance(known, float) and math.isclose(known, value, abs_tol=1e-9)]
            if not near:
                raise ValueError(f"{value} is none of {self._choices}")
            return places[near[0]]
        if self._high == self._low:
            return 0.5
        if self._log:
            return math.log(value / self._low) / math.log(self._high / self._low)
        return (float(value) - self._low) / (self._high - self._low)

    def value(self, place: float) -> Any:
        """The value at a place from 0 to 1."""
        if self._choices is not None:
            return self._choices[min(int(place * len(self._choices)), len(self._choices) - 1)]
        if self._log:
            return min(max(self._low * (self._high / self._low) ** place, self._low), self._high)
        return self._low + place * (self._high - self._low)
