"""The study's database: SQLite for one machine, PostgreSQL for hosts that share nothing else.

Its URL is SQLAlchemy's. A password is taken from the URL once, for this process and those that it starts (PGPASSWORD), and
stands nowhere else; whoever runs on other hosts has it in their environment, too.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from migvis.errors import InputError
from tune.redact import redact

_PASSWORDS = ("password", "passwd", "sslpassword")
"""Keys of a URL's query that are secrets."""
WAIT = 60
"""Seconds that a writer waits for another one of a SQLite database."""

PATIENCE = 60.0
"""Seconds for which a server may be away, as one that is restarted is, before anything fails of it."""
PAUSE = 1.0
"""Seconds between two attempts to reach it."""

_Value = TypeVar("_Value")
_GIVEN_UP = {"keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 40_000}
"""After which silence (in s; the last one in ms) a connection is: a host that vanished would be waited for by the hour."""
_PASSING = ("08", "57P01", "57P02", "57P03")
"""SQLSTATEs, or beginnings of them, of a connection that failed and of a server that is shut down or starts."""
_REFUSALS = ("authentication failed", "no password supplied", "does not exist", "pg_hba.conf")
"""Words of a server that answers: waiting does not help. libpq tells no SQLSTATE of an attempt to connect."""


class DatabaseAway(OSError):
    """The database does not answer, or refuses; the message is one line without credentials."""


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite database."""
    return f"sqlite:///{path}"


def engine_options(url: str) -> dict[str, Any]:
    """What any engine of this URL is made with."""
    if url.startswith("sqlite:"):
        return {"connect_args": {"timeout": WAIT}}
    return {"connect_args": {"connect_timeout": 10, **_GIVEN_UP}, "pool_pre_ping": True}


def engine(url: str) -> Any:
    """This process' SQLAlchemy engine of a database."""
    return _engine(url, os.getpid())


@cache
def _engine(url: str, pid: int) -> Any:  # a connection must not be used on by a forked process
    import sqlalchemy

    return sqlalchemy.create_engine(url, **engine_options(url))


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Turns what a database says into DatabaseAway."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        raise DatabaseAway(first_line(error)) from None


def patiently(ask: Callable[[], _Value]) -> _Value:
    """What `ask` returns; asked again while the server is away, for PATIENCE seconds. Raises DatabaseAway."""
    from sqlalchemy.exc import OperationalError

    end = time.monotonic() + PATIENCE
    while True:
        with database_errors():
            try:
                return ask()
            except OperationalError as error:
                if not _is_passing(error.orig) or time.monotonic() > end:
                    raise
        time.sleep(PAUSE)


def _is_passing(error: BaseException | None) -> bool:
    """Whether a connection failed in a way that a server's restart explains; of SQLite never."""
    state: str | None = getattr(error, "sqlstate", "no PostgreSQL")
    if state is not None:
        return state.startswith(_PASSING)
    return not any(words in str(error) for words in _REFUSALS)


def first_line(error: Exception) -> str:
    """What a database says, as one line."""
    text = str(getattr(error, "orig", None) or error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def has_password(url: str) -> bool:
    """Whether a database's URL has one, as SQLAlchemy reads it; a user's name alone is none. Raises InputError for no URL."""
    given = _parsed(url)
    return bool(given.password or any(key.lower() in _PASSWORDS and value for key, value in given.query.items()))


def without_password(url: str) -> str:
    """The URL as it may be stored; its password, if it has one, goes into the environment.

    Raises InputError for none at all, and for the passphrase of a key, which has no place in the environment.
    """
    given = _parsed(url)
    if "sslpassword" in given.query:
        raise InputError("--database: sslpassword would be stored; give the database a key without a passphrase")
    password = given.password or given.query.get("password")
    parts = given._replace(password=None).difference_update_query(["password"])
    kind = parts.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise InputError(f"--database {redact(str(parts))}: expected sqlite:///FILE or postgresql://HOST/NAME")
    if kind == "sqlite":
        if not parts.database or parts.database == ":memory:":
            raise InputError(f"--database {parts}: expected a file")
        # By its plain name, which the engine's options are chosen by.
        parts = parts.set(drivername="sqlite", database=str(Path(parts.database).absolute()))
    if password is not None:
        os.environ["PGPASSWORD"] = str(password)
    return str(parts)


def _parsed(url: str) -> Any:
    """SQLAlchemy's URL. Raises InputError."""
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError

    try:
        return sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):  # the latter where a port is no number
        raise InputError(f"--database {redact(url)}: not a URL; expected sqlite:///FILE or postgresql://HOST/NAME") from None


def check_database(url: str) -> str:
    """`without_password` of a URL. Raises InputError where that database does not answer."""
    plain = without_password(url)
    try:
        with database_errors(), engine(plain).connect():
            return plain
    except (DatabaseAway, ImportError) as error:
        raise InputError(f"--database {redact(plain)}: cannot be reached: {error}") from None
