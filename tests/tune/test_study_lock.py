"""One driver for each study of a database: the second one is told who the first is, and a dead one is followed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from migvis.errors import InputError
from tune.database import sqlite_url
from tune.database_leases import DatabaseLease
from tune.leases import acquire
from tune.study_lock import held_in_database


def test_a_second_driver_is_refused_by_name_at_once_and_another_study_is_not(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "studies.db")
    with held_in_database(url, "s"):
        begin = time.monotonic()
        with (
            pytest.raises(InputError, match=f"^--study s: process {os.getpid()} on .* is running it$"),
            held_in_database(url, "s"),
        ):
            pass
        assert time.monotonic() - begin < 15
        with held_in_database(url, "t"):
            pass
    with held_in_database(url, "s"):
        pass


def test_a_driver_that_died_on_another_host_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = sqlite_url(tmp_path / "studies.db")
    silent = acquire(DatabaseLease(url, "studies", "s"), heartbeat=1000)
    assert silent is not None
    monkeypatch.setattr("tune.leases._process_namespace", lambda: "another host")
    with held_in_database(url, "s", patience=0.5):
        assert silent.lost
