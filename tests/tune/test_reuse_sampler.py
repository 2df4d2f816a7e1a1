from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tune.expectations import Expectations, Expected, milestone
from tune.factorial import FactorialTable, Row
from tune.finished_trials import ALIGNMENT, MEMORY, OBSERVED, VAE_ONLY, Finished, Running, finished_trial
from tune.levels import prefix
from tune.reuse_sampler import ReuseSampler
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
            "alignment": 0.7,
        }
        cost = {"vae": vae_seconds, "critic": 3.0, "synthesis": edit_seconds}
        seconds |= {stage: cost[stage[0]] for stage in stages}
        rows.append(Row(params, {name: float(value) for name, value in metrics.items()}, constraint, tuple(stages)))
    return FactorialTable(GRID, rows[0].params, tuple(rows), seconds)


def search(of: FactorialTable, count: int, seed: int = 0) -> list[Ended]:
    return list(islice(simulate(of, ReuseSampler(distributions(of), OBJECTIVES, seed=seed).at), count))


def test_nothing_is_tried_twice_nor_a_vae_that_the_gate_refused() -> None:
    trials = search(table(), 119)
    passed = [trial.row for trial in trials if not trial.row.pruned and not trial.vae_only]
    assert len({prefix(row.params, 2) for row in passed}) == len(passed)
    looked_at = [prefix(trial.row.params, 0) for trial in trials if trial.vae_only]
    assert len(looked_at) == len(set(looked_at)) <= 11, "each VAE but the first trial's is looked at once"
    refused = [prefix(trial.row.params, 0) for trial in trials if trial.row.pruned]
    assert len(refused) == len(set(refused)) <= 3
    assert len(passed) == 108, "every one of the configurations that pass is tried in the end"


def test_the_best_is_found_with_few_trials() -> None:
    """4 of the 108 configurations are the best; random search tries 27 until it has one."""
    for seed in range(6):
        trials = [trial for trial in search(table(), 14, seed) if not trial.vae_only]
        best = {"pc_weight": 1e-4, "group_count": 4, "edit_step": 0.6}
        assert any(best.items() <= trial.row.params.items() for trial in trials), [trial.row.params for trial in trials]


def test_dear_vaes_are_branched_from_and_cheap_ones_are_tried() -> None:
    def vaes(of: FactorialTable) -> float:
        return float(np.mean([len({prefix(one.row.params, 0) for one in search(of, 12, seed)}) for seed in range(4)]))

    dear, cheap = vaes(table(vae_seconds=500.0)), vaes(table(vae_seconds=0.01))
    assert dear < cheap - 1


SPACE: dict[str, BaseDistribution] = {
    "pc_weight": FloatDistribution(1e-5, 1e-1, log=True),
    "group_count": IntDistribution(2, 8),
    "group_rank": IntDistribution(1, 8),
    "infonce_batch": CategoricalDistribution((16, 32, 64)),
    "edit_step": FloatDistribution(0.5, 0.95, step=0.05),
    "guidance_scale": FloatDistribution(1, 100, log=True),
}


def finish(study: optuna.Study, trial: optuna.Trial, realism: float) -> None:
    values = {"group_mig": trial.params["group_rank"] / 8, "selectivity": -0.1, "realism": realism}
    trial.set_user_attr(OBSERVED, {"values": values, "seconds": {"0": 5.0, "2": 9.0}})
    trial.set_constraint("neural_r2", -0.01)
    study.tell(trial, [values["group_mig"], 0.0, values["realism"]])


def test_a_second_sampler_goes_on_as_the_first_would() -> None:
    """All that a proposal depends on is in the study and the seed, so that a study may be resumed, however long it is."""
    study = optuna.create_study(directions=["maximize"] * 3)
    lasting, generator = ReuseSampler(SPACE, OBJECTIVES, seed=0), np.random.default_rng(0)
    for number in range(MEMORY + 12):
        if 9 <= number < MEMORY + 5:
            study.sampler = optuna.samplers.RandomSampler(seed=number)
            trial = study.ask(SPACE)
        else:
            study.sampler = lasting
            trial = study.ask(SPACE)
            fresh = ReuseSampler(SPACE, OBJECTIVES, seed=0)
            assert trial.params == fresh.sample_relative(study, study.trials[-1], SPACE)
        finish(study, trial, float(generator.random()))


def test_a_configuration_that_failed_is_not_proposed_again() -> None:
    for before in (0, 4):
        study = optuna.create_study(directions=["maximize"] * 3)
        sampler = ReuseSampler(SPACE, OBJECTIVES, seed=0)
        for number in range(before):
            study.sampler = sampler.at(number)
            finish(study, study.ask(SPACE), 0.5)
        failed = []
        for number in range(before, before + 3):
            study.sampler = sampler.at(number)
            trial = study.ask(SPACE)
            assert trial.params not in failed
            failed.append(trial.params)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)


def test_what_a_vae_told_is_known_however_long_ago() -> None:
    study = optuna.create_study(directions=["maximize"] * 3, sampler=optuna.samplers.RandomSampler(seed=1))
    first = study.ask(SPACE)
    finish(study, first, 0.5)
    for number in range(MEMORY + 20):
        finish(study, study.ask(SPACE), 0.1 + number / 1000)
    ended = [finished_trial(one, OBJECTIVES) for one in study.trials]
    candidate = {**first.params, "edit_step": 0.5, "guidance_scale": 3.0}
    expected, passes = Expectations(SPACE, OBJECTIVES).of(ended, [], [candidate])
    assert passes[0] == 1
    assert (expected.mean[0, 0], expected.sd[0, 0]) == (first.params["group_rank"] / 8, 0)
    assert expected.sd[0, 2] > 0


BASE = {"pc_weight": 1e-4, "group_count": 4, "group_rank": 4, "infonce_batch": 32, "edit_step": 0.6, "guidance_scale": 5.0}


def finished(
    values: tuple[float, float, float] | None, constraint: float = -0.02, alignment: float | None = None, **changed: float
) -> Finished:
    """A trial of BASE with other hyperparameters; without values it ended after its VAE, which tells its group_mig 0.5."""
    told = {"group_mig": 0.5} if values is None else dict(zip(OBJECTIVES, values, strict=True))
    if alignment is not None:
        told[ALIGNMENT] = alignment
    return Finished({**BASE, **changed}, values, constraint, {0: 5.0, 1: 4.0, 2: 5.0}, told)


def test_a_vae_that_was_looked_at_is_known_and_tells_of_its_edits() -> None:
    """Two VAEs unlike any that was edited: one is aligned, the other is not, nobody has looked at the third."""
    edited = [finished((0.5, 0.15, 0.8), alignment=0.7), finished((0.5, -0.1, 0.8), alignment=0.3, group_count=3)]
    aligned, not_aligned, unseen = ({**BASE, "group_rank": rank} for rank in (8, 1, 6))
    seen = [finished(None, alignment=0.75, group_rank=8), finished(None, alignment=0.2, group_rank=1)]
    expected, passes = Expectations(SPACE, OBJECTIVES).of([*edited, *seen], [], [aligned, not_aligned, unseen])
    assert expected.mean[:2, 0].tolist() == [0.5, 0.5]
    assert expected.sd[:2, 0].tolist() == [0, 0]
    assert (passes[:2] == 1).all()
    assert expected.mean[0, 1] > expected.mean[1, 1] + 0.2
    assert expected.by_vae[:2].tolist() == [[0, 0, 0], [0, 0, 0]], "there is nothing more to see"
    assert (expected.by_vae[2] > 0).tolist() == [True, True, False], "a VAE tells nothing of realism"
    assert (expected.by_vae <= expected.sd).all()
    without, _ = Expectations(SPACE, OBJECTIVES).of([*edited, finished((0.5, 0.1, 0.7))], [], [aligned, not_aligned])
    assert abs(without.mean[0, 1] - without.mean[1, 1]) < 0.1, "nothing is told where it was not measured"


def test_the_last_trials_of_a_study_look_at_nothing_that_none_could_use() -> None:
    study = optuna.create_study(directions=["maximize"] * 3)
    sampler = ReuseSampler(SPACE, OBJECTIVES, seed=0, trials=12)
    study.sampler = sampler
    finish(study, study.ask(SPACE), 0.5)
    alone = study.get_trials(deepcopy=False)
    unseen = {**alone[0].params, "pc_weight": 2e-5}
    assert [sampler.at(number).ends_after_vae(alone, unseen) for number in (1, 10, 11)] == [True, True, False]
    assert ReuseSampler(SPACE, OBJECTIVES, seed=0).at(11).ends_after_vae(alone, unseen), "a search without an end"
    study.ask(SPACE)
    beside = study.get_trials(deepcopy=False)
    assert [sampler.at(number).ends_after_vae(beside, unseen) for number in (9, 10)] == [True, False]


def test_a_search_that_ends_invests_less_towards_its_end() -> None:
    """A new VAE of 40 s for edits of 5 s is worth its price to a search that goes on, and rarely to the last trial."""

    def new_vaes(trials: int | None) -> int:
        count = 0
        for seed in range(12):
            of = table(vae_seconds=40.0)
            sampler = ReuseSampler(distributions(of), OBJECTIVES, seed=seed, trials=trials)
            ended = list(islice(simulate(of, sampler.at), 6))
            assert not (trials and ended[-1].vae_only)
            count += prefix(ended[-1].row.params, 0) not in {prefix(one.row.params, 0) for one in ended[:-1]}
        return count

    assert new_vaes(6) < new_vaes(None)


def test_simulated_seconds_are_those_of_distinct_stages_and_a_look_has_a_vae_alone() -> None:
    of = table()
    trials = search(of, 40)
    assert trials[-1].seconds == sum(of.seconds[stage] for stage in {stage for trial in trials for stage in trial.stages})
    looks = [trial for trial in trials if trial.vae_only]
    assert len(looks) > 3
    assert all(trial.stages == trial.row.stages[:1] and trial.stages[0][0] == "vae" for trial in looks)
    assert all(trial.stages == trial.row.stages for trial in trials if not trial.vae_only)


def test_what_was_looked_at_is_neither_tried_nor_refused() -> None:
    sampler = ReuseSampler(SPACE, OBJECTIVES, seed=0)
    study = optuna.create_study(directions=["maximize"] * 3, sampler=sampler)
    whole = study.ask(SPACE)
    finish(study, whole, 0.5)
    looked = study.ask(SPACE)
    looked.set_user_attr(VAE_ONLY, True)
    trials = study.get_trials(deepcopy=False)
    another = {**looked.params, "pc_weight": 2e-5}
    assert not sampler.ends_after_vae(trials, whole.params)
    assert not sampler.ends_after_vae(trials, {**looked.params, "edit_step": 0.5}), "it is being fitted"
    assert sampler.ends_after_vae(trials, another)
    assert not sampler.ends_after_vae([], another), "nothing speaks for one VAE or another yet"
    for objectives in (["realism"], ["group_mig"], ["neural_r2"]):
        alone = ReuseSampler(SPACE, objectives, seed=0)
        assert not alone.ends_after_vae(trials, another), "a VAE tells nothing of them, or all"
    ended = [finished_trial(trials[0], OBJECTIVES), Finished(looked.params, None, -0.01, {0: 5.0}, {"group_mig": 0.5})]
    candidates = sampler._candidates(ended, [], [], np.random.default_rng(0))
    of_vae = [params for params in candidates if prefix(params, 0) == prefix(looked.params, 0)]
    assert len(of_vae) > 40
    assert looked.params in of_vae
    vae, critic, _ = sampler._expectations.seconds(ended, [], of_vae)
    assert (vae == 0).all()
    assert (critic > 0).all(), "no critic was fitted"
    refused = [ended[0], Finished(looked.params, None, 0.01, {0: 5.0}, {"group_mig": 0.5})]
    candidates = sampler._candidates(refused, [], [], np.random.default_rng(0))
    assert all(prefix(params, 0) != prefix(looked.params, 0) for params in candidates)
    candidates = sampler._candidates(ended[:1], [Running(looked.params, vae_only=True)], [], np.random.default_rng(0))
    assert all(prefix(params, 0) != prefix(looked.params, 0) for params in candidates), "it is not branched from blindly"


def test_a_trial_under_way_counts_for_what_it_will_tell() -> None:
    """A look at a VAE tells of that VAE and its neighbours, but of no edits."""
    edited = [finished((0.5, 0.15, 0.8), alignment=0.7), finished((0.4, -0.1, 0.8), alignment=0.3, group_count=3)]
    near = {**BASE, "group_rank": 7}
    alone, look, whole = (
        Expectations(SPACE, OBJECTIVES).of(edited, running, [near])[0]
        for running in ([], [Running({**BASE, "group_rank": 8}, True)], [Running({**BASE, "group_rank": 8})])
    )
    np.testing.assert_allclose(look.mean, alone.mean, atol=1e-6)
    assert look.sd[0, 0] < alone.sd[0, 0]
    assert look.by_vae[0, 1] < alone.by_vae[0, 1]
    assert look.sd[0, 2] == alone.sd[0, 2]
    assert whole.sd[0, 2] < alone.sd[0, 2]


def test_vaes_whose_edits_will_not_be_selective_are_left_after_a_look() -> None:
    """Of every two VAEs one has an alignment of 0.2, and edits that are not selective; which, only a look can tell."""
    of = table()
    odd = {vae: number % 2 for number, vae in enumerate(dict.fromkeys(prefix(row.params, 0) for row in of.rows))}

    def changed(row: Row) -> Row:
        lost = 0.3 * odd[prefix(row.params, 0)]
        metrics = {**row.metrics, "alignment": 0.7 - 1.5 * lost, "selectivity": row.metrics["selectivity"] - lost}
        return replace(row, metrics=metrics)

    of = replace(of, rows=tuple(map(changed, of.rows)))
    left = edited_well = edited_ill = 0
    for seed in range(4):
        trials = search(of, 24, seed)
        looked_at = {prefix(trial.row.params, 0) for trial in trials if trial.vae_only and not trial.row.pruned}
        edited = [prefix(trial.row.params, 0) for trial in trials[1:] if not trial.vae_only]
        left += sum(odd[vae] for vae in looked_at - set(edited))
        edited_ill += sum(odd[vae] for vae in edited)
        edited_well += sum(not odd[vae] for vae in edited)
    assert left >= 4
    assert edited_ill < edited_well / 4


def test_a_refused_first_trial_is_followed_by_whole_ones() -> None:
    of = table()
    start = next(row.params for row in of.rows if row.pruned)
    trials = search(replace(of, start=start), 6)
    assert trials[0].row.pruned
    first = next(number for number, trial in enumerate(trials) if not trial.row.pruned)
    assert not any(trial.vae_only for trial in trials[: first + 1])


def test_a_vae_is_looked_at_where_it_may_turn_out_either_way() -> None:
    """Its trials cost more than they are expected to gain, so they are made only if it turns out well."""
    front, generator = np.array([[0.5, 0.5]]), np.random.default_rng(0)
    certain = Expected(np.array([[0.55, 0.55]]), np.full((1, 2), 0.02), np.zeros((1, 2)), np.full(2, 0.02))
    uncertain = Expected(np.array([[0.55, 0.55]]), np.full((1, 2), 0.2), np.full((1, 2), 0.19), np.full(2, 0.02))
    worth = np.array([0.1])
    assert ReuseSampler._seen(certain, front, np.zeros(1), worth, generator)[0] == 0
    assert ReuseSampler._seen(uncertain, front, np.zeros(1), worth, generator)[0] > 0.01
    assert ReuseSampler._seen(uncertain, front, np.zeros(1), np.ones(1), generator)[0] == 0


def test_the_gate_is_expected_to_pass_what_is_like_what_it_passed() -> None:
    """Constraints differ by hundredths. By the spread of objectives it would be an even chance for all of these."""
    expectations = Expectations(SPACE, OBJECTIVES)

    def trial(constraint: float, **changed: float) -> Finished:
        return finished(None if constraint > 0 else (0.5, 0.2, 0.8), constraint, **changed)

    passed = [trial(-0.02), trial(-0.025, group_count=3), trial(-0.018, group_rank=5)]
    like, unlike = {**BASE, "group_rank": 3}, {**BASE, "pc_weight": 0.07}
    _, passes = expectations.of(passed, [], [like, unlike])
    assert passes[0] > 0.85
    assert passes[1] > 0.7, "nothing speaks against it yet"
    _, passes = expectations.of([*passed, trial(0.02, pc_weight=0.08)], [], [like, unlike])
    assert passes[0] > 0.85
    assert passes[1] < 0.4


def test_a_later_trial_gains_only_what_the_first_did_not() -> None:
    """What is decided by the VAE alone is gained once; a trial's own luck may be better the second time."""
    front, generator = np.array([[0.5, 0.5]]), np.random.default_rng(0)
    by_vae = Expected(np.array([[0.6, 0.5]]), np.array([[0.1, 0.0]]), np.zeros((1, 2)), np.array([0.0, 0.0]))
    assert ReuseSampler._later(by_vae, front, np.zeros(1), generator)[0] == 0
    by_luck = Expected(np.array([[0.6, 0.5]]), np.array([[0.1, 0.1]]), np.zeros((1, 2)), np.array([0.0, 0.1]))
    assert ReuseSampler._later(by_luck, front, np.zeros(1), generator)[0] > 1e-3
    assert ReuseSampler._later(by_luck, front, np.ones(1), generator)[0] == 0


def test_trials_under_way_are_not_proposed_again() -> None:
    of = table()
    sampler = ReuseSampler(distributions(of), OBJECTIVES, seed=0)
    trials = islice(simulate(of, sampler.at, machines=6), 30)
    passed = [prefix(trial.row.params, 2) for trial in trials if not trial.row.pruned and not trial.vae_only]
    assert len(set(passed)) >= len(passed) - 5, "only those that start before anything is known may meet"


def test_milestones_grow_by_a_quarter() -> None:
    series = [milestone(count) for count in range(1, 60)]
    assert sorted(set(series)) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 33, 41, 51]
    assert all(reached <= count for count, reached in enumerate(series, 1))
