"""Leases: at most one live holder, taken over when the holder is dead, wherever hosts that share them keep them.

A lease has numbered *generations*, 0, 1, 2, …; its holder is who made the highest one. The place where they are kept (a
folder, or a table of a database) gives a number to one taker only, so of several waiters that find the same holder dead
exactly one gets the next generation. The highest generation is never deleted but by a prune, which has the store alone
(tune.pruning), hence a slow waiter can never win by an old number. The holder's background thread raises a counter there. A
waiter takes over when that counter stood still for `patience` seconds of the waiter's *own monotonic clock*: neither the
hosts' wall clocks nor their differences matter, and time in which the waiter itself was stopped does not count. A holder on
the same host and in the same process namespace whose process is gone is taken over at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
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
RELEASED = "released".ljust(_COUNTER_WIDTH)
"""Counter of a lease that its holder gave back; as wide as all others, so that it can be written over them."""


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

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Holder | None:
        """What to_json wrote; none for anything else."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def is_dead(self) -> bool:
        """True only if this process can know it: same host, same namespace, and no such process any more."""
        return (
            bool(self.namespace and self.start)
            and self.namespace == _process_namespace()
            and _process_start(self.pid) != self.start
        )

    def is_alive(self) -> bool:
        """True only if this process can know it: same host, same namespace, and the very process is there."""
        return (
            bool(self.namespace and self.start)
            and self.namespace == _process_namespace()
            and _process_start(self.pid) == self.start
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@dataclass(frozen=True)
class Seen:
    """One look at a lease: its highest generation (-1: none), that one's counter, and its holder once written."""

    generation: int
    counter: str
    holder: Holder | None

    @property
    def free(self) -> bool:
        return self.generation < 0 or self.counter == RELEASED or (self.holder is not None and self.holder.is_dead())

    def __str__(self) -> str:
        return "a new process" if self.holder is None else str(self.holder)


class LeasePlace(ABC):
    """Where the generations of one lease are kept. name: for people to read."""

    name: str

    @abstractmethod
    def look(self) -> Seen:
        """The highest generation, now. Raises FileNotFoundError while there is no such place."""

    @abstractmethod
    def make(self) -> None:
        """Makes the place if it is missing. Raises OSError where that is refused."""

    @abstractmethod
    def claim(self, generation: int, counter: str, holder: Holder) -> bool:
        """Makes `generation`, if it is the next one and no other process does; whether this process did."""

    @abstractmethod
    def is_latest(self, generation: int) -> bool:
        """Whether no later generation exists."""

    @abstractmethod
    def write(self, generation: int, counter: str) -> None:
        """Sets the counter of a generation that was claimed; changes nothing once it was taken over. Raises OSError."""


def holder(place: LeasePlace) -> str | None:
    """Who holds a lease, for people to read; none if it is free, as far as this process can know."""
    try:
        seen = place.look()
    except FileNotFoundError:
        return None
    return None if seen.free else str(seen)


class Lease:
    """A held lease: a context manager that releases on exit. `lost` is true once another process took it over."""

    def __init__(self, place: LeasePlace, generation: int, heartbeat: float, on_beat: Callable[[], None] | None) -> None:
        self._place, self._generation = place, generation
        self._heartbeat, self._on_beat = heartbeat, on_beat
        self._stop, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {place.name}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether a later generation exists; looks now."""
        if not self._place.is_latest(self._generation):
            self._lost.set()
        return self._lost.is_set()

    def release(self) -> None:
        """Stops the counter and frees the lease; harmless if it was lost."""
        self._stop.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(OSError):
                self._place.write(self._generation, RELEASED)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self._heartbeat) and not self.lost:
            count += 1
            # A beat that cannot be written is missed: if that lasts, a waiter takes over, which is right.
            with contextlib.suppress(OSError):
                self._place.write(self._generation, _counter(count))
                if self._on_beat is not None:
                    self._on_beat()


def _counter(count: int) -> str:
    return f"{count:0{_COUNTER_WIDTH}d}"


def acquire(
    place: LeasePlace,
    *,
    until: Callable[[], bool] = lambda: False,
    on_beat: Callable[[], None] | None = None,
    heartbeat: float = HEARTBEAT,
    patience: float = PATIENCE,
    poll: float = POLL,
) -> Lease | None:
    """Waits for the lease at `place` (made if missing); none as soon as `until()` is true while another holds it.

    `on_beat` is called at each beat of the held lease. Raises OSError if the place cannot be written.
    """
    watch = _Watch(place, patience, poll)
    while True:
        place.make()
        try:
            seen = watch.look()
        except FileNotFoundError:  # it was free, and pruned since
            continue
        if watch.takeable:
            lease = _claim(place, seen.generation + 1, heartbeat, on_beat)
            if lease is not None:
                return lease
            continue
        if until():
            return None
        time.sleep(poll)


def acquire_from_the_dead(
    place: LeasePlace, *, heartbeat: float = HEARTBEAT, patience: float = PATIENCE, poll: float = POLL
) -> Lease | str:
    """The lease at `place` (made if missing), or who holds it, as soon as that one is known to live.

    That is known at once of a process of this host (even a stopped one), else by its counter's next step; who can be
    neither known to live nor to be dead is watched for `patience` seconds. Raises OSError if the place cannot be written.
    """
    while True:
        place.make()
        watch = _Watch(place, patience, poll)
        try:
            seen = watch.until_known()
        except FileNotFoundError:
            continue
        if watch.lives:
            return str(seen)
        lease = _claim(place, seen.generation + 1, heartbeat, None)
        if lease is not None:
            return lease


def living_holder(place: LeasePlace, *, patience: float = PATIENCE, poll: float = POLL) -> str | None:
    """Who holds a lease and lives, for people to read; judged as acquire_from_the_dead does, without taking it."""
    watch = _Watch(place, patience, poll)
    try:
        seen = watch.until_known()
    except FileNotFoundError:
        return None
    return str(seen) if watch.lives else None


def _claim(place: LeasePlace, generation: int, heartbeat: float, on_beat: Callable[[], None] | None) -> Lease | None:
    with contextlib.suppress(FileNotFoundError):  # it was free, and pruned since
        if place.claim(generation, _counter(0), Holder.this_process()):
            return Lease(place, generation, heartbeat, on_beat)
    return None


class _Watch:
    """Looks at a lease again and again, until it is known whether its holder lives."""

    def __init__(self, place: LeasePlace, patience: float, poll: float) -> None:
        self._place, self._patience, self._poll = place, patience, poll
        self._seen: Seen | None = None
        self._still, self._clock, self._stepped = 0.0, time.monotonic(), False

    def look(self) -> Seen:
        """Looks once. Raises FileNotFoundError while there is no such place."""
        before, seen, now = self._seen, self._place.look(), time.monotonic()
        same = before is not None and (before.generation, before.counter) == (seen.generation, seen.counter)
        # A stopped waiter (or a machine that slept) must not blame the holder for its own absence.
        self._still = self._still + min(now - self._clock, 2 * self._poll) if same else 0.0
        self._stepped = self._stepped or (before is not None and not same)
        self._clock, self._seen = now, seen
        return seen

    @property
    def takeable(self) -> bool:
        """Whether the lease is free, or its holder has stood still for too long."""
        return self._seen is not None and (self._seen.free or self._still >= self._patience)

    @property
    def lives(self) -> bool:
        """Whether the holder is known to live: its process is there, or its counter has moved."""
        seen = self._seen
        if seen is None or seen.free:
            return False
        return self._stepped or (seen.holder is not None and seen.holder.is_alive())

    def until_known(self) -> Seen:
        """Looks until the holder is known to live, or the lease is takeable. Raises FileNotFoundError as `look` does."""
        while True:
            seen = self.look()
            if self.lives or self.takeable:
                return seen
            time.sleep(self._poll)
