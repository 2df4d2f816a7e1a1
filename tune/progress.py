"""What is running, how far it is and about how long is left, in the terminal.

Whatever works for a study, in whichever process, leaves a small file in the study's folder through a Reporter; the
driver's Display reads them. So a worker of a cluster needs no connection to the terminal.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

_EVERY = 0.5
"""Seconds between two writes of a Reporter, and between two looks of the Display."""
_SILENT_AT_MOST = 60.0
"""Seconds after which a line that says nothing new is written all the same, where there is no terminal."""
_UNTIMED = ("report", "writing to MLflow")
"""Phases of which no usual time is known."""
_last_written: dict[Path, float] = {}


@dataclass(frozen=True)
class Reporter:
    """Reports the progress of one activity, such as "prepare" or "trial-003"; picklable, and cheap to call often."""

    folder: Path
    name: str

    def __call__(self, progress: Any) -> None:
        """Takes a migvis.training.Progress."""
        self.update(progress.name, progress.step, progress.steps, progress.seconds_left)

    def update(self, what: str, step: int | None = None, steps: int | None = None, seconds_left: float | None = None) -> None:
        """Says what is being done and how far it is. Calls in quick succession write once, apart from the last step."""
        path = self.folder / f"{self.name}.json"
        now = time.monotonic()
        if now - _last_written.get(path, -_EVERY) < _EVERY and (step is None or step != steps):
            return
        _last_written[path] = now
        self._write(path, {"what": what, "step": step, "steps": steps, "seconds_left": seconds_left, "pid": os.getpid()})

    def line(self, text: str) -> None:
        """A line that stays in the terminal, such as a stage that was reused."""
        self._write(self.folder / f"{time.time_ns()}-{os.getpid()}.line", {"text": text})

    def done(self) -> None:
        """The activity ended: it is no longer shown."""
        (self.folder / f"{self.name}.json").unlink(missing_ok=True)

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps(content), encoding="utf-8")
        os.replace(aside, path)


def duration(seconds: float) -> str:
    """47 s, 3 min 20 s, 2 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Display:
    """Shows a study in the terminal: lines that stay, and one status line (every few seconds where it is not a terminal).

    Used as a context manager. phase and trials are told by the driver; the rest is read from the progress folder. unit: what
    is counted.
    """

    def __init__(
        self,
        folder: Path,
        expected_seconds: Mapping[str, float] | None = None,
        stream: TextIO | None = None,
        plain_every: float = 10.0,
        unit: str = "trials",
    ) -> None:
        self._unit = unit
        self._folder, self._expected, self._plain_every = folder, dict(expected_seconds or {}), plain_every
        self._stream = stream or sys.stdout
        self._begin = time.monotonic()
        self._phase, self._done, self._total, self._concurrent = "start", 0, 0, 1
        self._trial_seconds: list[float] = []
        self._since = self._begin
        """When the phase began, or a trial in it last ended."""
        self._last_plain, self._last_text = 0.0, ""
        self._status: Any = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Display:
        self._folder.mkdir(parents=True, exist_ok=True)
        for stale in self._folder.iterdir():
            stale.unlink(missing_ok=True)
        if self._stream.isatty():
            from rich.console import Console

            self._status = Console(file=self._stream, highlight=False).status(self._phase)
            self._status.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2)
        self._show_lines()
        if self._status is not None:
            self._status.stop()

    def phase(self, name: str) -> None:
        """What the study as a whole is doing now."""
        with self._lock:
            if name != self._phase:
                self._phase, self._since = name, time.monotonic()

    def trials(self, done: int, total: int, concurrent: int = 1) -> None:
        with self._lock:
            self._done, self._total, self._concurrent = done, total, concurrent

    def trial_took(self, seconds: float) -> None:
        """A trial of this session ended; its seconds make the estimate of what is left."""
        with self._lock:
            self._trial_seconds.append(seconds)
            self._since = time.monotonic()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._status is not None:
            self._status.console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def seconds_left(self, activities: list[dict[str, Any]]) -> float | None:
        """About how long the whole study still takes; None where nothing is known yet."""
        trial = sum(self._trial_seconds) / len(self._trial_seconds) if self._trial_seconds else self._expected.get("trial")
        known = [activity["seconds_left"] for activity in activities if activity.get("seconds_left") is not None]
        current = max(known, default=None)
        if self._phase in _UNTIMED:
            return None
        spent = time.monotonic() - self._since
        if self._phase == "final":
            return max(current or 0.0, self._expected.get("final", 0.0) - spent, 0.0) or None  # overdue: nobody knows
        if trial is None:
            return current
        waiting = (self._total - self._done) * trial / self._concurrent
        fit = 0.0
        if self._phase in ("search", "runs"):
            waiting -= min(spent, trial / self._concurrent, waiting)
        else:  # before and between the shared stages only their usual cost is known
            usual = self._expected.get("prepare", 0.0) - (time.monotonic() - self._begin)
            fit = current if current is not None else max(usual, 0.0)
        return fit + waiting + self._expected.get("final", 0.0)

    def status_text(self) -> str:
        """The status line: time used, phase, trials, what is running, time left."""
        activities = self._activities()
        with self._lock:
            parts = [f"[{duration(time.monotonic() - self._begin)}] {self._phase}"]
            if self._total:
                parts.append(f"{self._done}/{self._total} {self._unit}")
            for activity in activities:
                step = f" {activity['step']}/{activity['steps']}" if activity.get("steps") else ""
                parts.append(f"{activity['what']}{step}")
            left = self.seconds_left(activities)
        if left is not None:
            parts.append(f"about {duration(left)} left")
        return " · ".join(parts)

    def _activities(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):
                continue  # it ended meanwhile
        return found

    def _show_lines(self) -> None:
        for path in sorted(self._folder.glob("*.line")):
            try:
                text = json.loads(path.read_text(encoding="utf-8"))["text"]
            except (OSError, ValueError):
                continue
            path.unlink(missing_ok=True)
            self.say(f"  {text}")

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY):
            self._show_lines()
            text = self.status_text()
            if self._status is not None:
                self._status.update(text)
                continue
            silent, told = time.monotonic() - self._last_plain, text.partition("] ")[2]
            if silent >= (self._plain_every if told != self._last_text else _SILENT_AT_MOST):
                self._last_plain, self._last_text = time.monotonic(), told
                self.say(text)
