"""The samplers that a study may use, by name; all of them propose values as they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from tune.reuse_sampler import ReuseSampler
from tune.study_config import SamplerName

Rounded = Callable[[Mapping[str, Any]], dict[str, Any]]


class RoundingSampler(optuna.samplers.BaseSampler):
    """Another sampler whose values are rounded as the space rounds them, so that the database holds what ran."""

    def __init__(self, sampler: optuna.samplers.BaseSampler, rounded: Rounded) -> None:
        self._sampler, self._rounded = sampler, rounded

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._rounded(self._sampler.sample_relative(study, trial, search_space))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        value = self._sampler.sample_independent(study, trial, param_name, param_distribution)
        return self._rounded({param_name: value})[param_name]

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()


def sampler_by_number(
    name: SamplerName,
    distributions: Mapping[str, BaseDistribution],
    objectives: Sequence[str],
    *,
    seed: int,
    startup_trials: int,
    rounded: Rounded = dict,
    trials: int | None = None,
) -> Callable[[int], optuna.samplers.BaseSampler]:
    """The sampler `name` for each proposal by its number, which draws as if it were the first of a process.

    So a study that was killed and resumed proposes what an undisturbed one would.

    distributions: of all hyperparameters. objectives: names, in the study's order. startup_trials: random ones before TPE
    learns, and NSGA-II's population. trials: of the whole study, None where it has no end (ReuseSampler alone asks).
    """
    if name == "reuse":
        lasting = ReuseSampler(distributions, objectives, seed=seed, rounded=rounded, trials=trials)
        return lasting.at

    def fresh(number: int) -> optuna.samplers.BaseSampler:
        own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        if name == "random":
            return RoundingSampler(optuna.samplers.RandomSampler(seed=own), rounded)
        if name == "nsga2":
            return RoundingSampler(optuna.samplers.NSGAIISampler(population_size=max(2, startup_trials), seed=own), rounded)
        return RoundingSampler(optuna.samplers.TPESampler(multivariate=True, n_startup_trials=startup_trials, seed=own), rounded)

    return fresh


def ends_after_vae(study: optuna.Study, trial: Trial) -> bool:
    """Whether a trial that the study's sampler has just proposed is to end after its VAE (ReuseSampler alone wants that)."""
    if not isinstance(study.sampler, ReuseSampler):
        return False
    others = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number]
    return study.sampler.ends_after_vae(others, trial.params)
