"""A study as the command line asks for it: everything is checked before anything of it is written."""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from migvis.errors import InputError
from tune.context import DataSummary, Hooks, StudyContext
from tune.selection import check_rule
from tune.space import SearchSpace
from tune.study_config import load_study_config
from tune.study_folder import (
    StudyRecord,
    check_name,
    default_name,
    default_storage,
    exists,
    latest_unfinished,
    locked,
    open_storage,
    read_study,
)
from tune.study_run import StudyRun
from tune.tracking import check_tracking, default_uri, redact


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
    seed: int | None = None
    resume: bool = False
    dry_run: bool = False
    overrides: tuple[str, ...] = ()

    def resume_line(self, study: str) -> str:
        """The command that goes on with the study; credentials are left out."""
        words = ["python", "tune/run.py", "--study", study, "--resume"]
        for option, value in (("--storage", self.storage), ("--tracking-uri", self.tracking_uri), ("--address", self.address)):
            if value is not None:
                words += [option, redact(str(value))]
        return shlex.join(words)


class Interrupted(Exception):
    """The study was interrupted; the message is the line that resumes it."""


@dataclass(frozen=True)
class Plan:
    """A study that was checked and may begin."""

    record: StudyRecord
    context: StudyContext
    space: SearchSpace
    data: DataSummary
    uri: str


def make_plan(request: Request, hooks: Hooks) -> Plan:
    """Checks everything that can be checked before anything of the study is written. Raises InputError."""
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
    check_rule(config.search.rule)
    seed = _seed(request, record)
    data = hooks.open_data(config, storage)
    space = SearchSpace.of(config, data.training_pictures)
    if record is None:
        name = request.study or default_name(config.preset)
        record = StudyRecord(name, config, seed, data.digest, datetime.now().astimezone().isoformat(timespec="seconds"))
    else:
        record = replace(record, config=config)
    context = StudyContext(
        storage=storage,
        study=record.name,
        folder=storage / record.name,
        config=config,
        data_path=data.path,
        data_digest=data.digest,
        seed=seed,
        stages_root=storage / "stages",
        workers=config.search.fit_workers,
    )
    uri = request.tracking_uri or default_uri(storage)
    if not request.dry_run:
        check_tracking(uri)
    return Plan(record, context, space, data, uri)


def _seed(request: Request, record: StudyRecord | None) -> int:
    if record is not None and request.seed is not None and request.seed != record.seed:
        raise InputError(f"--seed {request.seed}: study {record.name} was begun with seed {record.seed}")
    return record.seed if record is not None else request.seed or 0


def run_study(request: Request, hooks: Hooks) -> None:
    """Runs or resumes a study and prints where everything is; with dry_run, prints its plan.

    Raises InputError for bad input, tune.study_run.StudyFailed, or Interrupted at Ctrl-C.
    """
    begin = time.monotonic()
    plan = make_plan(request, hooks)
    if request.dry_run:
        print(hooks.plan(plan.context, plan.space))
        return
    context = plan.context
    context.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(locked(context.folder))
        study = StudyRun(context, hooks, plan.record, plan.space, plan.data, plan.uri)
        stack.callback(study.close)
        study.clock.add("start", time.monotonic() - begin)
        try:
            study.run(request.address)
        except KeyboardInterrupt:
            study.end("interrupted", "KILLED")
            raise Interrupted(request.resume_line(context.study)) from None
        except Exception:
            study.end("failed", "FAILED")
            raise
