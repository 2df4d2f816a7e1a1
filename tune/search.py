"""Ray Tune's view of the ledger: a Searcher that proposes trials and records how they ended.

Tune's own OptunaSearch does not fit: a gated trial has only some of the objectives, and it would leave such a
trial RUNNING in the database. Nothing of this object is kept by Tune: at a resume the study's database is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from tune.ledger import Ledger
from tune.trial_record import TrialRecord
from tune.trial_result import TrialResult

PAYLOAD = "payload"
"""Key of Tune's report under which a trial's result travels, as JSON text."""
NODE, HOST, ERROR, BAD_INPUT = "node", "host", "error", "bad_input"
"""Keys of the reports before it: where a trial runs, and how it failed."""


class LedgerSearcher(Searcher):
    """Ask and tell of a Ledger, for ray.tune.

    concurrent: trials in flight at most. failures_allowed: trials given up (after their retries) before the
    search ends. is_lost: whether the cluster has lost a node, by its id; a trial that died with its node has not failed.
    on_start, on_end: called with each trial as it is proposed and as it is recorded.
    failure: what the first failure to propose or to record a trial raised. Tune takes it for the trial's, tells of that trial
    again and raises an exception of its own at last; so whatever is asked or told afterwards raises it again.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        concurrent: int,
        failures_allowed: int,
        is_lost: Callable[[str], bool],
        on_start: Callable[[TrialRecord], None] = lambda record: None,
        on_end: Callable[[TrialRecord], None] = lambda record: None,
    ) -> None:
        super().__init__()
        self._ledger, self._concurrent, self._failures_allowed = ledger, concurrent, failures_allowed
        self._is_lost, self._on_start, self._on_end = is_lost, on_start, on_end
        self._numbers: dict[str, int] = {}
        self._reports: dict[str, dict[str, Any]] = {}
        self.bad_input: str | None = None
        self.failure: Exception | None = None

    @property
    def exhausted(self) -> bool:
        """Whether too many trials failed for good, or one found the study's input to be bad."""
        return self.bad_input is not None or len(self._ledger.given_up) > self._failures_allowed

    def suggest(self, trial_id: str) -> Any:
        """{"number", "params", "vae_only"} of the next trial; None: wait for those in flight; FINISHED: no more are needed."""
        with self._remembering_failure():
            if self._ledger.in_flight == 0 and (self._ledger.done() or self.exhausted):
                return Searcher.FINISHED
            if self._ledger.in_flight >= self._concurrent or self.exhausted:
                return None
            proposal = self._ledger.propose()
            if proposal is None:
                return None
            self._numbers[trial_id] = proposal.number
            self._on_start(self._ledger.record(proposal.number))
            return {"number": proposal.number, "params": proposal.params, "vae_only": proposal.vae_only}

    @contextmanager
    def _remembering_failure(self) -> Iterator[None]:
        if self.failure is not None:
            raise self.failure
        try:
            yield
        except Exception as error:
            self.failure = error
            raise

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keeps what a trial says before it ends."""
        self._reports.setdefault(trial_id, {}).update(
            {key: result[key] for key in (NODE, HOST, ERROR, BAD_INPUT) if key in result}
        )

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self._remembering_failure():
            number, told = self._numbers.pop(trial_id), self._reports.pop(trial_id, {})
            payload = (result or {}).get(PAYLOAD)
            if error or payload is None:
                self._failed(number, told)
            else:
                self._ledger.finish(number, TrialResult.from_json(payload))
            self._on_end(self._ledger.record(number))

    def _failed(self, number: int, told: dict[str, Any]) -> None:
        if ERROR in told:
            if told[BAD_INPUT]:
                self.bad_input = told[ERROR]
            self._ledger.fail(number, told[ERROR], lost=told[BAD_INPUT])
        elif NODE not in told:
            self._ledger.fail(number, "its process did not start", lost=True)
        elif self._is_lost(told[NODE]):
            self._ledger.fail(number, f"its host {told[HOST]} was lost", lost=True)
        else:
            self._ledger.fail(number, f"its process on {told[HOST]} died")

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its experiment with the searcher in it; nothing of ours belongs there."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Tune saves searchers beside its own state; ours lives in the database, so the file only says so."""
        Path(checkpoint_path).write_text("The state of this search is the study's database.\n", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a study is resumed from its database: start it again with --resume")
