"""A trial, in a line of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tune.finished_trials import ALIGNMENT
from tune.progress import duration
from tune.trial_record import TrialRecord


def params_text(params: Mapping[str, Any]) -> str:
    """Hyperparameters with their values, in their order."""
    return ", ".join(f"{name} {value:g}" for name, value in params.items())


def trial_line(record: TrialRecord, objectives: Sequence[str]) -> str:
    """One line about a trial that ended: its values, its parameters, its time, and what it reused."""
    took = "" if record.seconds is None else f" ({duration(record.seconds)})"
    if not record.finished:
        again = "; it is tried again" if record.state == "WAITING" else ""
        return f"trial {record.number} failed: {record.error}{again}{took}"
    result = record.result()
    names = ["neural_r2"] if record.refused else ["neural_r2", *objectives]
    if record.vae_only:
        names.append(ALIGNMENT)
    values = metrics_text(result.metrics, names)
    reused = sorted({stage["kind"] for stage in result.stages if stage["reused"]})
    gate = "ended by the gate, " if record.refused else "VAE only, " if record.vae_only else ""
    tail = f"; reused {', '.join(reused)}" if reused else ""
    return f"trial {record.number}: {gate}{values} | {params_text(record.params)}{took}{tail}"


def metrics_text(metrics: Mapping[str, float], names: Sequence[str]) -> str:
    """Those of the named metrics that there are, with their standard errors."""
    return ", ".join(f"{name} {_with_error(metrics, name)}" for name in names if name in metrics)


def _with_error(metrics: Mapping[str, float], name: str) -> str:
    error = metrics.get(f"{name}_se")
    return f"{metrics[name]:.3f}" + ("" if error is None else f" ± {error:.3f}")
