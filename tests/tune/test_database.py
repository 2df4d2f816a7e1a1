"""A study's database: what cannot be used is one line, a restart is waited for, and no password is kept."""

from __future__ import annotations

import os
import re
import socket
import sqlite3

import psycopg
import pytest
import sqlalchemy

from migvis.errors import InputError
from tune import database
from tune.database import DatabaseAway, check_database, engine, patiently
from tune.shared_locks import database_lock


def test_a_connection_to_a_host_that_vanished_is_given_up_within_a_minute(postgres, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    with engine(postgres.address("postgres")).connect() as connection:
        shared = socket.socket(fileno=os.dup(connection.connection.fileno()))
    with shared:
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        assert shared.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert [shared.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [20, 5, 4, 40_000]


def test_the_lock_of_a_store_waits_while_the_server_is_restarted(postgres, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    attempts = []

    def connect(connection, *arguments):
        attempts.append(connection)
        if len(attempts) < 4:
            raise psycopg.OperationalError("connection failed: Connection refused")

    pool = engine(postgres.address("postgres"))
    pool.dispose()
    sqlalchemy.event.listen(pool, "do_connect", connect)
    monkeypatch.setattr(database, "PAUSE", 0.01)
    try:
        with database_lock(postgres.address("postgres"), "store") as take:
            assert take(True, False)
    finally:
        sqlalchemy.event.remove(pool, "do_connect", connect)
    assert len(attempts) >= 4


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (psycopg.OperationalError("connection failed: Connection refused"), True),
        (psycopg.OperationalError("connection failed: FATAL:  the database system is starting up"), True),
        (psycopg.errors.AdminShutdown("terminating connection"), True),
        (psycopg.OperationalError('connection failed: FATAL:  password authentication failed for user "me"'), False),
        (psycopg.OperationalError('connection failed: FATAL:  database "x" does not exist'), False),
        (psycopg.errors.DiskFull("no space left"), False),
        (sqlite3.OperationalError("database is locked"), False),
    ],
)
def test_only_what_a_restart_explains_is_waited_for(monkeypatch, error, passing):
    asked = []

    def ask():
        asked.append(1)
        if len(asked) == 1:
            raise sqlalchemy.exc.OperationalError("SELECT", {}, error)
        return "answer"

    monkeypatch.setattr(database, "PAUSE", 0.0)
    if passing:
        assert patiently(ask) == "answer"
    else:
        with pytest.raises(DatabaseAway):
            patiently(ask)
    assert len(asked) == 1 + passing


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("nonsense", "--database nonsense: not a URL"),
        ("mysql://me:secret@db/x", "--database mysql://db/x: expected sqlite:///FILE or postgresql://HOST/NAME"),
        ("sqlite://", "--database sqlite://: expected a file"),
        ("sqlite:////no/such/folder/x.db", "--database sqlite:////no/such/folder/x.db: cannot be reached: unable to open"),
        ("postgresql://me:secret@127.0.0.1:9/x", "--database postgresql://127.0.0.1:9/x: cannot be reached: "),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_without_credentials(monkeypatch, url, line):
    monkeypatch.setenv("PGPASSWORD", "")
    with pytest.raises(InputError, match=f"^{re.escape(line)}") as refusal:
        check_database(url)
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_password_is_moved_from_the_url_to_the_environment(postgres, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "")
    plain = postgres.address("postgres")
    for given in (postgres.uri("postgres"), f"{plain}?password={postgres.password}"):
        assert check_database(given) == plain
        assert os.environ.pop("PGPASSWORD") == postgres.password
        os.environ["PGPASSWORD"] = ""
    with pytest.raises(InputError, match="password") as refusal:
        check_database(plain.replace("//", "//nobody:wrong@").replace("migvis@", ""))
    assert "\n" not in str(refusal.value)
    assert "wrong" not in str(refusal.value)
