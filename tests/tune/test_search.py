"""The ledger as Ray Tune sees it."""

from __future__ import annotations

import pytest
from ray.tune.search import Searcher

from migvis.errors import InputError
from tests.tune.ledgers import open_ledger, result_of
from tune.ledger import Ledger
from tune.search import BAD_INPUT, ERROR, HOST, NODE, PAYLOAD, LedgerSearcher

RUNS = {NODE: "here", HOST: "mig1"}


def searcher_of(ledger: Ledger, **keywords) -> LedgerSearcher:
    defaults = {"concurrent": 1, "failures_allowed": 0, "is_lost": lambda node: False}
    return LedgerSearcher(ledger, **{**defaults, **keywords})


def test_searcher_waits_finishes_and_counts(tmp_path) -> None:
    ended = []
    searcher = searcher_of(open_ledger(tmp_path, trials=3), concurrent=2, on_end=ended.append)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("a", {PAYLOAD: result_of(first["params"]).to_json()})
    third = searcher.suggest("c")
    assert searcher.suggest("d") is None
    searcher.on_trial_result("b", RUNS | {ERROR: "boom", BAD_INPUT: False})
    searcher.on_trial_complete("b", None, error=True)
    again = searcher.suggest("e")
    assert again == second
    searcher.on_trial_complete("c", {PAYLOAD: result_of(third["params"]).to_json()})
    searcher.on_trial_complete("e", {PAYLOAD: result_of(again["params"]).to_json()})
    assert searcher.suggest("f") == Searcher.FINISHED
    assert [record.number for record in ended] == [0, 1, 2, 1]
    assert ended[1].error == "boom"


def test_searcher_gives_up(tmp_path) -> None:
    searcher = searcher_of(open_ledger(tmp_path, retries=0))
    searcher.suggest("a")
    searcher.on_trial_result("a", RUNS)
    searcher.on_trial_complete("a", None, error=True)
    assert searcher.exhausted
    assert searcher.suggest("b") == Searcher.FINISHED


def test_bad_input_inside_a_trial_ends_the_search_and_is_none_of_its_failures(tmp_path) -> None:
    searcher = searcher_of(open_ledger(tmp_path, retries=0), failures_allowed=99)
    searcher.suggest("a")
    searcher.on_trial_result("a", RUNS | {ERROR: "weights.pt: not found", BAD_INPUT: True})
    searcher.on_trial_complete("a", None, error=True)
    assert searcher.bad_input == "weights.pt: not found"
    assert searcher.suggest("b") == Searcher.FINISHED
    proposal = open_ledger(tmp_path).propose()
    assert (proposal.number, proposal.attempt) == (0, 0)


def test_what_kept_a_trial_from_being_recorded_is_raised_again_whatever_is_told_next(tmp_path) -> None:
    failure = InputError("--stages s3://b: does not answer")

    def away(record) -> None:
        raise failure

    searcher = searcher_of(open_ledger(tmp_path), on_end=away)
    first = searcher.suggest("a")
    with pytest.raises(InputError) as raised:
        searcher.on_trial_complete("a", {PAYLOAD: result_of(first["params"]).to_json()})
    assert raised.value is searcher.failure is failure
    with pytest.raises(InputError, match="does not answer"):
        searcher.on_trial_complete("a", None, error=True)
    with pytest.raises(InputError, match="does not answer"):
        searcher.suggest("b")
    assert open_ledger(tmp_path).finished_count() == 1


@pytest.mark.parametrize(
    ("reports", "error", "counts"),
    [
        ([{NODE: "gone", HOST: "mig1"}], "its host mig1 was lost", False),
        ([{NODE: "here", HOST: "mig1"}], "its process on mig1 died", True),
        ([], "its process did not start", False),
    ],
)
def test_a_trial_that_died_with_its_host_has_not_failed(tmp_path, reports, error, counts) -> None:
    ended = []
    ledger = open_ledger(tmp_path, retries=0)
    searcher = searcher_of(ledger, is_lost=lambda node: node == "gone", on_end=ended.append)
    first = searcher.suggest("a")
    for report in reports:
        searcher.on_trial_result("a", report)
    searcher.on_trial_complete("a", None, error=True)
    assert ended[0].error == error
    assert searcher.exhausted == counts
    if not counts:
        assert searcher.suggest("b") == first
        assert ledger.record(0).attempt == 0


def test_a_trial_that_can_be_started_nowhere_is_given_up_at_last(tmp_path) -> None:
    searcher = searcher_of(open_ledger(tmp_path, retries=1))
    for attempt in range(22):
        assert searcher.suggest(str(attempt))["number"] == 0
        assert not searcher.exhausted
        searcher.on_trial_complete(str(attempt), None, error=True)
    assert searcher.exhausted
