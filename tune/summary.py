"""`summary.json`: what a study did, in one file that is written after every trial."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tune.context import StudyContext
from tune.ledger import Ledger
from tune.notes import notes
from tune.selection import Selected
from tune.study_folder import write_json
from tune.tracking_writer import run_key
from tune.trial_result import stage_totals

ROOT = Path(__file__).resolve().parents[1]


class PhaseClock:
    """Wall seconds by phase, added to those of earlier sessions of the same study."""

    def __init__(self, earlier: Mapping[str, float] | None = None) -> None:
        self._seconds = dict(earlier or {})
        self._running: tuple[str, float] | None = None

    def add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        self._running = (name, begin)
        try:
            yield
        finally:
            self._running = None
            self.add(name, time.monotonic() - begin)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, the one under way included."""
        seconds = dict(self._seconds)
        if self._running is not None:
            name, begin = self._running
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - begin
        return {name: round(value, 2) for name, value in seconds.items()}


@dataclass(frozen=True)
class Outcome:
    """The selected trial and, once the final stage is done, its metrics on test images and the exported bundle."""

    selected: Selected
    metrics: Mapping[str, float] = field(default_factory=dict)
    export: Path | None = None


def earlier_sessions(folder: Path) -> tuple[dict[str, float], Outcome | None]:
    """Wall seconds by phase and the outcome of a study's earlier sessions, from its summary."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        seconds, chosen, export = dict(summary["wall_seconds"]), summary["selected"], summary["export"]
        if chosen is None:
            return seconds, None
        metrics = {name: math.nan if value is None else value for name, value in summary["final_metrics"].items()}
        return seconds, Outcome(Selected(**chosen), metrics, None if export is None else Path(export))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, None


def git_revision(root: Path = ROOT) -> str:
    """The revision of the source, with "-dirty" for uncommitted changes; "unknown" outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return f"{revision}-dirty" if git("status", "--porcelain", "--untracked-files=no") else revision
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def machine() -> dict[str, Any]:
    """What the study ran on, as far as its times depend on it."""
    return {"system": platform.platform(), "python": platform.python_version(), "cpus": os.cpu_count()}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def write_summary(
    context: StudyContext,
    ledger: Ledger,
    clock: PhaseClock,
    revision: str,
    *,
    state: str,
    outcome: Outcome | None = None,
) -> dict[str, Any]:
    """Writes `<storage>/<study>/summary.json` atomically and returns its content. Values that are not finite are null."""
    records = ledger.records()
    final_metrics = {} if outcome is None else outcome.metrics
    stages = list(ledger.remembered("stages_prepare", []))
    for record in records:
        stages += record.result.stages if record.result is not None else []
    stages += ledger.remembered("stages_final", [])
    summary = {
        "study": context.study,
        "state": state,
        "preset": context.config.preset,
        "seed": context.seed,
        "data": {"path": str(context.data_path), "digest": context.data_digest},
        "git_revision": revision,
        "machine": machine(),
        "objectives": list(ledger.objectives),
        "trials": [
            {
                "number": record.number,
                "state": record.state,
                "params": record.params,
                "metrics": _finite(record.result.metrics) if record.result is not None else {},
                "constraint": record.constraint,
                "seconds": record.seconds,
                "error": record.error,
                "mlflow_run_id": ledger.remembered(run_key(record.number)),
            }
            for record in records
        ],
        "stages": stage_totals(stages),
        "selected": None if outcome is None else asdict(outcome.selected),
        "final_metrics": _finite(final_metrics),
        "notes": notes([record.result.metrics for record in records if record.result is not None], final_metrics),
        "export": None if outcome is None or outcome.export is None else str(outcome.export),
        "wall_seconds": clock.seconds(),
        "configuration": context.config.model_dump(mode="json"),
    }
    write_json(context.folder / "summary.json", summary)
    return summary
