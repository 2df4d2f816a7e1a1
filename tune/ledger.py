"""The study's ledger: Optuna's ask and tell over its database, which is the durable truth of the search.

A *number* is a proposal's place in the study, 0…; Optuna's own trial numbers count attempts. What a sampler draws
depends on (seed, number), on how many trials the study is to have and on what the database holds, so a study that was killed and
resumed proposes what an undisturbed one would (with one trial at a time: otherwise the order of completion matters too).
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from migvis.errors import InputError
from tune.finished_trials import OBSERVED, VAE_ONLY, VOID, observed
from tune.optuna_database import open_database
from tune.samplers import ends_after_vae, sampler_by_number
from tune.selection import Candidate, clipped
from tune.space import SearchSpace
from tune.study_config import SamplerName
from tune.trial_record import CONSTRAINT, FINISHED, TrialRecord, record_of
from tune.trial_result import TrialResult

_LOST_AT_MOST = 20
"""How often, in one session, a trial may be lost without having failed: a bound for hosts on which no trial can start."""


@dataclass(frozen=True)
class Proposal:
    """A trial to be run. attempt: how often it has failed before. vae_only: it ends after its VAE, which is only looked at."""

    number: int
    params: dict[str, Any]
    attempt: int
    vae_only: bool = False


class Ledger:
    """Proposes trials and records their results; everything it says is read from the database.

    database: its URL; several studies may share it.
    identity: what may never change in a study (JSON values, or several by name each); compared when the study is opened again.
    objectives: names of the maximised metrics, those that this data set has.
    recover: the stored result of a trial that ended without being recorded, or None. check_held: called before each write;
    raises where this process may not write any more.
    Raises InputError if the study was begun with another identity, search space or set of objectives.
    """

    def __init__(
        self,
        database: str,
        name: str,
        *,
        space: SearchSpace,
        objectives: Sequence[str],
        identity: dict[str, Any],
        seed: int,
        trials: int,
        startup_trials: int,
        sampler: SamplerName = "reuse",
        start: dict[str, Any],
        retries: int = 2,
        recover: Callable[[int, dict[str, Any]], TrialResult | None] = lambda number, params: None,
        check_held: Callable[[], None] = lambda: None,
    ) -> None:
        self.space, self.objectives, self.seed, self.trials = space, tuple(objectives), seed, trials
        self._start, self._retries, self._check_held = start, retries, check_held
        self._sampler = sampler_by_number(
            sampler, space.distributions(), self.objectives, seed=seed, startup_trials=startup_trials, rounded=space.rounded,
            trials=trials,
        )  # fmt: skip
        self._live: dict[int, tuple[Trial, int]] = {}
        self._lost: Counter[int] = Counter()
        self.given_up: list[str] = []
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = open_database(database)
        self.study = optuna.create_study(
            storage=storage, study_name=name, directions=["maximize"] * len(self.objectives), load_if_exists=True
        )
        self._check_identity({**identity, "objectives": list(self.objectives), "search_space": space.ranges()})
        # Read once: the database hands them out all together only, and nobody else writes to a study that is locked.
        self._remembered = dict(self.study.user_attrs)
        self._recover(recover)

    def _check_identity(self, identity: dict[str, Any]) -> None:
        stored = self.study.user_attrs.get("identity")
        if stored is None:
            self.study.set_user_attr("identity", identity)
            return
        for name, value in identity.items():
            if stored.get(name) != value:
                raise InputError(
                    f"study {self.study.study_name}: exists, and was begun with another {name.replace('_', ' ')}: "
                    f"{_difference(stored.get(name), value)}; give another --study name"
                )

    def _recover(self, recover: Callable[[int, dict[str, Any]], TrialResult | None]) -> None:
        """Ends what an earlier driver left RUNNING: recorded if its result is there, else failed and proposed again."""
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            number = frozen.user_attrs.get("number")
            if number is None or number in self._finished_numbers():
                # Killed while it was being proposed, so that it never ran and its number is still free; or while it was dropped.
                self.study._storage.set_trial_user_attr(frozen._trial_id, VOID, True)
                self.study.tell(frozen.number, state=TrialState.FAIL)
                continue
            trial = Trial(self.study, frozen._trial_id)
            # Killed between ask and the last suggestion, a queued trial lacks some of its parameters: they are fixed.
            params = self._suggest(trial)
            stored = frozen.user_attrs.get("result")
            result = TrialResult.from_json(stored) if stored else recover(number, params)
            self._live[number] = (trial, frozen.user_attrs["attempt"])
            if result is not None:
                self.finish(number, result)
            else:
                self._end(number, "interrupted", again=True, count=False)
        self._drop_finished()

    def _drop_finished(self) -> None:
        """Ends what waits to be tried again although its number has a result: a lost host's trial may have left one."""
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if frozen.user_attrs["number"] in self._finished_numbers():
                # Optuna tells of running trials only.
                self.study._storage.set_trial_state_values(frozen._trial_id, state=TrialState.RUNNING)
                self.study.tell(frozen.number, state=TrialState.FAIL)

    def _finished_numbers(self) -> set[int]:
        return {frozen.user_attrs["number"] for frozen in self.study.get_trials(deepcopy=False, states=FINISHED)}

    def _waiting_numbers(self) -> set[int]:
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return {frozen.user_attrs["number"] for frozen in waiting}

    def _end(self, number: int, message: str, *, again: bool, count: bool) -> None:
        """Tells FAIL; first queues the same parameters again, so that a kill in between loses nothing."""
        trial, attempt = self._live.pop(number)
        if again and number not in self._waiting_numbers():
            attributes = {"number": number, "attempt": attempt + int(count), "error": message}
            if trial.user_attrs.get(VAE_ONLY):
                attributes[VAE_ONLY] = True
            self.study.enqueue_trial(trial.params, user_attrs=attributes)
        if again:
            trial.set_user_attr(VOID, True)
        trial.set_user_attr("error", message)
        self.study.tell(trial, state=TrialState.FAIL)

    @property
    def in_flight(self) -> int:
        """Trials proposed by this driver and not ended."""
        return len(self._live)

    def finished_count(self) -> int:
        """Trials that count, COMPLETE and PRUNED, each once."""
        return len(self._finished_numbers())

    def done(self) -> bool:
        return self.finished_count() >= self.trials

    def propose(self) -> Proposal | None:
        """The next trial, marked RUNNING; None while those in flight may still cover what is missing."""
        if self.finished_count() + self.in_flight >= self.trials:
            return None
        self._check_held()
        trials = self.study.get_trials(deepcopy=False)
        waiting = [frozen for frozen in trials if frozen.state == TrialState.WAITING]
        known = (frozen.user_attrs.get("number", -1) for frozen in trials)
        number = waiting[0].user_attrs["number"] if waiting else max(known, default=-1) + 1
        if not waiting and number == 0:
            # With its number at once: it may be met WAITING by a later driver.
            self.study.enqueue_trial(self._start, user_attrs={"number": 0, "attempt": 0})
        self.study.sampler = self._sampler(number)
        trial = self.study.ask()
        params = self._suggest(trial)
        attempt = trial.user_attrs.get("attempt", 0)
        trial.set_user_attr("attempt", attempt)
        if not waiting and ends_after_vae(self.study, trial):
            trial.set_user_attr(VAE_ONLY, True)
        # Last, because a trial with a number is one whose parameters are all stored, or fixed since it was queued.
        trial.set_user_attr("number", number)
        self._live[number] = (trial, attempt)
        return Proposal(number, params, attempt, bool(trial.user_attrs.get(VAE_ONLY)))

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        """The parameters of a trial; those that it has, or that were fixed when it was queued, stay as they are."""
        with warnings.catch_warnings():
            # A start value is told to be off the grid of t' where it differs by a rounding error.
            warnings.simplefilter("ignore", UserWarning)
            return self.space.suggest(trial)

    def finish(self, number: int, result: TrialResult) -> str:
        """Records a result: PRUNED with its constraint, COMPLETE, or FAIL if a value is missing or not finite."""
        self._check_held()
        trial, _ = self._live[number]
        problem = self._problem(result)
        if problem is not None:
            return self.fail(number, problem)
        trial.set_user_attr("result", result.to_json())
        costs = ((stage["kind"], stage["seconds"]) for stage in result.stages)
        trial.set_user_attr(OBSERVED, observed(result.metrics, self.objectives, costs))
        if result.constraint is not None and CONSTRAINT not in trial.constraints:
            trial.set_constraint(CONSTRAINT, result.constraint)
        del self._live[number]
        if result.pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            return TrialState.PRUNED.name
        values = clipped(result.metrics, self.objectives)
        assert values is not None
        self.study.tell(trial, list(values))
        return TrialState.COMPLETE.name

    def _problem(self, result: TrialResult) -> str | None:
        if result.constraint is not None and not math.isfinite(result.constraint):
            return f"the neural_r2 constraint is not finite: {result.constraint}"
        if result.pruned:
            return None if result.constraint is not None else "pruned without a constraint value"
        for name in self.objectives:
            value = result.metrics.get(name)
            if value is None or not math.isfinite(value):
                return f"the objective {name} is {'missing' if value is None else f'not finite: {value}'}"
        return None

    def fail(self, number: int, message: str, *, lost: bool = False) -> str:
        """Records a failure; the trial is tried again with the same parameters, a limited number of times.

        lost: it was not the trial that failed, but what it ran on; that is none of its `retries`.
        """
        self._check_held()
        self._lost[number] += int(lost)
        lost = lost and self._lost[number] <= _LOST_AT_MOST
        again = lost or self._live[number][1] < self._retries
        if not again:
            self.given_up.append(f"trial {number}: {message}")
        self._end(number, message, again=again, count=not lost)
        return TrialState.FAIL.name

    def _latest(self) -> dict[int, FrozenTrial]:
        """Of every proposal its finished attempt, or the latest one."""
        latest: dict[int, FrozenTrial] = {}
        for frozen in self.study.get_trials(deepcopy=False):
            number = frozen.user_attrs.get("number")
            if number is not None and (number not in latest or latest[number].state not in FINISHED):
                latest[number] = frozen
        return latest

    def records(self) -> list[TrialRecord]:
        """Every proposal once, by number: its finished attempt, or the latest one."""
        return [record_of(number, frozen) for number, frozen in sorted(self._latest().items(), key=lambda item: item[0])]

    def record(self, number: int) -> TrialRecord:
        """One of `records`."""
        return record_of(number, self._latest()[number])

    def candidates(self) -> list[Candidate]:
        """The finished trials, for tune.selection; without those of a VAE alone, which come only after a complete one."""
        return [
            Candidate(record.number, record.params, record.result().metrics, record.constraint)
            for record in self.records()
            if record.finished and not record.vae_only
        ]

    def remember(self, key: str, value: Any) -> None:
        """Keeps a JSON value with the study (such as an MLflow run's id); may be called from another thread."""
        self._check_held()
        plain = json.loads(json.dumps(value))
        self.study.set_user_attr(key, plain)
        self._remembered[key] = plain

    def remembered(self, key: str, default: Any = None) -> Any:
        return self._remembered.get(key, default)


def _difference(before: Any, now: Any) -> str:
    """What differs; of values by name, the first that does."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return f"{_short(before)}, now {_short(now)}"
    name = next(name for name in {**now, **before} if before.get(name) != now.get(name))
    return f"{name} was {_short(before.get(name))}, is now {_short(now.get(name))}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
