"""Leases in a database, for hosts that share no folder: one row for each, with its generation."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import sqlalchemy
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from tune.database import DatabaseAway, database_errors, engine, patiently
from tune.leases import Holder, LeasePlace, Seen

_METADATA = sqlalchemy.MetaData()
LEASES = sqlalchemy.Table(
    "migvis_leases",
    _METADATA,
    sqlalchemy.Column("scope", sqlalchemy.String(512), primary_key=True),
    sqlalchemy.Column("name", sqlalchemy.String(256), primary_key=True),
    sqlalchemy.Column("generation", sqlalchemy.BigInteger, nullable=False),
    sqlalchemy.Column("counter", sqlalchemy.String(32), nullable=False),
    sqlalchemy.Column("holder", sqlalchemy.Text, nullable=False),
)
"""scope: what the leases are of, such as a store's URI."""


@cache
def _table_made(of: Any) -> bool:
    """Makes the table, also where another process does so at the same moment."""
    try:
        _METADATA.create_all(of)
    except SQLAlchemyError:
        if not sqlalchemy.inspect(of).has_table(LEASES.name):
            raise
    return True


class DatabaseLease(LeasePlace):
    """A lease whose latest generation is a row of LEASES; a taker wins it by changing it from the one before.

    Who wants it waits while the server is restarted; its holder's beats are missed meanwhile, as all of them may be.
    """

    def __init__(self, url: str, scope: str, name: str) -> None:
        self.name, self._url, self._scope = name, url, scope

    @property
    def _row(self) -> Any:
        return (LEASES.c.scope == self._scope) & (LEASES.c.name == self.name)

    def make(self) -> None:
        patiently(lambda: _table_made(engine(self._url)))

    def look(self) -> Seen:
        return patiently(self._look)

    def _look(self) -> Seen:
        try:
            with engine(self._url).connect() as connection:
                row = connection.execute(sqlalchemy.select(LEASES).where(self._row)).first()
        except SQLAlchemyError:
            if sqlalchemy.inspect(engine(self._url)).has_table(LEASES.name):
                raise
            raise FileNotFoundError(LEASES.name) from None
        return Seen(-1, "", None) if row is None else Seen(row.generation, row.counter, Holder.from_json(row.holder))

    def claim(self, generation: int, counter: str, holder: Holder) -> bool:
        attempts = 0

        def attempt() -> bool:
            nonlocal attempts
            attempts += 1
            if self._claim(generation, counter, holder):
                return True
            # The server may have gone after it did what was asked, and before it said so.
            return attempts > 1 and (seen := self._look()).generation == generation and seen.holder == holder

        return patiently(attempt)

    def _claim(self, generation: int, counter: str, holder: Holder) -> bool:
        values = {"generation": generation, "counter": counter, "holder": holder.to_json()}
        before = self._row & (LEASES.c.generation == generation - 1)
        with contextlib.suppress(IntegrityError), engine(self._url).begin() as connection:
            if generation > 0:
                return connection.execute(sqlalchemy.update(LEASES).where(before).values(values)).rowcount == 1
            connection.execute(sqlalchemy.insert(LEASES).values(scope=self._scope, name=self.name, **values))
            return True
        return False

    def is_latest(self, generation: int) -> bool:
        try:
            with database_errors():
                return self._look().generation == generation
        except DatabaseAway:  # while it is away nobody can take over
            return True
        except FileNotFoundError:
            return False

    def write(self, generation: int, counter: str) -> None:
        own = self._row & (LEASES.c.generation == generation)
        with database_errors(), engine(self._url).begin() as connection:
            connection.execute(sqlalchemy.update(LEASES).where(own).values(counter=counter))

    def remove(self) -> None:
        """Deletes the row; for a prune, which has the store alone."""
        with database_errors(), engine(self._url).begin() as connection:
            connection.execute(sqlalchemy.delete(LEASES).where(self._row))


def leases_of(url: str, scope: str) -> list[DatabaseLease]:
    """The leases of a scope that were ever taken, by name."""
    with database_errors(), engine(url).connect() as connection:
        if not sqlalchemy.inspect(connection).has_table(LEASES.name):
            return []
        names = connection.execute(sqlalchemy.select(LEASES.c.name).where(LEASES.c.scope == scope).order_by(LEASES.c.name))
        return [DatabaseLease(url, scope, row.name) for row in names]
