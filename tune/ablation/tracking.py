"""An ablation in MLflow: an experiment of its own, with a run per case, subject and seed, and one that holds the report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from migvis.weights import read_json
from tune.ablation.algebra import Case, configured
from tune.ablation.outcome import Cell, Outcome, slug
from tune.browsing import charts_of_cases
from tune.pictures import scored_pictures
from tune.redact import redact
from tune.study_folder import write_json
from tune.summary import git_revision
from tune.tracking import Tracker
from tune.tracking_uri import artifacts_folder
from tune.tracking_writer import EXPERIMENT, Writer
from tune.trial_result import TrialResult


def start_tracking(outcome: Outcome, uri: str) -> Tracker:
    """A tracker of this study; a study of the same name with another configuration is another run."""
    context, path = outcome.context, outcome.context.folder / "mlflow_runs.json"
    params = context.config.identity()["configuration"]
    identity = json.dumps([context.study, params, context.data_digest, context.seed, redact(uri)], sort_keys=True)
    study_id = hashlib.sha256(identity.encode()).hexdigest()[:32]
    stored = read_json(path) if path.exists() else {}
    known: dict[str, Any] = stored.get(study_id, {})

    def remember(key: str, value: Any) -> None:
        known[key] = value
        write_json(path, {**stored, study_id: known})

    tags = {
        "migvis.data_digest": context.data_digest,
        "migvis.seed": str(context.seed),
        "migvis.preset": context.config.preset,
        "migvis.question": outcome.study.question,
        "mlflow.source.git.commit": git_revision(),
        "mlflow.source.name": "tune/ablate.py",
    }
    writer = Writer(
        uri,
        artifacts_folder(uri, context.storage),
        f"report of {context.study}",
        study_id=study_id,
        seed=context.seed,
        tags=tags,
        params=params,
        recall=known.get,
        remember=remember,
        experiment=f"{EXPERIMENT} {context.study}",
    )
    tracker = Tracker(writer, again="the same command", say=print)
    tracker.start()
    tracker.submit("the page of its charts", partial(_note_charts, outcome))
    return tracker


def _note_charts(outcome: Outcome, writer: Writer) -> None:
    outcome.charts = charts_of_cases(writer.uri, writer.experiment_id, writer.study_id)


def track_cells(outcome: Outcome, tracker: Tracker) -> None:
    """Queues the runs of all cells. The first seed's come last: MLflow shows the newest runs, and these have the pictures."""
    for cell in reversed(outcome.metrics):
        tracker.submit(str(cell), _cell_job(outcome, cell), whatever_waits=True)


def _cell_job(outcome: Outcome, cell: Cell) -> Any:
    """Writes a cell to MLflow as a run of its own, its case's name first, so that runs of a case stand together."""
    changes = {one.name: one.changes for one in outcome.cases}
    varied = sorted({field for of_case in changes.values() for field in of_case})
    sections = configured(outcome.context.config, Case(cell.case, changes[cell.case])).model_dump(mode="json")
    params = {field: sections[field.partition(".")[0]][field.partition(".")[2]] for field in varied}
    used = [outcome.uses.get((reading.stage.kind, reading.stage.key)) for reading in outcome.readings[cell]]
    stages = [asdict(use) for use in used if use is not None]
    columns = {column.metric for column in outcome.study.columns}
    # MLflow's page begins with the metrics of a section: those of the study's table, before all others.
    measured = outcome.metrics[cell].items()
    metrics = {f"table/{name}" if name in columns else name.replace("/", "."): value for name, value in measured}
    result = TrialResult(metrics, stages=stages, images=_pictures(outcome, cell))
    tags = {"case": cell.case, "subject": cell.subject, "seed": str(cell.seed)}
    key = hashlib.sha256(json.dumps([*tags.values(), params], sort_keys=True).encode()).hexdigest()[:16]
    name = f"{cell.case} · {cell.subject} · seed {cell.seed}"
    return lambda writer: writer.case_ended(key, name, {**params, **tags}, tags, result)


def _pictures(outcome: Outcome, cell: Cell) -> dict[str, Path]:
    """The edits of a cell, to compare across runs; of the first seed only, since a picture takes longer than its numbers."""
    synthesis, evaluation = outcome.path(cell, "synthesis"), outcome.path(cell, "evaluation")
    if cell.seed != outcome.seeds[0] or synthesis is None or evaluation is None:
        return {}
    folder = outcome.context.folder / "runs" / slug(str(cell))
    return scored_pictures(outcome.dataset, synthesis, evaluation, folder, cell.subject, f"{outcome.study.name}: {cell}")
