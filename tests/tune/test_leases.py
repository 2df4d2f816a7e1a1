"""Leases, in folders and in databases alike: one holder at a time, takeover from the dead, no trust in wall clocks."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import signal
import socket
import threading
import time

import pytest

from tune import database, leases
from tune.database import DatabaseAway, engine, sqlite_url
from tune.database_leases import LEASES, DatabaseLease, leases_of
from tune.folder_leases import FolderLease
from tune.leases import acquire, acquire_from_the_dead, holder, living_holder

FAST = {"heartbeat": 0.05, "patience": 0.5, "poll": 0.02}


@pytest.fixture(params=["folder", "sqlite", "postgresql"])
def place(request, tmp_path, monkeypatch):
    """A lease that nobody has taken yet, in each kind of place."""
    if request.param == "folder":
        return FolderLease(tmp_path / "lease")
    if request.param == "sqlite":
        return DatabaseLease(sqlite_url(tmp_path / "leases.db"), "store", "lease")
    service = request.getfixturevalue("postgres")
    monkeypatch.setenv("PGPASSWORD", service.password)
    return DatabaseLease(service.address("postgres"), str(tmp_path), "lease")


def hold_for_ever(place, ready):
    acquire(place, **FAST)
    ready.set()
    time.sleep(60)


def start_holder(place):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold_for_ever, args=(place, ready), daemon=True)
    process.start()
    assert ready.wait(20)
    return process


def test_a_second_taker_waits_until_release(place):
    first = acquire(place, **FAST)
    assert first is not None
    threading.Timer(0.4, first.release).start()
    start = time.monotonic()
    second = acquire(place, **FAST)
    assert second is not None
    assert time.monotonic() - start >= 0.35
    assert not second.lost
    second.release()


def test_until_ends_the_wait_without_the_lease(place):
    with acquire(place, **FAST) as lease:
        assert acquire(place, until=lambda: True, **FAST) is None
        assert not lease.lost


def test_a_killed_holder_on_this_host_is_taken_over_at_once(place):
    process = start_holder(place)
    os.kill(process.pid, signal.SIGKILL)  # not joined: it stays a zombie, which counts as dead
    start = time.monotonic()
    with acquire(place, heartbeat=0.05, patience=30) as lease:
        assert time.monotonic() - start < 5
        assert not lease.lost
    process.join()


def test_a_silent_holder_elsewhere_is_taken_over_after_patience_and_learns_it(place, monkeypatch):
    silent = acquire(place, heartbeat=1000)
    monkeypatch.setattr(leases, "_process_namespace", lambda: "another host")
    start = time.monotonic()
    taken = acquire(place, **FAST)
    assert 0.4 <= time.monotonic() - start < 5
    assert silent.lost
    assert not taken.lost
    silent.release()  # must not free what it no longer holds
    assert acquire(place, until=lambda: True, **FAST) is None
    taken.release()


def test_wall_clocks_do_not_matter(place, monkeypatch):
    monkeypatch.setattr(leases, "_process_namespace", lambda: "")  # so that only the counter decides
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + 3600 * ((time.monotonic_ns() // 10**7) % 3 - 1))
    with acquire(place, **FAST) as lease:
        deadline = time.monotonic() + 1.5
        assert acquire(place, until=lambda: time.monotonic() > deadline, **FAST) is None
        assert not lease.lost


def test_a_waiter_that_was_stopped_does_not_blame_the_holder(place, monkeypatch):
    monkeypatch.setattr(leases, "_process_namespace", lambda: "")
    with acquire(place, heartbeat=0.3) as lease:
        clock, looks, real = 0.0, 0, time.monotonic

        def jumping():  # every look is an hour after the one before
            nonlocal clock, looks
            clock, looks = clock + 3600, looks + 1
            return clock

        monkeypatch.setattr(leases.time, "monotonic", jumping)
        end = real() + 1
        assert acquire(place, until=lambda: real() > end, patience=2, poll=0.02) is None
        assert looks > 5
        assert not lease.lost


def test_of_many_waiters_at_a_dead_holder_one_wins_at_a_time(place, monkeypatch):
    process = start_holder(place)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    inside, most, count = 0, 0, 0
    guard = threading.Lock()

    def enter():
        nonlocal inside, most, count
        with acquire(place, heartbeat=0.05, patience=30, poll=0.005):
            with guard:
                inside, count = inside + 1, count + 1
                most = max(most, inside)
            time.sleep(0.02)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, count) == (1, 8)
    if isinstance(place, FolderLease):
        assert len(os.listdir(place.folder)) == 1  # older generations are cleared away


def test_a_free_lease_that_is_pruned_again_and_again_keeps_nobody_from_getting_it(tmp_path):
    folder, stop = tmp_path / "leases" / "lease", threading.Event()
    place = FolderLease(folder)

    def prune():
        for number in itertools.count():
            if stop.is_set():
                return
            if folder.is_dir() and holder(place) is None:
                folder.rename(tmp_path / str(number))

    pruning = threading.Thread(target=prune)
    pruning.start()
    try:
        for _ in range(40):
            acquire(place, heartbeat=1000).release()
    finally:
        stop.set()
        pruning.join()
    assert len(list(tmp_path.iterdir())) > 10


def test_the_holder_is_named_while_there_is_one(place):
    assert holder(place) is None
    process = start_holder(place)
    assert f"process {process.pid} on" in holder(place)
    process.kill()
    process.join()
    assert holder(place) is None
    with acquire(place, **FAST):
        assert f"process {os.getpid()} on" in holder(place)
    assert holder(place) is None


def test_a_free_row_that_is_pruned_again_and_again_keeps_nobody_from_getting_it(tmp_path):
    place, stop, removed = DatabaseLease(sqlite_url(tmp_path / "leases.db"), "store", "lease"), threading.Event(), []
    acquire(place, heartbeat=1000).release()

    def prune():
        while not stop.is_set():
            if holder(place) is None:
                place.remove()
                removed.append(1)

    pruning = threading.Thread(target=prune)
    pruning.start()
    acquired, deadline = 0, time.monotonic() + 60
    try:
        while (acquired < 20 or len(removed) <= 5) and time.monotonic() < deadline:
            acquire(place, heartbeat=1000).release()
            acquired += 1
    finally:
        stop.set()
        pruning.join()
    assert acquired >= 20
    assert len(removed) > 5


def test_leases_of_one_database_are_kept_apart_by_scope_and_listed(tmp_path):
    url = sqlite_url(tmp_path / "leases.db")
    assert leases_of(url, "a") == []
    held = [acquire(DatabaseLease(url, scope, name), **FAST) for scope, name in (("a", "x"), ("b", "x"), ("a", "y"))]
    assert [place.name for place in leases_of(url, "a")] == ["x", "y"]
    for lease in held:
        lease.release()


@pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)
def test_processes_that_make_the_table_at_once_all_get_their_lease(place):
    LEASES.drop(engine(place._url), checkfirst=True)
    context = multiprocessing.get_context("spawn")
    ready = [context.Event() for _ in range(3)]
    places = [DatabaseLease(place._url, place._scope, f"lease-{number}") for number in range(3)]
    processes = [context.Process(target=hold_for_ever, args=pair, daemon=True) for pair in zip(places, ready, strict=True)]
    try:
        for process in processes:
            process.start()
        assert all(event.wait(120) for event in ready)
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_a_holder_keeps_its_lease_while_the_database_is_away(tmp_path, monkeypatch):
    place = DatabaseLease(sqlite_url(tmp_path / "leases.db"), "store", "lease")
    beats = []
    with acquire(place, heartbeat=0.02, on_beat=lambda: beats.append(1)) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(database, "WAIT", 0)
            patch.setattr("tune.database_leases.engine", lambda url: engine(sqlite_url(tmp_path / "no" / "such.db")))
            with pytest.raises(DatabaseAway, match="unable to open"):
                place.look()
            time.sleep(0.2)
            before = len(beats)
            assert not lease.lost
            time.sleep(0.2)
            assert len(beats) == before
        end = time.monotonic() + 20
        while len(beats) == before and time.monotonic() < end:
            time.sleep(0.02)
        assert len(beats) > before


NOBODY_LISTENS = "postgresql://127.0.0.1:9/x"


@contextlib.contextmanager
def away(monkeypatch, module, attempts):
    """A server that is away for so many attempts to reach it; gives the list of them all."""
    asked = []

    def unreachable(url):
        asked.append(url)
        return engine(NOBODY_LISTENS if len(asked) <= attempts else url)

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.engine", unreachable)
        patch.setattr(database, "PAUSE", 0.01)
        yield asked


def test_whoever_wants_a_lease_waits_while_the_server_is_restarted(tmp_path, monkeypatch):
    place = DatabaseLease(sqlite_url(tmp_path / "leases.db"), "store", "lease")
    holder_here = leases.Holder.this_process()
    for ask in (place.make, lambda: place.claim(0, "0", holder_here), place.look):
        with away(monkeypatch, "tune.database_leases", 5) as asked:
            told = ask()
        assert len(asked) > 5
    assert (told.generation, told.holder) == (0, holder_here)
    monkeypatch.setattr(database, "PATIENCE", 0.0)
    with away(monkeypatch, "tune.database_leases", 99), pytest.raises(DatabaseAway, match="refused"):
        place.look()


def test_a_holder_is_not_held_up_by_a_server_that_is_away(tmp_path, monkeypatch):
    place = DatabaseLease(sqlite_url(tmp_path / "leases.db"), "store", "lease")
    with away(monkeypatch, "tune.database_leases", 2) as asked:
        assert place.is_latest(0)
    assert len(asked) <= 2


@pytest.mark.parametrize("generation", [0, 1])
def test_a_claim_whose_answer_was_lost_is_known_to_be_won(tmp_path, monkeypatch, generation):
    place = DatabaseLease(sqlite_url(tmp_path / "leases.db"), "store", "lease")
    place.make()
    me, claim, answers_lost = leases.Holder.this_process(), DatabaseLease._claim, []
    if generation:
        assert place.claim(0, "0", leases.Holder("elsewhere", 1, "", "", ""))

    def answer_is_lost(*arguments):
        won = claim(*arguments)
        if not answers_lost:
            answers_lost.append(won)
            engine(NOBODY_LISTENS).connect()
        return won

    monkeypatch.setattr(DatabaseLease, "_claim", answer_is_lost)
    monkeypatch.setattr(database, "PAUSE", 0.01)
    assert place.claim(generation, "0", me)
    assert answers_lost == [True]
    assert not place.claim(generation, "0", me)  # at the first attempt it is another one's


def test_a_living_holder_is_named_at_once_even_a_stopped_one(place):
    process = start_holder(place)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        time.sleep(0.2)
        begin = time.monotonic()
        for who in (acquire_from_the_dead(place, patience=0.0), living_holder(place, patience=0.0)):
            assert str(who).startswith(f"process {process.pid} on {socket.gethostname()} since ")
        assert time.monotonic() - begin < 2
    finally:
        process.kill()
        process.join()
    assert living_holder(place) is None
    with acquire_from_the_dead(place, patience=60) as lease:
        assert not lease.lost


def test_a_holder_elsewhere_lives_as_long_as_its_counter_moves(place, monkeypatch):
    process = start_holder(place)
    monkeypatch.setattr(leases, "_process_namespace", lambda: "another host")
    for _ in range(3):
        assert f"process {process.pid}" in acquire_from_the_dead(place, patience=20, poll=0.02)
        assert f"process {process.pid}" in living_holder(place, patience=20, poll=0.02)
    process.kill()
    process.join()
    begin = time.monotonic()
    assert living_holder(place, patience=0.5, poll=0.02) is None
    with acquire_from_the_dead(place, patience=0.5, poll=0.02) as lease:
        assert 0.9 <= time.monotonic() - begin < 10
        assert not lease.lost


def test_a_lease_that_a_full_disk_refuses_is_nobodys(tmp_path, monkeypatch):
    place = FolderLease(tmp_path / "lease")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tune.folder_leases.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            acquire(place, **FAST)
    assert holder(place) is None
    assert list(place.folder.iterdir()) == []


def test_a_folder_that_cannot_be_read_for_a_moment_is_not_taken_for_another_holder(tmp_path, monkeypatch) -> None:
    lease = acquire(FolderLease(tmp_path / "driver"))
    with monkeypatch.context() as patch:

        def full(path: object) -> list[str]:
            raise OSError(errno.EMFILE, "Too many open files")

        patch.setattr("tune.folder_leases.os.listdir", full)
        assert not lease.lost
    assert not lease.lost
    lease.release()
    assert FolderLease(tmp_path / "driver").look().free
