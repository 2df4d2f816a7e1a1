"""A sampler that knows the stage graph: what is built already costs nothing, and what it told is known.

Every proposal branches somewhere: at the VAE (all is fitted anew), at the critic (a VAE that exists), or at the synthesis (a VAE
and a critic that exist). Candidates of all three kinds are compared by the hypervolume that they are expected to add per second
that they are expected to cost: P(gate) · E[gain] / (seconds of the VAE + P(gate) · seconds of the rest), what exists at 0.
The gain is that of the trial itself and of a few later ones with the same VAE and critic, made only if the first tells that they
are worth their seconds: a new stage is a ticket for many cheap trials. An objective that is measured on the VAE alone is not
guessed for a VAE that exists, nor is whether it passes the gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from tune.finished_trials import MEMORY, Finished, finished_trial, remembered, worth
from tune.gaussian_process import SPREAD, Hyperparameters, Places, fit_hyperparameters, predict
from tune.hypervolume import expected_improvement, nondominated
from tune.unit_cube import Axis

Values = NDArray[np.float64]
Params = Mapping[str, Any]

LEVELS: tuple[tuple[str, ...], ...] = (
    ("pc_weight", "group_count", "group_rank"),
    ("infonce_batch",),
    ("edit_step", "guidance_scale"),
)
"""The hyperparameters that are first read by the VAE, by the critic and by the synthesis."""
LEVEL_OF_OBJECTIVE = {"neural_r2": 0, "group_mig": 0, "selectivity": 2, "realism": 2}
"""The level after which each is known."""
_GATE_SPREAD = 0.03
"""Of the gate's constraint, a priori: differences of neural_r2 are as small as the margin that the gate allows. By the spread of
objectives every new VAE would pass by half a chance only, whatever those before it did."""
_LATER, _DRAWS, _LOOKED_INTO = 3, 24, 64
"""Later trials with the same new VAE or critic that a proposal looks ahead to; draws of what the first one may tell; and how many
candidates are looked into."""
_FRESH, _BRANCHES, _NEAR, _BEST = 256, 256, 128, 8
"""Candidates: all new, branches from what exists, and neighbours of the best."""
_STEMS = 40
"""Stages of a level that it branches from, at most."""
_STEP = 0.15
"""Size of a neighbour's change, in units of the range."""


@dataclass(frozen=True)
class Expected:
    """Raw objectives of candidates: mean and sd [c, objectives], and own [objectives], the sd that no other trial tells of."""

    mean: Values
    sd: Values
    own: Values

    def rows(self, rows: NDArray[np.int64]) -> Expected:
        """Those of some candidates."""
        return Expected(self.mean[rows], self.sd[rows], self.own)


class ReuseSampler(optuna.samplers.BaseSampler):
    """Proposes what adds most hypervolume per second; see the module.

    distributions: of all hyperparameters. objectives: their names, in the study's order. rounded: values as they are used, so
    that it sees which stages they share. It learns from the first complete trial on: more random ones would pay for VAEs and
    critics that nothing speaks for. A proposal depends on the seed, on its number and on what the study holds, on nothing else.
    """

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        objectives: Sequence[str],
        *,
        seed: int,
        rounded: Callable[[Params], dict[str, Any]] = dict,
    ) -> None:
        self._seed = seed
        self._distributions, self._objectives = dict(distributions), tuple(objectives)
        self._axes = {name: Axis(one) for name, one in distributions.items()}
        self._rounded = rounded
        axes = [self._axes[name] for names in LEVELS for name in names]
        # Every prediction of a proposal asks for them again, and the next proposals for those of the trials.
        self._coordinates = lru_cache(4096)(lambda values: tuple(map(Axis.place, axes, values)))
        self._fitted: dict[str, tuple[int, Hyperparameters]] = {}
        self._number: int | None = None

    def at(self, number: int) -> ReuseSampler:
        """Itself, for proposal `number` of a study whose numbers are not Optuna's; those count failed attempts, too."""
        self._number = number
        return self

    def _generator(self, trial: FrozenTrial) -> np.random.Generator:
        return np.random.default_rng([self._seed, trial.number if self._number is None else self._number])

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        value = Axis(param_distribution).value(float(self._generator(trial).random()))
        return self._rounded({param_name: value})[param_name]

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        trials = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        whole = [one for one in trials if one.params.keys() >= self._distributions.keys()]
        finished = [
            finished_trial(one, self._objectives) for one in whole if one.state in (TrialState.COMPLETE, TrialState.PRUNED)
        ]
        running = [one.params for one in whole if one.state == TrialState.RUNNING]
        failed = [one.params for one in whole if one.state == TrialState.FAIL]
        generator = self._generator(trial)
        candidates = self._candidates(finished, running, failed, generator)
        if not candidates or all(one.values is None for one in finished):
            return candidates[0] if candidates else self._random(generator, {})
        return self._best(finished, running, candidates, generator)

    def _random(self, generator: np.random.Generator, fixed: Params) -> dict[str, Any]:
        """A random configuration with the values in `fixed`."""
        values = {name: axis.value(float(generator.random())) for name, axis in self._axes.items()}
        return {**self._rounded(values), **{name: fixed[name] for name in fixed}}

    def _best(
        self,
        finished: list[Finished],
        running: Sequence[Params],
        candidates: list[dict[str, Any]],
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        expected, passes = self._predictions(finished, running, candidates)
        front = nondominated(np.array([one.values for one in finished if one.values is not None]))
        seconds = self._seconds(finished, running, candidates)
        cost = np.maximum(seconds[0] + passes * (seconds[1] + seconds[2]), 1e-6)
        gain = expected_improvement(expected.mean, expected.sd, front)
        score = passes * gain / cost
        built = seconds[0] + seconds[1] == 0
        rate = float(score[built].max(initial=0.0))
        # What a stage turns out to be can only be told by a new one; of these the most promising are looked into.
        new = np.flatnonzero(~built)
        new = new[np.argsort(-score[new], kind="stable")[:_LOOKED_INTO]]
        later = _LATER * self._later(expected.rows(new), front, rate * seconds[2][new], generator)
        score[new] += passes[new] * later / cost[new]
        # Where nothing is expected any more, the least known for its cost.
        if score.max() <= 1e-12:
            score = passes * expected.sd.sum(axis=1) / cost
        return candidates[int(score.argmax())]

    @staticmethod
    def _later(expected: Expected, front: Values, worth: Values, generator: np.random.Generator) -> Values:
        """Expected gain [c] of one later trial with the same VAE and critic, over what its seconds are worth elsewhere.

        The first trial tells how good the stages turned out; another one is made only where that is worth it. It gains what
        the first one did not, which is taken to have turned out just as its stages did.
        """
        told = np.sqrt(np.maximum(expected.sd**2 - expected.own**2, 0.0))
        own, total = np.broadcast_to(expected.own, told.shape), np.zeros(len(worth))
        for draw in generator.standard_normal((_DRAWS, expected.mean.shape[1])):
            centre = expected.mean + told * draw
            gain = expected_improvement(centre, own, front) - expected_improvement(centre, np.zeros_like(told), front)
            total += np.maximum(gain - worth, 0.0)
        return np.asarray(total / _DRAWS)

    def _candidates(
        self, finished: list[Finished], running: Sequence[Params], failed: Sequence[Params], generator: np.random.Generator
    ) -> list[dict[str, Any]]:
        """Distinct configurations that were not tried: new ones, branches from what exists, neighbours of the best.

        None has a VAE that the gate refused, nor failed before.
        """
        tried = [one.params for one in finished] + list(running)
        refused = {prefix(one.params, 0) for one in finished if one.values is None}
        alive = [params for params in tried if prefix(params, 0) not in refused]
        found = [self._random(generator, {}) for _ in range(_FRESH)]
        for level in (0, 1):
            stems = list({prefix(params, level): params for params in alive}.values())[-_STEMS:]
            for stem in stems:
                fixed = {name: stem[name] for names in LEVELS[: level + 1] for name in names}
                found += [self._random(generator, fixed) for _ in range(max(4, _BRANCHES // len(stems)))]
        best = [one.params for one in sorted(finished, key=lambda one: -worth(one))[:_BEST] if one.values is not None]
        found += [self._neighbour(params, generator) for params in best for _ in range(_NEAR // len(best))]
        last = len(LEVELS) - 1
        known = {prefix(params, last) for params in [*tried, *failed]}
        distinct = {prefix(params, last): params for params in found if prefix(params, 0) not in refused}
        return [params for name, params in distinct.items() if name not in known]

    def _neighbour(self, params: Params, generator: np.random.Generator) -> dict[str, Any]:
        """Some of the values changed a little."""
        values = dict(params)
        for name, axis in self._axes.items():
            if generator.random() < 0.5:
                values[name] = axis.value(min(max(axis.place(values[name]) + _STEP * generator.normal(), 0.0), 1.0))
        return self._rounded(values)

    def _unit(self, params: Sequence[Params], levels: int) -> Values:
        """Coordinates in [0, 1] of the hyperparameters of the first `levels` levels, [n, …]."""
        width = sum(map(len, LEVELS[:levels]))
        return np.array([self._coordinates(prefix(one, len(LEVELS) - 1))[:width] for one in params])

    def _predictions(
        self, finished: list[Finished], running: Sequence[Params], candidates: list[dict[str, Any]]
    ) -> tuple[Expected, Values]:
        """The raw objectives, and the probability [c] to pass the gate.

        Trials under way count as if they had ended as expected, so that several at once spread out.
        """
        complete = [one for one in finished if one.values is not None]
        means, sds, owns = [], [], []
        for number, name in enumerate(self._objectives):
            values = [(one, one.values[number]) for one in complete if one.values is not None]
            level = LEVEL_OF_OBJECTIVE.get(name, len(LEVELS) - 1)
            mean, sd, own = self._predict(name, level, values, running, candidates)
            means.append(mean)
            sds.append(sd)
            # What the VAE decides is the same for all trials with that VAE.
            owns.append(own if level == len(LEVELS) - 1 else 0.0)
        expected = Expected(np.stack(means, axis=1), np.stack(sds, axis=1), np.array(owns))
        judged = [(one, one.constraint) for one in finished if one.constraint is not None]
        if not judged:
            return expected, np.ones(len(candidates))
        centre, spread, _ = self._predict("constraint", 0, judged, running, candidates, _GATE_SPREAD)
        return expected, np.asarray(ndtr(-centre / np.maximum(spread, 1e-12)))

    def _predict(
        self,
        name: str,
        level: int,
        measured: Sequence[tuple[Finished, float]],
        running: Sequence[Params],
        candidates: list[dict[str, Any]],
        spread: float = SPREAD,
    ) -> tuple[Values, Values, float]:
        """Mean, sd [c] and own chance of what is known after a level: exact where the stages of that level exist.

        spread: of what was measured, a priori.
        """
        known = {prefix(one.params, level): (one, value) for one, value in measured}
        pending = [one for one in running if prefix(one, level) not in known]
        learnt = remembered([one for one, _ in known.values()])
        places = self._places([*(one.params for one in learnt), *pending, *candidates], level)
        targets, count = np.array([known[prefix(one.params, level)][1] for one in learnt]), len(learnt)
        parameters = self._hyperparameters(name, level, list(known.values()), spread)
        if pending:
            at = places.rows(count, count + len(pending))
            guessed, _, _ = predict(places.rows(0, count), targets, parameters, at, spread=spread)
            targets, count = np.concatenate([targets, guessed]), count + len(pending)
        before, at = places.rows(0, count), places.rows(count, len(places))
        mean, sd, own = predict(before, targets, parameters, at, measured=len(learnt), spread=spread)
        for row, candidate in enumerate(candidates):
            exact = known.get(prefix(candidate, level))
            if exact is not None:
                mean[row], sd[row] = exact[1], 0.0
        return mean, sd, own

    def _places(self, params: Sequence[Params], level: int) -> Places:
        """Where configurations are for what is known after a level; the stages of the levels before it are numbered."""
        stages = np.zeros((len(params), level), dtype=np.int64)
        for before in range(level):
            numbers: dict[tuple[Any, ...], int] = {}
            stages[:, before] = [numbers.setdefault(prefix(one, before), len(numbers)) for one in params]
        return Places(self._unit(params, level + 1), stages)

    def _hyperparameters(
        self, name: str, level: int, measured: Sequence[tuple[Finished, float]], spread: float
    ) -> Hyperparameters:
        """Fitted anew whenever there is a quarter more to fit them to, up to MEMORY, and always to the first so many.

        So they cost little, and a study that is resumed has the same ones.
        """
        count = milestone(min(len(measured), MEMORY))
        if name not in self._fitted or self._fitted[name][0] != count:
            places = self._places([one.params for one, _ in measured[:count]], level)
            targets = np.array([value for _, value in measured[:count]])
            self._fitted[name] = (count, fit_hyperparameters(places, targets, spread))
        return self._fitted[name][1]

    def _seconds(self, finished: list[Finished], running: Sequence[Params], candidates: list[dict[str, Any]]) -> list[Values]:
        """Expected seconds [c] of each level, 0 for what exists or is being built."""
        tried = [one.params for one in finished] + list(running)
        result = []
        for level in range(len(LEVELS)):
            cost = self._cost_of(level, finished, candidates)
            exists = {prefix(params, level) for params in tried}
            cost[[prefix(candidate, level) in exists for candidate in candidates]] = 0.0
            result.append(cost)
        return result

    def _cost_of(self, level: int, finished: list[Finished], candidates: list[dict[str, Any]]) -> Values:
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


_PREFIXES = [itemgetter(*(name for names in LEVELS[: level + 1] for name in names)) for level in range(len(LEVELS))]


def prefix(params: Params, level: int) -> tuple[Any, ...]:
    """What decides the stages up to a level, so that configurations with equal prefixes share them."""
    values: tuple[Any, ...] = _PREFIXES[level](params)
    return values


def milestone(count: int) -> int:
    """The largest number of a series that grows by a quarter (1 … 8, 10, 12, 15, …) and is at most `count` ≥ 1."""
    reached = 1
    while (following := max(reached + 1, math.floor(1.25 * reached))) <= count:
        reached = following
    return reached
