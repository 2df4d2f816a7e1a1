"""What is written to MLflow, and how: a parent run per study, a child run per trial. Every call blocks.

Everything is idempotent: a trial's run is found again by its tags, and metrics carry the time at which the run
began, so that writing them twice leaves one value. MLflow is imported here when first needed (seconds).
"""

from __future__ import annotations

import fcntl
import importlib
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from migvis.errors import InputError
from tune.space import PARAMETERS
from tune.trial_record import TrialRecord
from tune.trial_result import TrialResult

EXPERIMENT = "migvis"
_METRICS_PER_CALL, _TEXTS_PER_CALL = 900, 100
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""The page that MLflow opens for it: runs and their charts."""


def import_mlflow() -> Any:
    """The mlflow module. Raises InputError where only this repository's folder of that name is found."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A server that is away is noticed by the Tracker, rather than by MLflow's minutes of retries. One that hangs is waited
    # for: a request that is given up and sent again may be carried out twice, as soon as it goes on.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    module = importlib.import_module("mlflow")
    if not hasattr(module, "__version__"):
        raise InputError("mlflow: the library is not installed; `import mlflow` finds a folder of that name only")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return module


@contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def create_database(path: Path, artifacts: Path) -> None:
    """Creates MLflow's SQLite database, complete or not at all; one that exists is left as it is.

    MLflow runs its whole history of migrations on a new database, so that is done aside, without waiting for the
    disk at each of them, and renamed into place.
    """
    if path.exists():
        return
    import_mlflow()
    import sqlalchemy
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def without_waiting(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    with _exclusively(path.with_suffix(".lock")):
        if path.exists():
            return
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.unlink(missing_ok=True)
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", without_waiting)
        try:
            SqlAlchemyStore(f"sqlite:///{aside}", artifacts.as_uri()).engine.dispose()
        finally:
            sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", without_waiting)
        with open(aside, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, path)


class Writer:
    """Writes one study to MLflow.

    uri: the tracking server or database. artifacts: where a database's artifacts are kept (None: the server
    decides). study, study_id: its name, and what tells it from another of that name. seed: of the first fit of a
    trial. tags: of the parent run and of every trial; they may change from session to session. params: of the study's
    configuration, flat ("vae.pc_weight"), which may not. recall, remember: run ids kept with the study, by key. experiment: in
    which all runs are.
    """

    def __init__(
        self,
        uri: str,
        artifacts: Path | None,
        study: str,
        *,
        study_id: str,
        seed: int,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        recall: Callable[[str], Any],
        remember: Callable[[str, Any], None],
        experiment: str = EXPERIMENT,
    ) -> None:
        self.uri, self._artifacts, self.study = uri, artifacts, study
        self.study_id, self._seed, self._experiment = study_id, seed, experiment
        self._tags, self._params, self._recall, self._remember = dict(tags), dict(params), recall, remember
        self._client: Any = None
        self._experiment_id = ""

    @property
    def client(self) -> Any:
        """MLflow's client; the first use imports MLflow, creates the database and the experiment."""
        if self._client is None:
            artifacts = self._artifacts
            if artifacts is not None and self.uri.startswith("sqlite:///"):
                create_database(Path(self.uri.removeprefix("sqlite:///").partition("?")[0]), artifacts)
            mlflow = import_mlflow()
            client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            self._experiment_id = self._experiment_of(client)
            self._client = client
        return self._client

    @property
    def experiment_id(self) -> str:
        """Of the experiment that holds the study's runs; the first use does what that of `client` does."""
        assert self.client is not None
        return self._experiment_id

    def _experiment_of(self, client: Any) -> str:
        """The id of the experiment, which is created where there is none; another study may do so at the same moment."""
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            location = None if self._artifacts is None else self._artifacts.as_uri()
            try:
                return str(client.create_experiment(self._experiment, artifact_location=location, tags=_EXPERIMENT_TAGS))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = client.get_experiment_by_name(self._experiment)
        return str(experiment.experiment_id)

    def parent_run(self) -> str:
        """The id of the study's run, created at the first call."""
        params = {**self._params, "study": self.study}
        own = {"migvis.study_id": self.study_id, "migvis.kind": "study"}
        return self._run("mlflow_parent", self.study, own, params, {"migvis.study": self.study})

    def study_started(self) -> None:
        """A session of the study begins: its run is open again, with this session's tags."""
        run_id = self.parent_run()
        self._log_tags(run_id, self._tags)
        self.client.update_run(run_id, status="RUNNING")

    def _run(self, key: str, name: str, tags: dict[str, str], params: dict[str, Any], more: Mapping[str, str]) -> str:
        """The id of a run: remembered, else found by its tags, else created with those and with `more`."""
        known = self._recall(key)
        if known:
            return str(known)
        filter_string = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        found = self.client.search_runs([self._experiment_id], filter_string, max_results=1)
        all_tags = {**self._tags, **more, **tags}
        run = found[0] if found else self.client.create_run(self._experiment_id, tags=all_tags, run_name=name)
        run_id = str(run.info.run_id)
        self._log_params(run_id, params)
        self._remember(key, run_id)
        return run_id

    def _log_params(self, run_id: str, params: dict[str, Any]) -> None:
        mlflow = import_mlflow()
        items = [mlflow.entities.Param(name, str(value)[:6000]) for name, value in params.items()]
        for start in range(0, len(items), _TEXTS_PER_CALL):
            self.client.log_batch(run_id, params=items[start : start + _TEXTS_PER_CALL])

    def trial_run(self, record: TrialRecord) -> str:
        """The id of a trial's run, created at the first call and the same at a later attempt."""
        parent = self.parent_run()
        tags = {"mlflow.parentRunId": parent, "migvis.trial": str(record.number)}
        searched = {f"{PARAMETERS[name]}.{name}": value for name, value in record.params.items()}
        params = {**self._params, **searched, **record.params}
        return self._run(run_key(record.number), f"{self.study}-{record.number:03d}", tags, params, {})

    def trial_started(self, record: TrialRecord) -> None:
        run_id = self.trial_run(record)
        if record.attempt:
            self.client.set_tag(run_id, "migvis.attempt", str(record.attempt))
        self.client.update_run(run_id, status="RUNNING")

    def trial_ended(self, record: TrialRecord) -> None:
        """Writes a recorded trial whole: metrics, per-seed values, curves, images, artifacts, tags, status."""
        run_id = self.trial_run(record)
        if not record.finished:
            self.client.set_tag(run_id, "migvis.error", (record.error or "failed")[:4000])
            self.client.set_terminated(run_id, status="FAILED")
            return
        constraint = {} if record.constraint is None else {"constraint": record.constraint}
        result = record.result()
        tags = {"migvis.state": record.state, "migvis.ended": record.ended, "migvis.host": result.host}
        self._log_result(run_id, result, constraint, tags)
        self._remember(sent_key(record.number), True)

    def _log_result(self, run_id: str, result: TrialResult, more: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Writes a result whole, and ends its run."""
        metrics = {**result.metrics, **{f"seconds/{name}": value for name, value in result.seconds.items()}, **more}
        points = [(name, value, 0) for name, value in metrics.items()]
        for name, values in result.per_seed.items():
            points += [(f"per_seed/{name}", value, seed) for seed, value in enumerate(values, self._seed)]
        points += [(name, value, step) for name, curve in result.curves.items() for step, value in curve]
        self._log_points(run_id, points)
        self._log_files(run_id, result.images, result.artifacts, step=0)
        stages = {f"stage.{stage['kind']}.{index}": stage["key"] for index, stage in enumerate(result.stages)}
        self._log_tags(run_id, {**tags, **stages})
        self.client.set_terminated(run_id, status="FINISHED")

    def case_ended(self, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str], result: TrialResult) -> None:
        """Writes one run of an ablation, known by `key` and called `name`; one that exists is written over.

        It stands beside the study's run, not under it, where MLflow's charts would not show it before it is unfolded.
        params: those in which the runs differ. tags: its case, subject and seed.
        """
        self.parent_run()
        own = {"migvis.study_id": self.study_id, "migvis.cell": key}
        described = {"migvis.kind": "case", **{f"migvis.{tag}": value for tag, value in tags.items()}}
        run_id = self._run(f"mlflow_cell:{key}", name, own, dict(params), described)
        self._log_result(run_id, result, {}, {})

    def study_files(self, images: Mapping[str, Path], artifacts: Mapping[str, Path]) -> None:
        """Adds files to the study's run, such as the denoiser, once for all its trials."""
        self._log_files(self.parent_run(), images, artifacts, step=0)

    def study_ended(
        self,
        status: str,
        metrics: Mapping[str, float],
        images: Mapping[str, Path],
        artifacts: Mapping[str, Path],
        tags: Mapping[str, str],
        step: int,
    ) -> None:
        """Writes the final stage to the parent run. status: "FINISHED", "FAILED" or "KILLED".

        step: of the metrics, larger when the study was extended: MLflow shows the values of the largest.
        """
        run_id = self.parent_run()
        self._log_points(run_id, [(name, value, step) for name, value in metrics.items()])
        self.study_files(images, artifacts)
        self._log_tags(run_id, dict(tags))
        self.client.set_terminated(run_id, status=status)

    def _log_points(self, run_id: str, points: list[tuple[str, float, int]]) -> None:
        mlflow = import_mlflow()
        metric, now = mlflow.entities.Metric, self._started_at(run_id)
        entities = [metric(_allowed(name), float(value), now, int(step)) for name, value, step in points if math.isfinite(value)]
        for start in range(0, len(entities), _METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=entities[start : start + _METRICS_PER_CALL])

    def _started_at(self, run_id: str) -> int:
        """When the run began, in ms: the one time of all its metrics, so that a metric written twice is one point."""
        return int(self.client.get_run(run_id).info.start_time or time.time() * 1000)

    def _log_tags(self, run_id: str, tags: dict[str, str]) -> None:
        mlflow = import_mlflow()
        items = [mlflow.entities.RunTag(_allowed(name), str(value)) for name, value in tags.items()]
        for start in range(0, len(items), _TEXTS_PER_CALL):
            self.client.log_batch(run_id, tags=items[start : start + _TEXTS_PER_CALL])

    def _log_files(self, run_id: str, images: Mapping[str, Path], artifacts: Mapping[str, Path], step: int) -> None:
        """Images by key and step (to compare across runs) and as files to open; artifacts by folder and name."""
        from PIL import Image

        compared = bool(images) and bool(self.client.list_artifacts(run_id, "images"))
        for key, path in images.items():
            if not compared:
                with Image.open(path) as picture:
                    self.client.log_image(run_id, picture, key=_allowed(key), step=step)
            self.client.log_artifact(run_id, str(path), "pictures")
        for name, path in artifacts.items():
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), name)
            else:
                self.client.log_artifact(run_id, str(path), name)

    def register(self, name: str, artifact: str, tags: Mapping[str, str]) -> str:
        """Registers the parent run's artifact folder as a version of the registered model `name`; its version.

        A version with the same run and tags is not registered twice.
        """
        from mlflow.exceptions import MlflowException

        run_id = self.parent_run()
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in self.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
            if dict(version.tags) == dict(tags):
                return str(version.version)
        location = f"{self.client.get_run(run_id).info.artifact_uri}/{artifact}"
        return str(self.client.create_model_version(name, source=location, run_id=run_id, tags=dict(tags)).version)


def run_key(number: int) -> str:
    """Under which a study remembers the MLflow run of a trial."""
    return f"mlflow_run:{number}"


def sent_key(number: int) -> str:
    """Under which a study remembers that a trial was written to MLflow whole."""
    return f"mlflow_sent:{number}"


def _allowed(name: str) -> str:
    """`name` in the characters that MLflow takes: mi_bound[1] becomes mi_bound_1."""
    return re.sub(r"[^\w\-. /]+", "_", name).strip("_")
