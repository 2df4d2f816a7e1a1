"""A sampler that knows the stage graph: what is built already costs nothing, and what it told is known.

Every proposal branches somewhere: at the VAE (all is fitted anew), at the critic (a VAE that exists), or at the synthesis (a VAE
and a critic that exist). Candidates of all three kinds are compared by the hypervolume that they are expected to add per second
that they are expected to cost, what exists at 0. The gain is that of the trial itself and of a few later ones with the same VAE
and critic, made only if the first tells that they are worth their seconds: a new stage is a ticket for many cheap trials.

A new VAE is looked at first: its trial ends after it. It tells its own objectives and most of the selectivity of its edits for a
fraction of a trial's seconds, and the next proposal may branch from it, or leave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from tune.expectations import Expectations, Expected
from tune.finished_trials import VAE_ONLY, VOID, Finished, Running, finished_trial, worth
from tune.hypervolume import expected_improvement, nondominated
from tune.levels import LEVEL_OF_OBJECTIVE, LEVELS, Params, prefix
from tune.unit_cube import Axis

Values = NDArray[np.float64]

_LATER, _DRAWS, _LOOKED_INTO = 3, 24, 64
"""Later trials with the same new VAE or critic that a proposal looks ahead to, at most; draws of what the first one may tell; and
how many candidates are looked into."""
_FRESH, _BRANCHES, _NEAR, _BEST = 256, 256, 128, 8
"""Candidates: all new, branches from what exists, and neighbours of the best."""
_STEMS = 40
"""Stages of a level that it branches from, at most."""
_STEP = 0.15
"""Size of a neighbour's change, in units of the range."""


class ReuseSampler(optuna.samplers.BaseSampler):
    """Proposes what adds most hypervolume per second; see the module.

    distributions: of all hyperparameters. objectives: their names, in the study's order. rounded: values as they are used, so
    that it sees which stages they share. trials: of the whole study, None where it has no end; it looks no further ahead, and
    looks at no VAE that no later trial could use. It learns from the first complete trial on: more random ones would pay for VAEs
    and critics that nothing speaks for. A proposal depends on the seed, on its number, on `trials` and on what the study holds,
    on nothing else.
    """

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        objectives: Sequence[str],
        *,
        seed: int,
        rounded: Callable[[Params], dict[str, Any]] = dict,
        trials: int | None = None,
    ) -> None:
        self._seed, self._trials = seed, trials
        self._distributions, self._objectives = dict(distributions), tuple(objectives)
        self._axes = {name: Axis(one) for name, one in distributions.items()}
        self._rounded = rounded
        self._expectations = Expectations(distributions, objectives)
        levels = [LEVEL_OF_OBJECTIVE.get(name, len(LEVELS) - 1) for name in objectives]
        self._looks = min(levels) == 0 < max(levels)
        self._number: int | None = None

    def at(self, number: int) -> ReuseSampler:
        """Itself, for proposal `number` of a study whose numbers are not Optuna's; those count failed attempts, too."""
        self._number = number
        return self

    def _left(self, running: int) -> float:
        """Trials that may be proposed once this one has ended; those proposed while it is under way are taken for as many as
        the `running` ones.
        """
        if self._trials is None or self._number is None:
            return math.inf
        return max(0, self._trials - 1 - self._number - running)

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
        running = [Running(one.params, bool(one.user_attrs.get(VAE_ONLY))) for one in whole if one.state == TrialState.RUNNING]
        failed = [one.params for one in whole if one.state == TrialState.FAIL and not one.user_attrs.get(VOID)]
        generator = self._generator(trial)
        candidates = self._candidates(finished, running, failed, generator)
        if not candidates or all(one.values is None for one in finished):
            return candidates[0] if candidates else self._random(generator, {})
        return self._best(finished, running, candidates, generator)

    def ends_after_vae(self, trials: Sequence[FrozenTrial], params: Params) -> bool:
        """Whether a proposal is to end after its VAE: none of the other trials of the study has it, and it tells some of the
        objectives, not all. Before there is a complete trial none does: nothing speaks for one VAE or another. Nor does one
        that no later trial could use.
        """
        used = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        have = {prefix(one.params, 0) for one in trials if one.state in used and one.params.keys() >= self._distributions.keys()}
        learns = any(one.state == TrialState.COMPLETE for one in trials)
        running = sum(one.state == TrialState.RUNNING for one in trials)
        return self._looks and learns and self._left(running) > 0 and prefix(params, 0) not in have

    def _random(self, generator: np.random.Generator, fixed: Params) -> dict[str, Any]:
        """A random configuration with the values in `fixed`."""
        values = {name: axis.value(float(generator.random())) for name, axis in self._axes.items()}
        return {**self._rounded(values), **{name: fixed[name] for name in fixed}}

    def _best(
        self,
        finished: list[Finished],
        running: Sequence[Running],
        candidates: list[dict[str, Any]],
        generator: np.random.Generator,
    ) -> dict[str, Any]:
        expected, passes = self._expectations.of(finished, running, candidates)
        front = nondominated(np.array([one.values for one in finished if one.values is not None]))
        vae, critic, edits = self._expectations.seconds(finished, running, candidates)
        cost = np.maximum(vae + passes * (critic + edits), 1e-6)
        gain = expected_improvement(expected.mean, expected.sd, front)
        score = passes * gain / cost
        built = vae + critic == 0
        rate = float(score[built].max(initial=0.0))
        # What a stage turns out to be can only be told by a new one; of these the most promising are looked into.
        vaes, critics = (_first(score, rows) for rows in (vae > 0, ~built & (vae == 0)))
        new = np.concatenate([vaes, critics])
        later, left = self._later(expected.rows(new), front, rate * edits[new], generator), self._left(len(running))
        score[new] += passes[new] * min(_LATER, left) * later / cost[new]
        if self._looks and left and score.max() > 1e-12:
            after = min(_LATER, left - 1) * later[: len(vaes)]
            rate = float(score[vae == 0].max(initial=0.0))
            seen = self._seen(expected.rows(vaes), front, after, rate * (critic + edits)[vaes], generator)
            score[vae > 0] = 0.0
            score[vaes] = passes[vaes] * seen / np.maximum(vae[vaes], 1e-6)
        # Where nothing is expected any more, the least known for its cost.
        if score.max() <= 1e-12:
            score = passes * expected.sd.sum(axis=1) / cost
        return candidates[int(score.argmax())]

    @staticmethod
    def _seen(expected: Expected, front: Values, later: Values, elsewhere: Values, generator: np.random.Generator) -> Values:
        """Expected gain [c] of the trials with a new VAE over what their seconds are worth elsewhere, if it is seen first.

        They are made only where what is seen of the VAE makes them worth it. later [c]: gain of those after the first, whatever
        is seen. elsewhere [c]: what their seconds are worth.
        """
        rest, total = np.sqrt(np.maximum(expected.sd**2 - expected.by_vae**2, 0.0)), np.zeros(len(elsewhere))
        for draw in generator.standard_normal((_DRAWS, expected.mean.shape[1])):
            gain = expected_improvement(expected.mean + expected.by_vae * draw, rest, front)
            total += np.maximum(gain + later - elsewhere, 0.0)
        return np.asarray(total / _DRAWS)

    @staticmethod
    def _later(expected: Expected, front: Values, elsewhere: Values, generator: np.random.Generator) -> Values:
        """Expected gain [c] of one later trial with the same VAE and critic, over what its seconds are worth elsewhere.

        The first trial tells how good the stages turned out; another one is made only where that is worth it. It gains what
        the first one did not, which is taken to have turned out just as its stages did.
        """
        told = np.sqrt(np.maximum(expected.sd**2 - expected.own**2, 0.0))
        own, total = np.broadcast_to(expected.own, told.shape), np.zeros(len(elsewhere))
        for draw in generator.standard_normal((_DRAWS, expected.mean.shape[1])):
            centre = expected.mean + told * draw
            gain = expected_improvement(centre, own, front) - expected_improvement(centre, np.zeros_like(told), front)
            total += np.maximum(gain - elsewhere, 0.0)
        return np.asarray(total / _DRAWS)

    def _candidates(
        self, finished: list[Finished], running: Sequence[Running], failed: Sequence[Params], generator: np.random.Generator
    ) -> list[dict[str, Any]]:
        """Distinct configurations that were not tried: new ones, branches from what exists, neighbours of the best.

        None has a VAE that the gate refused or that is being looked at, nor failed before.
        """
        closed = {prefix(one.params, 0) for one in finished if one.refused}
        closed |= {prefix(one.params, 0) for one in running if one.vae_only}
        whole = [one.params for one in finished if one.values is not None] + [one.params for one in running if not one.vae_only]
        begun = [one.params for one in finished] + [one.params for one in running]
        vaes = [params for params in begun if prefix(params, 0) not in closed]
        found = [self._random(generator, {}) for _ in range(_FRESH)]
        for level, tried in enumerate((vaes, whole)):
            stems = list({prefix(params, level): params for params in tried}.values())[-_STEMS:]
            for stem in stems:
                fixed = {name: stem[name] for names in LEVELS[: level + 1] for name in names}
                found += [self._random(generator, fixed) for _ in range(max(4, _BRANCHES // len(stems)))]
        found += [dict(one.params) for one in finished if one.values is None]  # what was looked at, as it was proposed
        best = [one.params for one in sorted(finished, key=lambda one: -worth(one))[:_BEST] if one.values is not None]
        found += [self._neighbour(params, generator) for params in best for _ in range(_NEAR // len(best))]
        last = len(LEVELS) - 1
        known = {prefix(params, last) for params in [*whole, *failed]}
        distinct = {prefix(params, last): params for params in found if prefix(params, 0) not in closed}
        return [params for name, params in distinct.items() if name not in known]

    def _neighbour(self, params: Params, generator: np.random.Generator) -> dict[str, Any]:
        """Some of the values changed a little."""
        values = dict(params)
        for name, axis in self._axes.items():
            if generator.random() < 0.5:
                values[name] = axis.value(min(max(axis.place(values[name]) + _STEP * generator.normal(), 0.0), 1.0))
        return self._rounded(values)


def _first(score: Values, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of the chosen candidates [c] the best _LOOKED_INTO."""
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(-score[rows], kind="stable")[:_LOOKED_INTO]]
