"""A study's folder: `<storage>/<study>/`, with its configuration, database, trials and summary."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
import uuid
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from migvis.errors import InputError
from tune.database import sqlite_url
from tune.study_config import StudyConfig

ABLATIONS = "ablations"
"""Where, in a storage folder, ablations are."""
_RESERVED = {"stages", "data", "mlflow-artifacts", ABLATIONS}


def default_storage() -> Path:
    """MIGVIS_STORAGE, which a cluster sets; else `migvis` in the user's data folder (XDG_DATA_HOME, or ~/.local/share)."""
    named = os.environ.get("MIGVIS_STORAGE", "")
    if named:
        return Path(named)
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "migvis"


def open_storage(path: Path) -> Path:
    """The storage folder, created if needed; absolute. Raises InputError where nothing can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"--storage {path}: cannot be written: {error.strerror}") from None
    return path.resolve()


def is_full(error: BaseException) -> bool:
    """Whether an error, or one behind it, tells of a full disk; SQLite says so in words."""
    behind: BaseException | None = error
    while behind is not None:
        if getattr(behind, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "database or disk is full" in str(behind):
            return True
        behind = behind.__cause__ or (None if behind.__suppress_context__ else behind.__context__)
    return False


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: whoever reads sees the old text or the new."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as write_text does."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def check_name(name: str) -> str:
    """A study's name is a folder's name. Raises InputError for one that is not."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name in _RESERVED or name.startswith("mlflow."):
        raise InputError(f"--study {name}: expected letters, digits, '.', '_' and '-', and not {', '.join(sorted(_RESERVED))}")
    return name


def default_name(preset: str) -> str:
    return f"{preset}-{datetime.now():%Y%m%d-%H%M%S}"


class TrialRefused(InputError):
    """What a trial met and a user has to mend, such as a full disk; the study goes on from there."""


class StudyFailed(RuntimeError):
    """Too many trials failed for good; the message has the last error."""


@dataclass(frozen=True)
class StudyRecord:
    """What `study.json` holds: enough to resume by name alone.

    id: tells it from another study of its name on a tracking server. tracking_uri: without credentials; None: the
    database in the storage folder. stages, database: likewise; None: the storage folder's stages, the study's own SQLite.
    """

    name: str
    config: StudyConfig
    seed: int
    data_digest: str
    created: str
    finished: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    tracking_uri: str | None = None
    stages: str | None = None
    database: str | None = None

    def write(self, folder: Path) -> None:
        content = {part.name: getattr(self, part.name) for part in fields(self)}
        write_json(folder / "study.json", {**content, "config": self.config.model_dump(mode="json")})


def own_database(folder: Path) -> str:
    """The URL of a study's own database."""
    return sqlite_url(folder / "optuna.db")


def exists(storage: Path, name: str) -> bool:
    return (storage / name / "study.json").is_file()


def read_study(storage: Path, name: str) -> StudyRecord:
    """The record of a study. Raises InputError where there is none, or it cannot be read."""
    path = storage / name / "study.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return StudyRecord(**{**values, "config": StudyConfig.model_validate(values["config"])})
    except OSError:
        raise InputError(f"--study {name}: there is no such study in {storage}") from None
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path}: not a study's record: {str(error).splitlines()[0]}") from None


def latest_unfinished(storage: Path) -> StudyRecord:
    """The study that was touched last among those not finished. Raises InputError if there is none."""
    newest_first = sorted(storage.glob("*/study.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first:
        record = read_study(storage, path.parent.name)
        if not record.finished:
            return record
    raise InputError(f"--resume: no unfinished study in {storage}")
