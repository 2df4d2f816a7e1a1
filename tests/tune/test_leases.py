"""Leases: one holder at a time, takeover from the dead, no trust in wall clocks."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time

from tune import leases
from tune.leases import acquire, holder

FAST = {"heartbeat": 0.05, "patience": 0.5, "poll": 0.02}


def hold_for_ever(folder, ready):
    acquire(folder, **FAST)
    ready.set()
    time.sleep(60)


def start_holder(folder):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold_for_ever, args=(folder, ready), daemon=True)
    process.start()
    assert ready.wait(20)
    return process


def test_a_second_taker_waits_until_release(tmp_path):
    first = acquire(tmp_path / "lease", **FAST)
    assert first is not None
    threading.Timer(0.4, first.release).start()
    start = time.monotonic()
    second = acquire(tmp_path / "lease", **FAST)
    assert second is not None
    assert time.monotonic() - start >= 0.35
    assert not second.lost
    second.release()


def test_until_ends_the_wait_without_the_lease(tmp_path):
    with acquire(tmp_path, **FAST) as lease:
        assert acquire(tmp_path, until=lambda: True, **FAST) is None
        assert not lease.lost


def test_a_killed_holder_on_this_host_is_taken_over_at_once(tmp_path):
    process = start_holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)  # not joined: it stays a zombie, which counts as dead
    start = time.monotonic()
    with acquire(tmp_path, heartbeat=0.05, patience=30) as lease:
        assert time.monotonic() - start < 5
        assert not lease.lost
    process.join()


def test_a_silent_holder_elsewhere_is_taken_over_after_patience_and_learns_it(tmp_path, monkeypatch):
    silent = acquire(tmp_path, heartbeat=1000)
    monkeypatch.setattr(leases, "_process_namespace", lambda: "another host")
    start = time.monotonic()
    taken = acquire(tmp_path, **FAST)
    assert 0.4 <= time.monotonic() - start < 5
    assert silent.lost
    assert not taken.lost
    silent.release()  # must not free what it no longer holds
    assert acquire(tmp_path, until=lambda: True, **FAST) is None
    taken.release()


def test_wall_clocks_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "_process_namespace", lambda: "")  # so that only the counter decides
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + 3600 * ((time.monotonic_ns() // 10**7) % 3 - 1))
    with acquire(tmp_path, **FAST) as lease:
        deadline = time.monotonic() + 1.5
        assert acquire(tmp_path, until=lambda: time.monotonic() > deadline, **FAST) is None
        assert not lease.lost


def test_a_waiter_that_was_stopped_does_not_blame_the_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "_process_namespace", lambda: "")
    with acquire(tmp_path, heartbeat=0.3) as lease:
        clock, looks, real = 0.0, 0, time.monotonic

        def jumping():  # every look is an hour after the one before
            nonlocal clock, looks
            clock, looks = clock + 3600, looks + 1
            return clock

        monkeypatch.setattr(leases.time, "monotonic", jumping)
        end = real() + 1
        assert acquire(tmp_path, until=lambda: real() > end, patience=2, poll=0.02) is None
        assert looks > 5
        assert not lease.lost


def test_of_many_waiters_at_a_dead_holder_one_wins_at_a_time(tmp_path, monkeypatch):
    process = start_holder(tmp_path / "lease")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    inside, most, count = 0, 0, 0
    guard = threading.Lock()

    def enter():
        nonlocal inside, most, count
        with acquire(tmp_path / "lease", heartbeat=0.05, patience=30, poll=0.005):
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
    assert len(os.listdir(tmp_path / "lease")) == 1  # older generations are cleared away


def test_a_free_lease_that_is_pruned_again_and_again_keeps_nobody_from_getting_it(tmp_path):
    folder, stop = tmp_path / "leases" / "lease", threading.Event()

    def prune():
        for number in itertools.count():
            if stop.is_set():
                return
            if folder.is_dir() and holder(folder) is None:
                folder.rename(tmp_path / str(number))

    pruning = threading.Thread(target=prune)
    pruning.start()
    try:
        for _ in range(40):
            acquire(folder, heartbeat=1000).release()
    finally:
        stop.set()
        pruning.join()
    assert len(list(tmp_path.iterdir())) > 10


def test_the_holder_is_named_while_there_is_one(tmp_path):
    assert holder(tmp_path / "lease") is None
    process = start_holder(tmp_path / "lease")
    assert f"process {process.pid} on" in holder(tmp_path / "lease")
    process.kill()
    process.join()
    assert holder(tmp_path / "lease") is None
    with acquire(tmp_path / "lease", **FAST):
        assert f"process {os.getpid()} on" in holder(tmp_path / "lease")
    assert holder(tmp_path / "lease") is None
