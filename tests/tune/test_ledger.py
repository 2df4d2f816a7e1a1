"""Ask and tell over the study's database: nothing is lost, and what is resumed proposes the same."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.trial import TrialState

from migvis.errors import InputError
from tests.tune.ledgers import CONFIG, CONFIGURATION, open_ledger, result_of, run
from tune.ledger import Ledger
from tune.space import SearchSpace, two_digits
from tune.study_config import load_study_config
from tune.trial_result import TrialResult


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list:
    return run(open_ledger(tmp_path_factory.mktemp("undisturbed")))


def test_trial_0_is_the_presets_and_values_are_stored_rounded(undisturbed, tmp_path) -> None:
    assert undisturbed[0].params == SearchSpace.of(CONFIG, 900).start(CONFIG.configuration)
    whole = [tuple(proposal.params.values()) for proposal in undisturbed if not proposal.vae_only]
    assert len(set(whole)) == len(whole) >= 6
    ledger = open_ledger(tmp_path)
    run(ledger)
    for frozen, proposal in zip(ledger.study.trials, undisturbed, strict=True):
        assert frozen.params == proposal.params
        assert frozen.params["pc_weight"] == two_digits(frozen.params["pc_weight"])


def test_gated_trial_is_pruned_with_its_constraint(tmp_path) -> None:
    ledger = open_ledger(tmp_path, trials=2)
    number = ledger.propose().number
    gated = TrialResult({"neural_r2": 0.5}, constraint=0.2, pruned=True)
    assert ledger.finish(number, gated) == "PRUNED"
    assert ledger.study.trials[0].state == TrialState.PRUNED
    assert ledger.study.trials[0].constraints == {"neural_r2": 0.2}
    assert ledger.finished_count() == 1
    assert ledger.candidates()[0].constraint == 0.2


@pytest.mark.parametrize("interrupt_after", [0, 5])
def test_killed_and_resumed_study_proposes_the_same(undisturbed, tmp_path, interrupt_after) -> None:
    first = open_ledger(tmp_path)
    done = run(first, interrupt_after)
    lost = first.propose()  # and here the driver is killed
    second = open_ledger(tmp_path)
    rest = run(second)
    assert rest[0] == lost
    assert done + rest == undisturbed
    assert second.propose() is None
    assert [record.state in ("COMPLETE", "PRUNED") for record in second.records()] == [True] * 8
    assert not second.study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))


def test_another_seed_proposes_something_else(undisturbed, tmp_path) -> None:
    other = run(open_ledger(tmp_path, seed=4), 4)
    assert [proposal.params for proposal in other[1:]] != [proposal.params for proposal in undisturbed[1:4]]


def test_killed_while_proposing_frees_the_number(undisturbed, tmp_path) -> None:
    first = open_ledger(tmp_path)
    run(first, 4)
    first.study.ask().suggest_int("group_rank", 1, 8)
    assert run(open_ledger(tmp_path)) == undisturbed[4:]


def test_killed_between_queueing_trial_0_and_asking_for_it(undisturbed, tmp_path, monkeypatch) -> None:
    first = open_ledger(tmp_path)
    monkeypatch.setattr(first.study, "ask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.propose()
    assert run(open_ledger(tmp_path), 2) == undisturbed[:2]


@pytest.mark.parametrize("attribute", ["attempt", "vae_only", "number"])
def test_killed_with_its_parameters_but_without_its_number_is_proposed_as_if_for_the_first_time(
    undisturbed, tmp_path, monkeypatch, attribute
) -> None:
    first = open_ledger(tmp_path)
    look = next(proposal.number for proposal in undisturbed if proposal.vae_only)
    run(first, look)
    set_user_attr = optuna.Trial.set_user_attr

    def some(trial: optuna.Trial, name: str, value) -> None:
        if name == attribute:
            interrupt()
        set_user_attr(trial, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "set_user_attr", some)
        with pytest.raises(KeyboardInterrupt):
            first.propose()
    assert run(open_ledger(tmp_path)) == undisturbed[look:]


def test_what_was_looked_at_may_be_tried_although_its_first_attempt_was_interrupted(undisturbed, tmp_path) -> None:
    """Each look is interrupted, resumed and once more lost with its host; what follows is what followed without."""
    ledger, got = open_ledger(tmp_path), []
    while (proposal := ledger.propose()) is not None:
        if proposal.vae_only:
            ledger = open_ledger(tmp_path)
            ledger.fail(ledger.propose().number, "its host was lost", lost=True)
            assert ledger.propose() == proposal
        got.append(proposal)
        ledger.finish(proposal.number, result_of(proposal.params, proposal.vae_only))
    assert got == undisturbed
    tried = [proposal.params for proposal in got if not proposal.vae_only]
    assert any(proposal.params in tried for proposal in got if proposal.vae_only), "as it was proposed"


@pytest.mark.parametrize("suggested", [0, 2])
def test_killed_while_proposing_a_trial_again_keeps_its_parameters(undisturbed, tmp_path, monkeypatch, suggested) -> None:
    first = open_ledger(tmp_path)
    first.fail(first.propose().number, "a passing trouble")
    asked: list[str] = []

    def some(trial: optuna.Trial, name: str, *arguments, **options) -> int:
        if len(asked) == suggested:
            interrupt()
        asked.append(name)
        return suggest_int(trial, name, *arguments, **options)

    suggest_int = optuna.Trial.suggest_int
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "suggest_int", some)
        patch.setattr(optuna.Trial, "suggest_categorical", interrupt)
        with pytest.raises(KeyboardInterrupt):
            first.propose()
    second = open_ledger(tmp_path)
    again = second.propose()
    assert (again.number, again.params, again.attempt) == (0, undisturbed[0].params, 1)
    second.finish(0, result_of(again.params))
    assert run(second, 2) == undisturbed[1:3]


def interrupt(*arguments, **options) -> None:
    """The driver is killed here."""
    raise KeyboardInterrupt


def test_result_that_was_written_but_not_recorded_is_not_run_again(tmp_path) -> None:
    first = open_ledger(tmp_path, trials=2)
    params = first.propose().params
    second = open_ledger(tmp_path, trials=2, recover=lambda number, p: result_of(p) if (number, p) == (0, params) else None)
    assert second.finished_count() == 1
    assert second.propose().number == 1


@pytest.mark.parametrize("dropping_is_killed_too", [False, True])
def test_a_result_of_a_trial_that_waits_to_be_tried_again_counts_once(tmp_path, monkeypatch, dropping_is_killed_too) -> None:
    def recover(number: int, params) -> TrialResult | None:
        return result_of(params) if number == 0 else None  # its host wrote it, and died before it was told

    first = open_ledger(tmp_path, trials=3)
    number = first.propose().number
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", interrupt)
        with pytest.raises(KeyboardInterrupt):
            first.fail(number, "its host was lost", lost=True)
    if dropping_is_killed_too:
        with monkeypatch.context() as patch:
            drop = Ledger._drop_finished

            def killed_while_dropping(ledger: Ledger) -> None:
                patch.setattr(optuna.Study, "tell", interrupt)
                drop(ledger)

            patch.setattr(Ledger, "_drop_finished", killed_while_dropping)
            with pytest.raises(KeyboardInterrupt):
                open_ledger(tmp_path, trials=3, recover=recover)
    second = open_ledger(tmp_path, trials=3, recover=recover)
    assert second.finished_count() == 1
    assert [proposal.number for proposal in run(second)] == [1, 2]
    assert [record.finished for record in second.records()] == [True] * 3
    assert not second.study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))


def test_a_number_that_was_recorded_twice_counts_once(tmp_path) -> None:
    ledger = open_ledger(tmp_path, trials=3)
    run(ledger, 1)
    ledger.study.add_trial(ledger.study.trials[0])  # as an earlier version may have left it
    assert open_ledger(tmp_path, trials=3).finished_count() == 1


def test_non_finite_or_missing_objective_fails_and_is_retried(tmp_path) -> None:
    ledger = open_ledger(tmp_path, trials=1)
    bad = TrialResult({"group_mig": 0.1, "selectivity": math.nan, "realism": 0.1}, constraint=-1.0)
    attempts = []
    while (proposal := ledger.propose()) is not None and proposal.number == 0:
        attempts.append(proposal)
        assert ledger.finish(proposal.number, bad) == "FAIL"
    assert [attempt.attempt for attempt in attempts] == [0, 1, 2]
    assert len({tuple(attempt.params.items()) for attempt in attempts}) == 1
    assert proposal.number == 1
    record = ledger.records()[0]
    assert record.state == "FAIL"
    assert "selectivity" in record.error
    assert ledger.given_up == ["trial 0: the objective selectivity is not finite: nan"]
    assert ledger.finish(1, TrialResult({"group_mig": 0.1, "selectivity": 0.1}, constraint=-1.0)) == "FAIL"
    assert "realism is missing" in ledger.records()[1].error


def test_failure_does_not_move_later_proposals(undisturbed, tmp_path) -> None:
    ledger = open_ledger(tmp_path)
    run(ledger, 3)
    ledger.fail(ledger.propose().number, "a passing trouble")
    assert [proposal.params for proposal in run(ledger)] == [proposal.params for proposal in undisturbed[3:]]


def test_a_new_vae_is_looked_at_first_and_stays_so_when_its_trial_is_run_again(tmp_path) -> None:
    ledger = open_ledger(tmp_path, trials=30)
    vaes: list[tuple] = []
    for number in range(12):
        proposal = ledger.propose()
        vae = tuple(proposal.params[name] for name in ("pc_weight", "group_count", "group_rank"))
        assert proposal.vae_only == (number > 0 and vae not in vaes)
        vaes.append(vae)
        if proposal.vae_only:
            ledger.fail(number, "diverged")
            again = ledger.propose()
            assert (again.number, again.params, again.vae_only) == (number, proposal.params, True)
            ledger = open_ledger(tmp_path, trials=30)  # killed, and resumed
            proposal = ledger.propose()
            assert (proposal.number, proposal.vae_only) == (number, True)
        result = result_of(proposal.params, proposal.vae_only)
        state = ledger.finish(number, result)
        assert state == ("PRUNED" if result.pruned else "COMPLETE")
        expected = {"COMPLETE": "complete", "PRUNED": "by the gate" if result.constraint > 0 else "VAE only"}[state]
        assert ledger.record(number).ended == expected
    states = [ledger.record(number).ended for number in range(12)]
    assert states.count("VAE only") >= 1
    assert states.count("complete") >= 4


def test_result_survives_the_database(tmp_path) -> None:
    result = TrialResult(
        {"group_mig": 0.1, "selectivity": -0.4, "realism": 0.3, "extra": math.inf},
        constraint=-0.5,
        per_seed={"group_mig": [0.1, 0.2]},
        curves={"vae/loss": [(0, 1.0), (50, 0.5)]},
        images={"edits": tmp_path / "edits.png"},
        stages=[{"kind": "vae", "key": "k", "seconds": 2.0, "reused": False}],
        seconds={"vae": 2.0},
    )
    ledger = open_ledger(tmp_path, trials=1)
    ledger.finish(ledger.propose().number, result)
    again = open_ledger(tmp_path, trials=1)
    assert again.records()[0].result() == result
    assert again.study.trials[0].values == [0.1, 0.0, 0.3]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            {"space": SearchSpace.of(load_study_config(None, ["search.group_rank=[1, 4]"]), 900)},
            "space: search.group_rank",
        ),
        (
            {"identity": {"configuration": {"vae.epochs": 9, "vae.readout": "linear"}}},
            "vae.epochs was 5, is now 9",
        ),
        ({"identity": {"configuration": CONFIGURATION, "data": "other"}}, "data: null, now other"),
    ],
)
def test_another_study_under_the_same_name_is_refused(tmp_path, changed, named) -> None:
    open_ledger(tmp_path)
    with pytest.raises(InputError, match=named):
        open_ledger(tmp_path, **changed)


@pytest.mark.parametrize("sampler", ["tpe", "reuse"])
def test_total_can_be_raised(tmp_path, sampler) -> None:
    """It then goes on as if it had been so from the beginning, but for what our sampler proposed in view of an end."""
    for name in ("whole", "raised", "killed"):
        (tmp_path / name).mkdir()
    whole = run(open_ledger(tmp_path / "whole", trials=8, sampler=sampler))
    raised = run(open_ledger(tmp_path / "raised", trials=4, sampler=sampler))
    raised += run(open_ledger(tmp_path / "raised", trials=8, sampler=sampler))
    assert [proposal.number for proposal in raised] == list(range(8))
    if sampler == "tpe":
        assert raised == whole
    killed = run(open_ledger(tmp_path / "killed", trials=4, sampler=sampler))
    killed += run(open_ledger(tmp_path / "killed", trials=8, sampler=sampler), 2)
    open_ledger(tmp_path / "killed", trials=8, sampler=sampler).propose()
    killed += run(open_ledger(tmp_path / "killed", trials=8, sampler=sampler))
    assert killed == raised


def test_one_objective(tmp_path) -> None:
    ledger = open_ledger(tmp_path, trials=5, objectives=("realism",))
    assert len(run(ledger)) == 5
    assert len(ledger.study.directions) == 1


@pytest.mark.slow
def test_sampler_learns(tmp_path) -> None:
    """After its start-up trials the sampler finds feasible pc_weights more often than a random draw (70 %) would.

    One study of 20 such trials says little: its share has a standard deviation of 0.1, so five are pooled.
    """
    for seed in range(5):
        (tmp_path / str(seed)).mkdir()
    studies = [run(open_ledger(tmp_path / str(seed), trials=30, seed=seed)) for seed in range(5)]
    feasible = [result_of(proposal.params).constraint <= 0 for proposals in studies for proposal in proposals[10:]]
    assert len(feasible) == 100
    assert sum(feasible) / len(feasible) > 0.8
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
