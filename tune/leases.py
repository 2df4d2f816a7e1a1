"""Leases in a folder: at most one live holder, taken over when the holder is dead, on any file system that several hosts share.

A lease is a folder of files named 0, 1, 2, …: its *generations*. The holder is who made the highest one, by
exclusive creation, so of several waiters that find the same holder dead exactly one gets the next generation.
The highest generation is never deleted but by a prune, which has the store alone (tune.pruning), hence a slow waiter can
never win by an old number. The holder's background thread raises a counter in its file. A waiter takes over when that
counter stood still for `patience` seconds of the waiter's *own monotonic clock*: neither the hosts' wall clocks nor
their differences matter, and time in which the waiter itself was stopped does not count. A holder on the same host and
in the same process namespace whose process is gone is taken over at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

HEARTBEAT = 2.0
"""Seconds between two steps of a holder's counter."""
PATIENCE = 20.0
"""Seconds without a step after which a waiter takes over."""
POLL = 0.2
"""Seconds between two looks of a waiter."""

_COUNTER_WIDTH = 20
_RELEASED = "released".ljust(_COUNTER_WIDTH)


def _process_start(pid: int) -> str | None:
    """Start time of a live process in clock ticks since boot; none if it is gone (or a zombie); "" where /proc is missing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else ""
    return None if fields[0] in "ZX" else fields[19]


def _process_namespace() -> str:
    """Names the space in which a process id means the same process: this boot of this host, and its pid namespace."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease. `since` is wall time, for people to read; `start` tells a process from a later one with its id."""

    host: str
    pid: int
    since: str
    start: str
    namespace: str

    @classmethod
    def this_process(cls) -> Holder:
        pid = os.getpid()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), pid, since, _process_start(pid) or "", _process_namespace())

    def is_dead(self) -> bool:
        """True only if this process can know it: same host, same namespace, and no such process any more."""
        return (
            bool(self.namespace and self.start)
            and self.namespace == _process_namespace()
            and _process_start(self.pid) != self.start
        )


@dataclass(frozen=True)
class _Seen:
    """One look at a lease: its highest generation (-1: none), that one's counter text, and its holder once written."""

    generation: int
    counter: str
    holder: Holder | None

    @property
    def free(self) -> bool:
        return self.generation < 0 or self.counter == _RELEASED or (self.holder is not None and self.holder.is_dead())


def _generations(folder: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


def _look(folder: Path) -> _Seen:
    generations = _generations(folder)
    if not generations:
        return _Seen(-1, "", None)
    try:
        counter, _, identity = (folder / str(generations[-1])).read_text().partition("\n")
    except FileNotFoundError:  # a newer holder cleared it away between the two calls
        return _look(folder)
    try:
        holder = Holder(**json.loads(identity))
    except (ValueError, TypeError):  # just created, not yet written
        holder = None
    return _Seen(generations[-1], counter, holder)


def holder(folder: Path) -> str | None:
    """Who holds the lease in `folder`, for people to read; none if it is free, as far as this process can know."""
    try:
        seen = _look(folder)
    except FileNotFoundError:
        return None
    if seen.free:
        return None
    return (
        "a new process" if seen.holder is None else f"process {seen.holder.pid} on {seen.holder.host} since {seen.holder.since}"
    )


class Lease:
    """A held lease: a context manager that releases on exit. `lost` is true once another process took it over."""

    def __init__(self, folder: Path, generation: int, heartbeat: float, on_beat: Callable[[], None] | None) -> None:
        self._folder, self._generation = folder, generation
        self._heartbeat, self._on_beat = heartbeat, on_beat
        self._stop, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {folder.name}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether a later generation exists; looks now."""
        try:
            if _generations(self._folder)[-1] != self._generation:
                self._lost.set()
        except (OSError, IndexError):
            self._lost.set()
        return self._lost.is_set()

    def release(self) -> None:
        """Stops the counter and frees the lease; harmless if it was lost."""
        self._stop.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(OSError):
                self._write(_RELEASED)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _write(self, counter: str) -> None:
        # In place, without creating: after a takeover this file may be gone, and must not come back.
        descriptor = os.open(self._folder / str(self._generation), os.O_WRONLY)
        try:
            os.pwrite(descriptor, counter.encode(), 0)
            os.fsync(descriptor)  # other hosts see it only when it has left this one's cache
        finally:
            os.close(descriptor)

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self._heartbeat) and not self.lost:
            count += 1
            # A beat that cannot be written is missed: if that lasts, a waiter takes over, which is right.
            with contextlib.suppress(OSError):
                self._write(f"{count:0{_COUNTER_WIDTH}d}")
                if self._on_beat is not None:
                    self._on_beat()


def _claim(folder: Path, generation: int, heartbeat: float, on_beat: Callable[[], None] | None) -> Lease | None:
    """The lease, if this process is the one that creates `generation` and no higher one exists."""
    path = folder / str(generation)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{0:0{_COUNTER_WIDTH}d}\n{json.dumps(asdict(Holder.this_process()))}\n")
        file.flush()
        os.fsync(file.fileno())
    generations = _generations(folder)
    if generations[-1:] != [generation]:  # we looked long ago, and others have come and gone since
        path.unlink(missing_ok=True)
        return None
    for older in generations[:-1]:
        (folder / str(older)).unlink(missing_ok=True)
    return Lease(folder, generation, heartbeat, on_beat)


def acquire(
    folder: Path,
    *,
    until: Callable[[], bool] = lambda: False,
    on_beat: Callable[[], None] | None = None,
    heartbeat: float = HEARTBEAT,
    patience: float = PATIENCE,
    poll: float = POLL,
) -> Lease | None:
    """Waits for the lease in `folder` (made if missing); none as soon as `until()` is true while another holds it.

    `on_beat` is called at each beat of the held lease. Raises OSError if the folder cannot be written.
    """
    last: tuple[int, str] | None = None
    still = 0.0
    clock = time.monotonic()
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # a file in its place, or it was free and pruned while mkdir looked at it
            if folder.exists() and not folder.is_dir():
                raise
            continue
        try:
            seen = _look(folder)
        except FileNotFoundError:  # it was free, and pruned since
            continue
        now = time.monotonic()
        # A stopped waiter (or a machine that slept) must not blame the holder for its own absence.
        still = still + min(now - clock, 2 * poll) if (seen.generation, seen.counter) == last else 0.0
        clock, last = now, (seen.generation, seen.counter)
        if seen.free or still >= patience:
            with contextlib.suppress(FileNotFoundError):  # likewise
                lease = _claim(folder, seen.generation + 1, heartbeat, on_beat)
                if lease is not None:
                    return lease
            continue
        if until():
            return None
        time.sleep(poll)
