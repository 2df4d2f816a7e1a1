"""Locks that many may hold together or one alone, and that end with their holder, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

TakeLock = Callable[[bool, bool], bool]
"""(alone, wait): takes the lock, alone or with others; waits for it, or returns false."""


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[TakeLock]:
    """The operating system's lock (flock) on a file, which is made. Hosts that share it see each other's where the file
    system passes such locks on, as NFS 4 does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # NFS gives a shared lock to those only who may read the file.
    with path.open("a+", encoding="utf-8") as handle:

        def take(alone: bool, wait: bool) -> bool:
            how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
            try:
                fcntl.flock(handle, how if wait else how | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield take


@contextlib.contextmanager
def database_lock(url: str, name: str) -> Iterator[TakeLock]:
    """PostgreSQL's advisory lock of a name, held by a connection of its own; of SQLite a file beside the database.

    Raises DatabaseAway for a server that is away for long.
    """
    from tune.database import database_errors, engine, patiently

    if url.startswith("sqlite:"):
        number = hashlib.sha256(name.encode()).hexdigest()[:12]
        with file_lock(Path(f"{url.removeprefix('sqlite:///').partition('?')[0]}-{number}.lock")) as take_file:
            yield take_file
        return
    import sqlalchemy

    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    connection = patiently(engine(url).execution_options(isolation_level="AUTOCOMMIT").connect)

    def take(alone: bool, wait: bool) -> bool:
        function = f"pg_{'' if wait else 'try_'}advisory_lock{'' if alone else '_shared'}"
        with database_errors():
            taken = connection.execute(sqlalchemy.text(f"SELECT {function}(:key)"), {"key": key}).scalar()
        return wait or bool(taken)

    try:
        yield take
    finally:
        connection.invalidate()  # ends the session, and its locks with it
        connection.close()
