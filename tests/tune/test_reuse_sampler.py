from __future__ import annotations

from itertools import islice

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tune.factorial import FactorialTable, Row
from tune.finished_trials import OBSERVED
from tune.reuse_sampler import ReuseSampler, milestone, prefix
from tune.selection import OBJECTIVES
from tune.simulator import Ended, distributions, simulate

GRID = {
    "pc_weight": (1e-5, 1e-4, 1e-3, 1e-2),
    "group_count": (2, 4, 6),
    "group_rank": (3,),
    "infonce_batch": (32, 64),
    "edit_step": (0.6, 0.75, 0.9),
    "guidance_scale": (5.0, 20.0),
}


def table(vae_seconds: float = 5.0, edit_seconds: float = 5.0) -> FactorialTable:
    """Invented values: β is best at 1e-4 and passes no gate at 1e-2, G decides group_mig, edits are worth more at small t′."""
    rows, seconds = [], {}
    for index in np.ndindex(*map(len, GRID.values())):
        params = {name: values[place] for (name, values), place in zip(GRID.items(), index, strict=True)}
        beta, groups, _, batch, step, scale = params.values()
        vae, critic = f"{beta}-{groups}", f"{beta}-{groups}-{batch}"
        constraint = 0.05 if beta == 1e-2 else -0.05
        stages = [("vae", vae)]
        if constraint <= 0:
            stages += [("critic", critic), ("synthesis", f"{critic}-{step}-{scale}")]
        metrics = {
            "group_mig": 0.5 - 0.05 * abs(groups - 4) - 0.05 * abs(np.log10(beta) + 4),
            "selectivity": 0.3 - 0.2 * step + 0.001 * scale,
            "realism": 0.9 - 0.002 * scale + 0.0005 * batch,
        }
        cost = {"vae": vae_seconds, "critic": 3.0, "synthesis": edit_seconds}
        seconds |= {stage: cost[stage[0]] for stage in stages}
        rows.append(Row(params, {name: float(value) for name, value in metrics.items()}, constraint, tuple(stages)))
    return FactorialTable(GRID, rows[0].params, tuple(rows), seconds)


def search(of: FactorialTable, count: int, seed: int = 0) -> list[Ended]:
    return list(islice(simulate(of, ReuseSampler(distributions(of), OBJECTIVES, seed=seed)), count))


def test_nothing_is_tried_twice_nor_a_vae_that_the_gate_refused() -> None:
    trials = search(table(), 108)
    passed = [trial.row for trial in trials if not trial.row.pruned]
    assert len({prefix(row.params, 2) for row in passed}) == len(passed)
    refused = [prefix(trial.row.params, 0) for trial in trials if trial.row.pruned]
    assert len(refused) == len(set(refused)) <= 3
    assert len(passed) >= 105, "every one of the configurations that pass is tried in the end"


def test_the_best_is_found_with_few_trials() -> None:
    for seed in range(3):
        trials = search(table(), 14, seed)
        best = {"pc_weight": 1e-4, "group_count": 4, "edit_step": 0.6}
        assert any(best.items() <= trial.row.params.items() for trial in trials), [trial.row.params for trial in trials]


def test_dear_vaes_are_branched_from_and_cheap_ones_are_tried() -> None:
    def vaes(of: FactorialTable) -> float:
        return float(np.mean([len({prefix(one.row.params, 0) for one in search(of, 12, seed)}) for seed in range(4)]))

    dear, cheap = vaes(table(vae_seconds=500.0)), vaes(table(vae_seconds=0.01))
    assert dear < cheap - 1


def test_a_second_sampler_goes_on_as_the_first_would() -> None:
    """All that a proposal depends on is in the study and the seed, so that a study may be resumed."""
    study = optuna.create_study(directions=["maximize"] * 3)
    space = {"pc_weight": FloatDistribution(1e-5, 1e-1, log=True), "group_count": IntDistribution(2, 8)}
    space |= {"group_rank": IntDistribution(1, 8), "infonce_batch": CategoricalDistribution((16, 32, 64))}
    space |= {"edit_step": FloatDistribution(0.5, 0.95, step=0.05), "guidance_scale": FloatDistribution(1, 100, log=True)}
    lasting = ReuseSampler(space, OBJECTIVES, seed=0)
    for _ in range(9):
        study.sampler = lasting
        trial = study.ask(space)
        fresh = ReuseSampler(space, OBJECTIVES, seed=0)
        assert trial.params == fresh.sample_relative(study, study.trials[-1], space)
        values = {"group_mig": trial.params["group_rank"] / 8, "selectivity": -0.1, "realism": trial.params["edit_step"]}
        trial.set_user_attr(OBSERVED, {"values": values, "seconds": {"0": 5.0, "2": 9.0}})
        trial.set_constraint("neural_r2", -0.01)
        study.tell(trial, [values["group_mig"], 0.0, values["realism"]])


def test_trials_under_way_are_not_proposed_again() -> None:
    of = table()
    sampler = ReuseSampler(distributions(of), OBJECTIVES, seed=0)
    rows = [trial.row for trial in islice(simulate(of, sampler, machines=6), 30)]
    passed = [prefix(row.params, 2) for row in rows if not row.pruned]
    assert len(set(passed)) >= len(passed) - 5, "only those that start before anything is known may meet"


def test_milestones_grow_by_a_quarter() -> None:
    series = [milestone(count) for count in range(1, 60)]
    assert sorted(set(series)) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 33, 41, 51]
    assert all(reached <= count for count, reached in enumerate(series, 1))
