"""A trial as the study's database tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tune.trial_result import TrialResult

CONSTRAINT = "neural_r2"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of a trial that has a result."""


@dataclass(frozen=True)
class TrialRecord:
    """The latest attempt of a proposal. state: "COMPLETE", "PRUNED", "FAIL", "RUNNING" or "WAITING".

    result_json: the result of a finished trial, as the database has it: most of what reads records never needs it parsed.
    error: how this attempt, or the one before it, failed.
    """

    number: int
    state: str
    params: dict[str, Any]
    result_json: str | None
    constraint: float | None
    attempt: int
    error: str | None
    seconds: float | None

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return self.result_json is not None

    @property
    def refused(self) -> bool:
        """Whether the gate ended it."""
        return self.state == TrialState.PRUNED.name and self.constraint is not None and self.constraint > 0

    @property
    def vae_only(self) -> bool:
        """Whether it ended after its VAE because no more was asked for."""
        return self.state == TrialState.PRUNED.name and not self.refused

    @property
    def ended(self) -> str:
        """How a finished trial ended, in words."""
        if self.state == TrialState.COMPLETE.name:
            return "complete"
        return "by the gate" if self.refused else "VAE only"

    def result(self) -> TrialResult:
        """The result of a finished trial, parsed at every call, so that none of those of a long study stays in memory."""
        assert self.result_json is not None
        return TrialResult.from_json(self.result_json)


def record_of(number: int, frozen: FrozenTrial) -> TrialRecord:
    """The record of an attempt at proposal `number`."""
    params = frozen.params or frozen.system_attrs.get("fixed_params", {})
    return TrialRecord(
        number=number,
        state=frozen.state.name,
        params=dict(params),
        result_json=frozen.user_attrs.get("result") if frozen.state in FINISHED else None,
        constraint=frozen.constraints.get(CONSTRAINT),
        attempt=frozen.user_attrs.get("attempt", 0),
        error=frozen.user_attrs.get("error"),
        seconds=frozen.duration.total_seconds() if frozen.duration else None,
    )
