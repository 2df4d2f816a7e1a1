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
from tune.notes import SCORES, damage_notes, luck_notes, notes
from tune.selection import Selected
from tune.study_folder import write_text
from tune.submitted import submitted
from tune.tracking_writer import run_key
from tune.trial_record import TrialRecord
from tune.trial_result import TrialResult, stage_totals

ROOT = Path(__file__).resolve().parents[1]
_SOURCE = ("migvis", "tune", "pyproject.toml")
"""What decides what a study does; a cluster's file, say, has its user's own addresses in it."""


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
    """The revision of the source, with "-dirty" where the packages have uncommitted changes; "unknown" outside a repository.

    In a job that was sent to a cluster it is the sender's, whose source that is.
    """
    sent = submitted(root)
    if sent is not None:
        return sent.revision

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return f"{revision}-dirty" if git("status", "--porcelain", "--untracked-files=no", "--", *_SOURCE) else revision
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def machine() -> dict[str, Any]:
    """What the study ran on, as far as its times depend on it."""
    return {"system": platform.platform(), "python": platform.python_version(), "cpus": os.cpu_count()}


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


@dataclass(frozen=True)
class _Finished:
    """What a summary needs of a finished trial. entry: its JSON text, written when its MLflow run was `run_id`."""

    entry: str
    run_id: str | None
    stages: list[dict[str, Any]]
    saturation: float | None
    scores: Mapping[str, float]


class Summary:
    """Writes `<storage>/<study>/summary.json`, whole each time.

    What it says of a finished trial is kept as text, since that never changes: so a summary of many trials takes hardly
    longer than one of few, and can be written after every trial.
    """

    def __init__(self, context: StudyContext, ledger: Ledger, clock: PhaseClock, revision: str) -> None:
        self._context, self._ledger, self._clock, self._revision = context, ledger, clock, revision
        self._finished: dict[int, _Finished] = {}

    def write(self, state: str, outcome: Outcome | None = None) -> list[str]:
        """Writes the file atomically and returns the notes in it. Values that are not finite are null."""
        context, ledger = self._context, self._ledger
        records = ledger.records()
        finished = [self._of_finished(record) for record in records if record.finished]
        entries = [self._finished[record.number].entry if record.finished else self._entry(record) for record in records]
        stages = list(ledger.remembered("stages_prepare", []))
        for trial in finished:
            stages += trial.stages
        stages += ledger.remembered("stages_final", [])
        final_metrics = {} if outcome is None else outcome.metrics
        said = notes([trial.saturation for trial in finished if trial.saturation is not None], final_metrics)
        said += damage_notes(stages)
        if outcome is not None:
            scores = {number: trial.scores for number, trial in self._finished.items()}
            said += luck_notes(scores, outcome.selected.trial)
        content: dict[str, Any] = {
            "study": context.study,
            "state": state,
            "preset": context.config.preset,
            "seed": context.seed,
            "data": {"path": str(context.data_path), "digest": context.data_digest},
            "git_revision": self._revision,
            "machine": machine(),
            "objectives": list(ledger.objectives),
            "trials": _Entries(entries),
            "stages": _Entries([json.dumps(total, allow_nan=False) for total in stage_totals(stages)]),
            "selected": None if outcome is None else asdict(outcome.selected),
            "final_metrics": _finite(final_metrics),
            "notes": said,
            "export": None if outcome is None or outcome.export is None else str(outcome.export),
            "wall_seconds": self._clock.seconds(),
            "configuration": context.config.model_dump(mode="json"),
        }
        write_text(context.folder / "summary.json", _object(content))
        return said

    def _of_finished(self, record: TrialRecord) -> _Finished:
        run_id = self._ledger.remembered(run_key(record.number))
        known = self._finished.get(record.number)
        if known is None or known.run_id != run_id:
            result = record.result()
            kept = {name: result.metrics[name] for score in SCORES for name in (score, f"{score}_se") if name in result.metrics}
            known = _Finished(self._entry(record, result), run_id, result.stages, result.metrics.get("pc_saturation"), kept)
            self._finished[record.number] = known
        return known

    def _entry(self, record: TrialRecord, result: TrialResult | None = None) -> str:
        content = {
            "number": record.number,
            "state": record.state,
            "ended": record.ended if record.finished else None,
            "params": record.params,
            "metrics": {} if result is None else _finite(result.metrics),
            "constraint": record.constraint,
            "seconds": record.seconds,
            "host": None if result is None else result.host,
            "error": record.error,
            "mlflow_run_id": self._ledger.remembered(run_key(record.number)),
        }
        return _indented(content, 2)


class _Entries(list[str]):
    """A JSON array whose entries are texts already."""


def _indented(value: Any, level: int) -> str:
    """JSON text as json.dumps would put it `level` levels deep; a text holds no line breaks of its own."""
    return json.dumps(value, indent=2, allow_nan=False).replace("\n", "\n" + "  " * level)


def _object(content: Mapping[str, Any]) -> str:
    """A JSON object, indented, of values and of arrays whose entries are texts already."""
    fields = []
    for name, value in content.items():
        if isinstance(value, _Entries):
            text = "[" + ",".join(f"\n    {entry}" for entry in value) + "\n  ]"
        else:
            text = _indented(value, 1)
        fields.append(f'\n  "{name}": {text}')
    return "{" + ",".join(fields) + "\n}\n"
