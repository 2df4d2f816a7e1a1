"""One driver for each study, in a folder or a database: the second one is told who the first is, and a dead one is followed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from migvis.errors import InputError
from tune.database import sqlite_url
from tune.database_leases import DatabaseLease
from tune.folder_leases import FolderLease
from tune.leases import acquire
from tune.study_lock import StudyTakenOver, held_in_database, locked, running


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


def test_a_driver_that_lost_its_study_to_one_on_another_host_may_write_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr("tune.leases.Lease._beat", lambda lease: None)  # it stands still
        first = locked(study)
        check = first.__enter__()
        check()
    monkeypatch.setattr("tune.leases._process_namespace", lambda: "another host")
    with locked(study, patience=0.5) as second:
        second()
        with pytest.raises(StudyTakenOver, match=f"^study s: taken over by process {os.getpid()} on .*; this one has stopped$"):
            check()
        assert list(running(tmp_path)) == ["s"]
        first.__exit__(None, None, None)  # must not free what it no longer holds
        second()
    assert running(tmp_path) == {}


def test_a_silent_driver_on_another_host_is_not_said_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [FolderLease(tmp_path / name / "driver") for name in ("a", "ablations/b")]
    with acquire(places[1], heartbeat=0.05):
        silent = acquire(places[0], heartbeat=1000)
        monkeypatch.setattr("tune.leases._process_namespace", lambda: "another host")
        assert list(running(tmp_path, patience=0.5)) == ["ablations/b"]
        silent.release()


def test_errors_of_the_study_itself_are_not_taken_for_those_of_its_lock(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), locked(tmp_path / "s"):
        raise PermissionError("of a stage")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be written"), locked(tmp_path / "file"):
        pass
