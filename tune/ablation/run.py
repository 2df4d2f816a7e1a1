"""A named ablation from the command line's request to its report: planned, built, read, shown, tracked."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from migvis.errors import InputError
from tune.ablation.algebra import check_distinct, configured
from tune.ablation.cells import account, build_all
from tune.ablation.outcome import Cell, Outcome, read_metrics
from tune.ablation.report import write_report
from tune.ablation.study import Study
from tune.ablation.tables import differences, values
from tune.ablation.tracking import start_tracking, track_cells
from tune.context import DataSummary, StudyContext
from tune.needs import write_ablation_needs
from tune.pages.table import Table
from tune.pipeline import plan, topological
from tune.progress import Display, duration
from tune.space import check_batch
from tune.stage_data import dataset_at
from tune.stages import EXPECTED_SECONDS, Stages
from tune.store_lock import in_use
from tune.study_config import StudyConfig
from tune.study_data import open_data
from tune.study_folder import ABLATIONS, write_json
from tune.study_lock import locked
from tune.summary import git_revision, machine


class NotHere(InputError):
    """The data set has not what a study asks for."""


@dataclass(frozen=True)
class Settings:
    """What all studies of one call share. command: that call; subjects: none given, each study's own choice."""

    storage: Path
    config: StudyConfig
    seed: int
    seeds: int
    uri: str
    command: str
    subjects: tuple[str, ...] = ()
    address: str | None = None


def open_outcome(study: Study, settings: Settings) -> Outcome:
    """The cells of a study and the stages that each needs; builds nothing but a synthetic data set that is missing.

    Raises InputError for a case, a subject or a data set that cannot be.
    """
    check_distinct(study.cases)
    data = open_data(settings.config, settings.storage)
    everyone = tuple(dataset_at(data.path).subjects)
    for name in settings.subjects:
        if name not in everyone:
            raise InputError(f"--subjects: {data.path} has no subject {name!r}; it has {', '.join(everyone)}")
    subjects = settings.subjects or settings.config.data.subjects
    if study.subjects is not None and not settings.subjects:
        subjects = tuple(everyone[place] for place in study.subjects if place < len(everyone))
        if not subjects:
            raise NotHere(f"{study.name}: {data.path} has only {', '.join(everyone)}; --subjects chooses another one")
    if len(subjects) < study.least_subjects:
        raise NotHere(f"{study.name}: {study.least_subjects} subjects are needed, got {', '.join(subjects)}")
    context = StudyContext(
        storage=settings.storage,
        study=study.name,
        folder=settings.storage / ABLATIONS / study.name,
        config=settings.config,
        data_path=data.path,
        data_digest=data.digest,
        rendered=data.rendered,
        seed=settings.seed,
        stages_root=settings.storage / "stages",
        workers=settings.config.search.fit_workers,
    )
    configs = {one.name: configured(settings.config, one) for one in study.cases}
    stages = {name: _stages(context, config, data) for name, config in configs.items()}
    # A preset may lack a part already, so that leaving it out changes nothing.
    same = [name for name, config in configs.items() if name != study.base and config == configs.get(study.base or "")]
    cases = [one for one in study.cases if one.name not in same]
    seeds = range(settings.seed, settings.seed + settings.seeds)
    # Seed by seed, so that an interrupted study has whole comparisons.
    cells = [Cell(one.name, subject, seed) for seed in seeds for subject in subjects for one in cases]
    readings = {cell: study.read(stages[cell.case], cell.subject, cell.seed) for cell in cells}
    return Outcome(study, context, cases, subjects, seeds, stages, readings, same)


def _stages(context: StudyContext, config: StudyConfig, data: DataSummary) -> Stages:
    check_batch(config, data.training_pictures)
    return Stages(
        context.data_path,
        context.data_digest,
        config.configuration,
        context.seed,
        rendered=context.rendered,
        threads=config.search.threads_per_trial,
        workers=context.workers,
        ray_train=True,
    )


def describe_plan(outcome: Outcome) -> str:
    """The text of `--dry-run`: the study's runs, the stages by kind that exist and that are missing, and their seconds."""
    study, store = outcome.study, outcome.store
    rows = plan(outcome.needed.values(), store, EXPECTED_SECONDS)
    lines = [f"{study.name}: {study.question}"]
    for one in outcome.cases:
        changes = ", ".join(f"{key} {value}" for key, value in one.changes.items())
        lines.append(f"  {one.name}" + (f": {changes}" if changes else ""))
    seeds = f"{len(outcome.seeds)} seed{'s' * (len(outcome.seeds) > 1)}"
    lines += [f"  {name}: the same as {study.base} in this configuration, left out" for name in outcome.same]
    lines.append(f"  {len(outcome.readings)} runs: {len(outcome.cases)} cases × {', '.join(outcome.subjects)} × {seeds}")
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        missing = [row for row in own if not row.exists]
        # One by one; small models that are missing are fitted together, for less.
        lines.append(
            f"  {kind:<20} {len(own) - len(missing):4d} exist, {len(missing):4d} missing, "
            f"{sum(row.seconds for row in missing):7.0f} s to come, {sum(row.seconds for row in own if row.exists):7.0f} s reused"
        )
    return "\n".join([*lines, f"  estimate: {duration(sum(row.seconds for row in rows if not row.exists))}"])


def describe_total(outcomes: Sequence[Outcome]) -> str:
    """A line on several studies together, which share stages."""
    stages = topological(stage for outcome in outcomes for stage in outcome.needed.values())
    rows = plan(stages, outcomes[0].store, EXPECTED_SECONDS)
    runs = sum(len(outcome.readings) for outcome in outcomes)
    left = sum(row.seconds for row in rows if not row.exists)
    alone = sum(
        row.seconds
        for outcome in outcomes
        for row in plan(outcome.needed.values(), outcome.store, EXPECTED_SECONDS)
        if not row.exists
    )
    return f"together: {runs} runs of {len(outcomes)} studies, {duration(left)} to come; {duration(alone)} if they shared nothing"


def run_ablation(study: Study, settings: Settings) -> tuple[Outcome, Path]:
    """Builds what is missing, and writes tables, figures, report and tracking; the outcome and the report's path.

    Raises InputError for bad input, FitError where a shared stage cannot be fitted, StudyFailed where another driver took the
    ablation over.
    """
    begin = time.monotonic()
    outcome = open_outcome(study, settings)
    context = outcome.context
    context.folder.mkdir(parents=True, exist_ok=True)
    # Like a trial's actor, this process computes: the shared stages, and what the figures read.
    torch.set_num_threads(context.config.search.threads_per_trial)
    with ExitStack() as stack:
        check_held = stack.enter_context(locked(context.folder))
        stack.enter_context(in_use(outcome.store))
        write_ablation_needs(context.folder, outcome.needed)
        display = stack.enter_context(Display(context.folder / "progress", _expected(outcome), unit="runs"))
        display.say(f"ablation {study.name}: {study.question}")
        tracker = start_tracking(outcome, settings.uri)
        try:
            build_all(outcome, display, settings.address)
            check_held()
            account(outcome)
            display.phase("report")
            for cell, readings in outcome.readings.items():
                if cell not in outcome.failed:
                    outcome.metrics[cell] = read_metrics(readings, outcome.store)
            tables, figures = show(outcome)
            check_held()
            seconds = time.monotonic() - begin
            report = write_report(outcome, tables, figures, seconds, settings.command)
            write_json(context.folder / "summary.json", _summary(outcome, seconds))
            track_cells(outcome, tracker)
            files = {"report": report, "tables": context.folder / "tables"}
            tracker.study_ended("FINISHED", images={path.stem: path for path in figures.values()}, artifacts=files)
        except BaseException:
            tracker.study_ended("KILLED")
            raise
        finally:
            for problem in tracker.close(60.0, while_it_moves=True):
                display.say(f"WARNING: {problem}")
    return outcome, report


def show(outcome: Outcome) -> tuple[list[Table], dict[str, Path]]:
    """The tables, written as CSV too, and the figures by caption."""
    study, folder = outcome.study, outcome.context.folder
    for earlier in ("tables", "figures"):
        shutil.rmtree(folder / earlier, ignore_errors=True)
    found = [table for subject in outcome.subjects for table in (values(outcome, subject), differences(outcome, subject))]
    tables = [table for table in found if table is not None]
    tables += [table for make in study.tables for table in make(outcome)]
    for table in tables:
        table.write(folder / "tables")
    figures: dict[str, Path] = {}
    for figure in study.figures:
        figures |= figure(outcome, folder / "figures")
    return tables, figures


def _expected(outcome: Outcome) -> dict[str, float]:
    """Seconds of the shared stages and of a run, for the time left before any was built."""
    rows = plan(outcome.needed.values(), outcome.store, EXPECTED_SECONDS)
    scopes = {scope: sum(row.seconds for row in rows if not row.exists and row.scope == scope) for scope in ("study", "trial")}
    return {"prepare": scopes["study"], "trial": scopes["trial"] / max(1, len(outcome.readings))}


def _summary(outcome: Outcome, seconds: float) -> dict[str, Any]:
    built = [use for use in outcome.uses.values() if not use.reused]
    return {
        "study": outcome.study.name,
        "question": outcome.study.question,
        "git_revision": git_revision(),
        "machine": machine(),
        "data_digest": outcome.context.data_digest,
        "configuration": outcome.context.config.configuration.model_dump(mode="json"),
        "cases": {one.name: dict(one.changes) for one in outcome.cases},
        "seconds": round(seconds, 1),
        "built_seconds": round(sum(use.seconds for use in built), 1),
        "failed": {str(cell): reason for cell, reason in outcome.failed.items()},
        "runs": [{**asdict(cell), "metrics": values} for cell, values in outcome.metrics.items()],
    }
