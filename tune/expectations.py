"""What is expected of configurations: their objectives, whether they pass the gate, and what they cost, from the trials so far.

An objective that is measured on the VAE alone is not guessed for a VAE that exists, nor is whether it passes the gate. What a
VAE tells of the selectivity of its edits (ALIGNMENT, the same difference asked of the latents) is known for a VAE that exists,
and is itself expected, with its own uncertainty, for one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from scipy.special import ndtr

from tune.finished_trials import ALIGNMENT, MEMORY, Finished, Running, remembered
from tune.gaussian_process import Hyperparameters, Places, Prior, fit_hyperparameters, predict
from tune.levels import LEVEL_OF_OBJECTIVE, LEVELS, Params, prefix
from tune.unit_cube import Axis

Values = NDArray[np.float64]
Vae = tuple[Any, ...]
"""The hyperparameters of a VAE."""

_LAST = len(LEVELS) - 1
_GATE = Prior(spread=0.03)
"""Of the gate's constraint: differences of neural_r2 are as small as the margin that the gate allows. By the spread of objectives
every new VAE would pass by half a chance only, whatever those before it did."""
_SELECTIVITY = Prior(spread=0.07, slope=0.6, slope_sd=0.3)
"""Given the alignment: over the VAEs of a table, selectivity grows by 0.5 to 0.9 of it, and the line leaves a spread of 0.09 of
all its configurations, 0.02 to 0.05 of their means by VAE."""


@dataclass(frozen=True)
class Expected:
    """Raw objectives of candidates: mean and sd [c, objectives]; by_vae [c, objectives], the part of sd that a look at the VAE
    alone would tell; and own [objectives], the part that no other trial tells of."""

    mean: Values
    sd: Values
    by_vae: Values
    own: Values

    def rows(self, rows: NDArray[np.int64]) -> Expected:
        """Those of some candidates."""
        return Expected(self.mean[rows], self.sd[rows], self.by_vae[rows], self.own)


@dataclass(frozen=True)
class _Guess:
    """As a Prediction, with what is known exactly."""

    mean: Values
    sd: Values
    own: float
    slope: float
    slope_sd: float


class Expectations:
    """Learns from the trials of a study; keeps what it has fitted between proposals.

    distributions: of all hyperparameters. objectives: their names, in the study's order.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], objectives: Sequence[str]) -> None:
        self._objectives = tuple(objectives)
        axes = [Axis(distributions[name]) for names in LEVELS for name in names]
        # Every prediction of a proposal asks for them again, and the next proposals for those of the trials.
        self._coordinates = lru_cache(4096)(lambda values: tuple(map(Axis.place, axes, values)))
        self._fitted: dict[str, tuple[tuple[int, bool], Hyperparameters]] = {}

    def of(
        self, finished: Sequence[Finished], running: Sequence[Running], candidates: Sequence[Params]
    ) -> tuple[Expected, Values]:
        """The raw objectives, and the probability [c] to pass the gate.

        Trials under way count as if they had ended as expected, so that several at once spread out.
        """
        looks, whole = ([one.params for one in running if one.vae_only == only] for only in (True, False))
        alignment = self._alignment(finished, looks, whole, candidates)
        columns, by_vae, owns = [], [], []
        for name in self._objectives:
            level = LEVEL_OF_OBJECTIVE.get(name, _LAST)
            under_way = whole if level else [*looks, *whole]
            measured = [(one, one.told[name]) for one in finished if name in one.told and (level == 0 or one.values is not None)]
            if name == "selectivity" and alignment is not None:
                guess, told = self._by_alignment(name, measured, under_way, candidates, *alignment)
            else:
                guess = self._guess(name, level, measured, under_way, candidates)
                told = guess.sd if level == 0 else np.zeros(len(candidates))
            columns.append(guess)
            by_vae.append(told)
            # What the VAE decides is the same for all trials with that VAE.
            owns.append(guess.own if level == _LAST else 0.0)
        mean, sd = (np.stack([getattr(one, part) for one in columns], axis=1) for part in ("mean", "sd"))
        expected = Expected(mean, sd, np.stack(by_vae, axis=1), np.array(owns))
        judged = [(one, one.constraint) for one in finished if one.constraint is not None]
        if not judged:
            return expected, np.ones(len(candidates))
        gate = self._guess("constraint", 0, judged, [*looks, *whole], candidates, _GATE)
        return expected, np.asarray(ndtr(-gate.mean / np.maximum(gate.sd, 1e-12)))

    def _alignment(
        self, finished: Sequence[Finished], looks: Sequence[Params], whole: Sequence[Params], candidates: Sequence[Params]
    ) -> tuple[Mapping[Vae, float], _Guess] | None:
        """By VAE, what is known of it; and what is expected of the whole trials under way and of the candidates, in this order.

        None where a complete trial does not tell it, as where labels are missing.
        """
        if any(one.values is not None and ALIGNMENT not in one.told for one in finished):
            return None
        measured = [(one, one.told[ALIGNMENT]) for one in finished if ALIGNMENT in one.told]
        if not measured:
            return None
        known = {prefix(one.params, 0): value for one, value in measured}
        return known, self._guess(ALIGNMENT, 0, measured, looks, [*whole, *candidates])

    def _by_alignment(
        self,
        name: str,
        measured: Sequence[tuple[Finished, float]],
        running: Sequence[Params],
        candidates: Sequence[Params],
        known: Mapping[Vae, float],
        alignment: _Guess,
    ) -> tuple[_Guess, Values]:
        """Of an objective that is a line in the alignment; and the part of its sd [c] that is the alignment's."""
        expected = zip((prefix(one, 0) for one in (*running, *candidates)), alignment.mean, strict=True)
        told = {**dict(expected), **known}
        guess = self._guess(name, _LAST, measured, running, candidates, _SELECTIVITY, told)
        # Of a product of two independent values: the slope and what is not known of the alignment.
        by_vae = math.hypot(guess.slope, guess.slope_sd) * alignment.sd[len(running) :]
        return replace(guess, sd=np.hypot(guess.sd, by_vae)), by_vae

    def _guess(
        self,
        name: str,
        level: int,
        measured: Sequence[tuple[Finished, float]],
        running: Sequence[Params],
        candidates: Sequence[Params],
        prior: Prior = Prior(),  # noqa: B008 (frozen)
        told: Mapping[Vae, float] | None = None,
    ) -> _Guess:
        """Of what is known after a level: exact where the stages of that level exist.

        told: what each VAE tells of it.
        """
        known = {prefix(one.params, level): (one, value) for one, value in measured}
        pending = list({prefix(one, level): one for one in running if prefix(one, level) not in known}.values())
        learnt = remembered([one for one, _ in known.values()])
        places = self._places([*(one.params for one in learnt), *pending, *candidates], level, told)
        targets, count = np.array([known[prefix(one.params, level)][1] for one in learnt]), len(learnt)
        parameters = self._hyperparameters(name, level, list(known.values()), prior, told)
        if pending:
            at = places.rows(count, count + len(pending))
            guessed = predict(places.rows(0, count), targets, parameters, at, prior=prior).mean
            targets, count = np.concatenate([targets, guessed]), count + len(pending)
        before, at = places.rows(0, count), places.rows(count, len(places))
        found = predict(before, targets, parameters, at, measured=len(learnt), prior=prior)
        for row, candidate in enumerate(candidates):
            exact = known.get(prefix(candidate, level))
            if exact is not None:
                found.mean[row], found.sd[row] = exact[1], 0.0
        return _Guess(*found)

    def _places(self, params: Sequence[Params], level: int, told: Mapping[Vae, float] | None) -> Places:
        """Where configurations are for what is known after a level; the stages of the levels before it are numbered."""
        stages = np.zeros((len(params), level), dtype=np.int64)
        for before in range(level):
            numbers: dict[tuple[Any, ...], int] = {}
            stages[:, before] = [numbers.setdefault(prefix(one, before), len(numbers)) for one in params]
        values = None if told is None else np.array([told[prefix(one, 0)] for one in params])
        return Places(self._unit(params, level + 1), stages, values)

    def _unit(self, params: Sequence[Params], levels: int) -> Values:
        """Coordinates in [0, 1] of the hyperparameters of the first `levels` levels, [n, …]."""
        width = sum(map(len, LEVELS[:levels]))
        return np.array([self._coordinates(prefix(one, _LAST))[:width] for one in params])

    def _hyperparameters(
        self,
        name: str,
        level: int,
        measured: Sequence[tuple[Finished, float]],
        prior: Prior,
        told: Mapping[Vae, float] | None,
    ) -> Hyperparameters:
        """Fitted anew whenever there is a quarter more to fit them to, up to MEMORY, and always to the first so many.

        So they cost little, and a study that is resumed has the same ones.
        """
        count = milestone(min(len(measured), MEMORY))
        if name not in self._fitted or self._fitted[name][0] != (count, told is not None):
            places = self._places([one.params for one, _ in measured[:count]], level, told)
            targets = np.array([value for _, value in measured[:count]])
            self._fitted[name] = ((count, told is not None), fit_hyperparameters(places, targets, prior))
        return self._fitted[name][1]

    def seconds(self, finished: Sequence[Finished], running: Sequence[Running], candidates: Sequence[Params]) -> list[Values]:
        """Expected seconds [c] of each level, 0 for what exists or is being built."""
        whole = [one.params for one in finished if one.values is not None] + [one.params for one in running if not one.vae_only]
        begun = [one.params for one in finished] + [one.params for one in running]
        result = []
        for level in range(len(LEVELS)):
            cost = self._cost_of(level, finished, candidates)
            exists = {prefix(params, level) for params in (whole if level else begun)}
            cost[[prefix(candidate, level) in exists for candidate in candidates]] = 0.0
            result.append(cost)
        return result

    def _cost_of(self, level: int, finished: Sequence[Finished], candidates: Sequence[Params]) -> Values:
        """Seconds [c] of building a level, by a ridge regression of their logarithm on its hyperparameters."""
        paid = [one for one in finished if one.seconds.get(level, 0.0) > 0]
        if not paid:
            return np.ones(len(candidates))
        logs = np.log([one.seconds[level] for one in paid])
        inputs, at = self._unit([one.params for one in paid], level + 1), self._unit(candidates, level + 1)
        middle = inputs.mean(axis=0)
        inputs, at = inputs - middle, at - middle
        slope = np.linalg.solve(inputs.T @ inputs + np.eye(inputs.shape[1]), inputs.T @ (logs - logs.mean()))
        return np.asarray(np.exp(logs.mean() + at @ slope))


def milestone(count: int) -> int:
    """The largest number of a series that grows by a quarter (1 … 8, 10, 12, 15, …) and is at most `count` ≥ 1."""
    reached = 1
    while (following := max(reached + 1, math.floor(1.25 * reached))) <= count:
        reached = following
    return reached
