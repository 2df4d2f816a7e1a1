"""Optuna's tables in a study's database, which several studies may share."""

from __future__ import annotations

import time

import optuna
from sqlalchemy.exc import SQLAlchemyError

from tune.database import engine_options


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
