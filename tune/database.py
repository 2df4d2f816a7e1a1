"""The study's database: SQLite for one machine, PostgreSQL for hosts that share nothing else.

Its URL is SQLAlchemy's. A password is taken from the URL once, for this process and those that it starts (PGPASSWORD), and
stands nowhere else; whoever runs on other hosts has it in their environment, too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from migvis.errors import InputError
from tune.redact import redact

_PASSWORDS = ("password", "passwd", "sslpassword")
"""Keys of a URL's query that are secrets."""
WAIT = 60
"""Seconds that a writer waits for another one of a SQLite database."""


class DatabaseAway(OSError):
    """The database does not answer, or refuses; the message is one line without credentials."""


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite database."""
    return f"sqlite:///{path}"


def engine_options(url: str) -> dict[str, Any]:
    """What any engine of this URL is made with."""
    if url.startswith("sqlite:"):
        return {"connect_args": {"timeout": WAIT}}
    return {"connect_args": {"connect_timeout": 10}, "pool_pre_ping": True}


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
        parts = parts.set(database=str(Path(parts.database).absolute()))
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
