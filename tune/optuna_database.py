"""Optuna's tables in a study's database, which several studies may share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from migvis.errors import InputError
from tune.database import engine_options, first_line
from tune.redact import redact


def open_database(url: str) -> optuna.storages.RDBStorage:
    """Optuna's tables in a database, made if they are missing, also where another process makes them at the same moment."""
    for attempt in range(3):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=engine_options(url))
        except SQLAlchemyError:
            if attempt == 2:
                raise
            time.sleep(1.0)
    raise AssertionError


@contextmanager
def named_when_away(url: str, resume_line: str) -> Iterator[None]:
    """Raises InputError, with the line that goes on, where Optuna's database could not be read or written."""
    try:
        yield
    except (StorageInternalError, OperationalError) as error:
        # Optuna's own words are of invalid data, whatever happened.
        said = first_line(error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error)
        raise InputError(f"--database {redact(url)}: is away: {said}; go on with: {resume_line}") from error


def studies_in(url: str) -> list[str]:
    """The names of all studies of a database."""
    return sorted(study.study_name for study in open_database(url).get_all_studies())


def trials_in(url: str, name: str) -> int:
    """Attempts that a study of this name has in a database; 0 where there is none."""
    storage = open_database(url)
    try:
        return storage.get_n_trials(storage.get_study_id_from_name(name))
    except KeyError:
        return 0
