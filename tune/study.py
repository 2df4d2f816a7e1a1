"""A study as the command line asks for it: everything is checked before anything of it is written."""

from __future__ import annotations

import importlib
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from migvis.errors import InputError
from tune.command_line import interruptible_once, python
from tune.context import Hooks, StudyContext
from tune.database import without_password
from tune.redact import redact
from tune.selection import check_rule
from tune.space import SearchSpace
from tune.store_lock import in_use
from tune.store_users import mark_user
from tune.stores import Places, default_places, is_object_store, places_of
from tune.study_config import StudyConfig, check_method, load_study_config
from tune.study_folder import (
    StudyFailed,
    StudyRecord,
    TrialRefused,
    check_name,
    default_name,
    default_storage,
    exists,
    is_full,
    latest_unfinished,
    open_storage,
    own_database,
    read_study,
)
from tune.study_lock import StudyTakenOver, held_in_database, locked
from tune.submitted import submitted
from tune.tracking_uri import absolute, check_tracking, default_uri, given_uri


@dataclass(frozen=True)
class Request:
    """The command line, as it was given."""

    config: Path | None = None
    data: Path | None = None
    trials: int | None = None
    study: str | None = None
    storage: Path | None = None
    tracking_uri: str | None = None
    address: str | None = None
    stages: str | None = None
    database: str | None = None
    seed: int | None = None
    resume: bool = False
    dry_run: bool = False
    overrides: tuple[str, ...] = ()

    def resume_line(self, study: str) -> str:
        """The command that goes on with the study; credentials are left out, and what the study itself remembers."""
        sent = submitted()
        words = [*(python() if sent is None else ["python"]), "tune/run.py", "--study", study, "--resume"]
        given = {"--storage": self.storage, "--tracking-uri": self.tracking_uri}
        given["--address"] = self.address if sent is None else sent.address
        for option, value in given.items():
            if value is not None:
                words += [option, redact(str(value))]
        return shlex.join(words)


__all__ = ["Interrupted", "Request", "StudyFailed", "open_study", "run_study"]


class Interrupted(Exception):
    """The study was interrupted; the message is the line that resumes it."""


@dataclass(frozen=True)
class Opened:
    """A study as far as its storage and its configuration tell.

    uri: of MLflow. places: of its stages and of its database. record: of a study that is resumed.
    """

    storage: Path
    config: StudyConfig
    seed: int
    uri: str
    places: Places
    record: StudyRecord | None


def open_study(request: Request) -> Opened:
    """Checks the command line, the storage and the configuration; writes nothing. Raises InputError."""
    storage = open_storage(request.storage or default_storage())
    options: dict[str, Any] = {}
    if request.trials is not None:
        options["search.trials"] = request.trials
    if request.data is not None:
        options["data.path"] = str(request.data.resolve())
    record: StudyRecord | None = None
    if request.resume:
        record = read_study(storage, check_name(request.study)) if request.study else latest_unfinished(storage)
        config = load_study_config(request.config, request.overrides, options, record.config)
    else:
        config = load_study_config(request.config, request.overrides, options)
        if request.study and exists(storage, check_name(request.study)):
            raise InputError(f"--study {request.study}: exists in {storage}; add --resume to go on with it")
    if config.data.path is not None and not config.data.path.startswith("~"):
        # Whoever resumes the study may be in another folder.
        data = config.data.model_copy(update={"path": str(Path(config.data.path).absolute())})
        config = config.model_copy(update={"data": data})
    check_rule(config.search.rule)
    check_method(config)
    # A study goes on where it was begun: its runs are there.
    given = given_uri(request.tracking_uri) if record is None else request.tracking_uri or record.tracking_uri
    uri = absolute(given or default_uri(storage))
    if not request.dry_run:
        check_tracking(uri)
    kept = (record.stages, record.database) if record else (None, None)
    if record and record.database and request.database and without_password(request.database) != record.database:
        shown = f"--database {redact(request.database)}"
        raise InputError(f"{shown}: study {record.name} was begun with {redact(record.database)}, which has its trials")
    places = places_of(storage, request.stages or kept[0], request.database or kept[1], check=not request.dry_run)
    if is_object_store(places.stages) and config.search.fit_workers > 1:
        raise InputError(
            f"search.fit_workers={config.search.fit_workers}: fits by several workers need their stages in a folder that all "
            f"hosts share, not --stages {places.stages}"
        )
    return Opened(storage, config, _seed(request, record), uri, places, record)


def _seed(request: Request, record: StudyRecord | None) -> int:
    if record is not None and request.seed is not None and request.seed != record.seed:
        raise InputError(f"--seed {request.seed}: study {record.name} was begun with seed {record.seed}")
    return record.seed if record is not None else request.seed or 0


def run_study(request: Request, load_hooks: Callable[[], Hooks]) -> None:
    """Runs or resumes a study and prints where everything is; with dry_run, prints its plan.

    load_hooks: imports the science, after what can be checked without it. Raises InputError for bad input,
    StudyFailed, or Interrupted at Ctrl-C.
    """
    begin = time.monotonic()
    opened = open_study(request)
    hooks = load_hooks()
    config, storage = opened.config, opened.storage
    if not request.dry_run:
        # Beside the making of a data set, by a thread whose end the interpreter awaits.
        threading.Thread(target=_import_ray, name="imports").start()
    data = hooks.open_data(config, storage)
    space = SearchSpace.of(config, data.training_pictures)
    created = datetime.now().astimezone().isoformat(timespec="seconds")
    name = request.study or default_name(config.preset)
    record = opened.record or StudyRecord(name, config, opened.seed, data.digest, created)
    context = StudyContext(
        storage=storage,
        study=record.name,
        folder=storage / record.name,
        config=config,
        data_path=data.path,
        data_digest=data.digest,
        rendered=data.rendered,
        seed=opened.seed,
        stages_root=opened.places.stages,
        workers=config.search.fit_workers,
        database=opened.places.database or own_database(storage / record.name),
        study_id=record.id,
    )
    if request.dry_run:
        print(hooks.plan(context, space))
        return
    uri = opened.uri
    record = replace(
        record,
        config=config,
        finished=False,
        tracking_uri=None if uri == default_uri(storage) else redact(uri),
        stages=None if opened.places.stages == default_places(storage).stages else str(opened.places.stages),
        database=opened.places.database,
    )
    with ExitStack() as stack:
        no_more_interruptions = stack.enter_context(interruptible_once())
        stack.enter_context(_told_when_full(request, context))
        context.folder.mkdir(parents=True, exist_ok=True)
        checks = [stack.enter_context(locked(context.folder))]  # before Ray is imported: who is refused is told at once
        from optuna.exceptions import StorageInternalError

        from tune.optuna_database import named_when_away, trials_in
        from tune.study_run import StudyRun

        stack.enter_context(named_when_away(context.database, request.resume_line(context.study)))
        if opened.places.database is not None:
            checks.append(stack.enter_context(held_in_database(context.database, context.study)))
            if opened.record is None and trials_in(context.database, context.study):
                raise InputError(f"--study {context.study}: exists in --database {redact(context.database)}; give another name")
        if isinstance(context.stages_root, Path):
            with context.store().storage_errors():
                mark_user(context.stages_root, context.folder, context.study_id)
        stack.enter_context(in_use(context.store()))
        study = StudyRun(context, hooks, record, space, data, uri, lambda: _all(checks))
        stack.callback(study.close)
        study.clock.add("start", time.monotonic() - begin)
        try:
            study.run(request.address)
        except KeyboardInterrupt:
            no_more_interruptions()
            study.end("interrupted", "KILLED")
            raise Interrupted(request.resume_line(context.study)) from None
        except StudyTakenOver:
            raise
        except Exception as error:
            # What ended it is told, rather than that the disk is full or the database away at the end as well.
            with suppress(Exception if is_full(error) else StorageInternalError):
                study.end("failed", "FAILED")
            if isinstance(error, TrialRefused):
                raise InputError(f"{error}; go on with: {request.resume_line(context.study)}") from None
            raise


@contextmanager
def _told_when_full(request: Request, context: StudyContext) -> Iterator[None]:
    """Turns a full storage folder into InputError with the line that goes on; before there is a study, with none."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        line = f", and go on with: {request.resume_line(context.study)}" if exists(context.storage, context.study) else ""
        raise InputError(f"--storage {context.storage}: is full; free some space{line}") from error


def _import_ray() -> None:
    """What takes seconds to import, with what Ray itself imports when it starts, where there is all of it."""
    importlib.import_module("tune.study_run")
    with suppress(ImportError):
        importlib.import_module("ray.dashboard.optional_deps")


def _all(checks: Iterable[Callable[[], None]]) -> None:
    for check in checks:
        check()
