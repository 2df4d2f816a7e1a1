"""Optuna's own plots of a search: its Pareto front, its trials as parallel coordinates, and which hyperparameter matters."""

from __future__ import annotations

import importlib
import itertools
import math
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

FEWEST = 4
"""Complete trials from which importances mean something."""


_IMPORTING = threading.Lock()


def import_plots() -> None:
    """Imports what `search_charts` draws with, scikit-learn for the importances included: two seconds that a search has.

    Waits for another thread that does so: pyplot is there for all of them before it is whole.
    """
    with _IMPORTING:
        importlib.import_module("matplotlib").use("Agg")
        importlib.import_module("optuna.visualization.matplotlib")
        importlib.import_module("sklearn.ensemble")


def search_charts(study: optuna.Study, objectives: Sequence[str], folder: Path) -> dict[str, Path]:
    """Draws the plots of a study into `folder`: {caption: PNG}. Those that its trials do not allow are left out."""
    import_plots()
    from optuna.visualization import matplotlib as plots

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's plots are marked as experimental
        for first, second in itertools.combinations(range(len(objectives)), 2):
            name = f"{objectives[first]} against {objectives[second]}"
            axes = plots.plot_pareto_front(
                study, targets=_values(first, second), target_names=[objectives[first], objectives[second]]
            )
            found[f"Pareto front: {name}"] = _save(axes, folder / f"pareto_{objectives[first]}_{objectives[second]}.png")
        if len(complete) >= 2:
            axes = plots.plot_parallel_coordinate(study, target=_distance, target_name="distance to the ideal corner")
            found["The trials as parallel coordinates: the darker, the nearer to the ideal corner"] = _save(
                axes, folder / "parallel_coordinates.png"
            )
        if len(complete) >= FEWEST:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            for place, name in enumerate(objectives):
                if len({trial.values[place] for trial in complete}) > 1:
                    axes = plots.plot_param_importances(study, evaluator=evaluator, target=_value(place), target_name=name)
                    found[f"Importance for {name} (fANOVA)"] = _save(axes, folder / f"importance_{name}.png")
    return found


def _values(first: int, second: int) -> Any:
    return lambda trial: (trial.values[first], trial.values[second])


def _value(place: int) -> Any:
    return lambda trial: trial.values[place]


def _distance(trial: FrozenTrial) -> float:
    """To the point where every objective is 1."""
    return math.sqrt(sum((1 - value) ** 2 for value in trial.values))


def _save(axes: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure = axes.figure
    figure.set_size_inches(7.5, 4.2)
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    pyplot.close(figure)
    return path
