"""MLflow from a background thread, so that no trial waits for it and nothing is lost while a server is away."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tune.redact import redact
from tune.tracking_writer import Writer, sent_key
from tune.trial_record import TrialRecord

Job = Callable[[Writer], object]


def _is_passing(error: Exception) -> bool:
    """Whether an error may be gone after a while: the server is away or busy, a database (also the study's) is, or is locked."""
    response = getattr(error, "response", None)  # of an upload or a download
    status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else getattr(response, "status_code", None)
    if status is not None:
        return int(status) >= 500 or int(status) == 429
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return False
    return isinstance(error, OSError) or type(error).__name__ in ("OperationalError", "StorageInternalError", "TimeoutError")


class Tracker:
    """Runs a Writer's calls in order on one background thread, again and again while the server is away.

    capacity: calls that may wait while a study runs. Beyond it a trial is not queued: the study's database still has it, and
    `catch_up` queues it at the end, whatever waits, as it does the study's end. again: what sends the rest where not
    everything arrives. say: is told at once what will not be written, hours before `close` tells it.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        capacity: int = 512,
        first_wait: float = 0.5,
        longest_wait: float = 30.0,
        again: str = "--resume with this study",
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._writer, self._again, self._say = writer, again, say
        self._jobs: queue.SimpleQueue[tuple[str, Job] | None] = queue.SimpleQueue()
        self._capacity = capacity
        self._waits = (first_wait, longest_wait)
        self._stop = threading.Event()
        self._queued: set[int] = set()
        self._done = 0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self.problems: list[str] = []

    @property
    def uri(self) -> str:
        """Where it writes, without credentials."""
        return redact(self._writer.uri)

    def start(self) -> None:
        """Starts the thread, which imports MLflow, creates its database and the study's run first."""
        self.submit("the study's run", Writer.study_started)
        self._thread.start()

    def submit(self, name: str, job: Job, *, whatever_waits: bool = False) -> bool:
        """Queues a call; False if too many wait already."""
        if not whatever_waits and self._jobs.qsize() >= self._capacity:
            return False
        self._jobs.put((name, job))
        return True

    def trial_started(self, record: TrialRecord) -> None:
        self.submit(f"the start of trial {record.number}", lambda writer: writer.trial_started(record))

    def trial_ended(self, record: TrialRecord, *, whatever_waits: bool = False) -> None:
        """Queues a trial that ended; one that will be tried again keeps its run open."""
        if record.state == "WAITING":
            return
        name = f"trial {record.number}"
        queued = self.submit(name, lambda writer: writer.trial_ended(record), whatever_waits=whatever_waits)
        if queued and record.finished:
            self._queued.add(record.number)

    def catch_up(
        self, records: Sequence[TrialRecord], recall: Callable[[str], object], *, whatever_waits: bool = False
    ) -> None:
        """Queues the finished trials that were never written whole, such as those of a driver that was killed."""
        for record in records:
            if record.finished and record.number not in self._queued and not recall(sent_key(record.number)):
                self.trial_ended(record, whatever_waits=whatever_waits)

    def study_ended(
        self,
        status: str,
        metrics: Mapping[str, float] | None = None,
        images: Mapping[str, Path] | None = None,
        artifacts: Mapping[str, Path] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> None:
        values = (metrics or {}, images or {}, artifacts or {}, tags or {}, step)
        self.submit("the end of the study", lambda writer: writer.study_ended(status, *values), whatever_waits=True)

    def register_selected(self, name: str, artifact: str, tags: Mapping[str, str]) -> None:
        """Registers the folder `artifact` of the study's run as a new version of the model `name`."""
        self.submit("the registered model", lambda writer: writer.register(name, artifact, tags), whatever_waits=True)

    def close(self, timeout: float = 60.0, *, while_it_moves: bool = False) -> list[str]:
        """Waits until everything is written, at most `timeout` seconds; lines that say what was not (none: all was).

        while_it_moves: at most `timeout` seconds since the last call that was written, so that only a server that is away or
        hangs is given up. Before `start` there is nothing to wait for: the study's database has what a later session will send.
        """
        if not self._thread.is_alive():
            return list(self.problems)
        done, deadline = self._done, time.monotonic() + timeout
        self._jobs.put(None)
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.1)
            if while_it_moves and self._done != done:
                done, deadline = self._done, time.monotonic() + timeout
        self._stop.set()
        lines = list(self.problems)
        if self._thread.is_alive():
            # The call that it is at waits as well, and the mark of the end is none.
            lines.append(
                f"{self.uri}: not everything has arrived after {timeout:.0f} s ({self._jobs.qsize()} calls wait);"
                f" {self._again} sends the rest"
            )
        return lines

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            self._do(*item)
            self._done += 1
            if self._stop.is_set():
                return

    def _do(self, name: str, job: Job) -> None:
        wait, longest = self._waits
        while not self._stop.is_set():
            try:
                job(self._writer)
                return
            except Exception as error:
                # Anything that will not pass by itself is told at the end; the study never stops for its tracking.
                if not _is_passing(error):
                    self._tell(f"{self.uri}: {name} was not written: {redact(_first_line(error))}")
                    return
                self._stop.wait(wait)
                wait = min(2 * wait, longest)

    def _tell(self, problem: str) -> None:
        """Keeps a problem for `close`; the first one is said now."""
        if not self.problems:
            self._say(f"WARNING: {problem}")
        self.problems.append(problem)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
