"""Optuna's plots of a search: all that its trials allow, and no more."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from PIL import Image

from tune.search_charts import search_charts

OBJECTIVES = ("group_mig", "selectivity", "realism")


def study(trials: int) -> optuna.Study:
    """Trials on a line from bad to good, every third ended by the gate; importance lies in edit_step alone."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(directions=["maximize"] * 3, sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial):
        step = trial.suggest_float("edit_step", 0.5, 0.95)
        trial.suggest_float("pc_weight", 1e-6, 1e-1, log=True)
        if trial.number % 3 == 2:
            raise optuna.TrialPruned
        return step, step, step

    made.optimize(objective, trials)
    return made


def test_all_plots_are_drawn(tmp_path) -> None:
    charts = search_charts(study(12), OBJECTIVES, tmp_path / "charts")
    names = sorted(path.name for path in charts.values())
    assert names == sorted(
        [
            *("pareto_group_mig_selectivity.png", "pareto_group_mig_realism.png", "pareto_selectivity_realism.png"),
            *("parallel_coordinates.png", "importance_group_mig.png", "importance_selectivity.png", "importance_realism.png"),
        ]
    )
    for path in charts.values():
        assert np.asarray(Image.open(path).convert("L")).std() > 5, "nothing is drawn"


@pytest.mark.parametrize(("trials", "count"), [(0, 0), (1, 3), (2, 4)])
def test_few_trials_give_few_plots(tmp_path, trials, count) -> None:
    assert len(search_charts(study(trials), OBJECTIVES, tmp_path)) == count


def test_one_objective_has_no_front_and_an_equal_one_no_importance(tmp_path) -> None:
    made = optuna.create_study(directions=["maximize"])
    made.optimize(lambda trial: 0.0 * trial.suggest_float("edit_step", 0, 1), 6)
    assert [path.name for path in search_charts(made, ("neural_r2",), tmp_path).values()] == ["parallel_coordinates.png"]
