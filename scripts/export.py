"""Exports any finished trial of a study as a bundle, from the study's storage or from a tracking server alone."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from migvis.errors import InputError
from tune.redact import redact
from tune.selection import Candidate, best_of
from tune.study_folder import check_name, default_storage, read_study
from tune.tracking_uri import check_tracking

FINISHED = "COMPLETE"


@dataclass(frozen=True)
class Finished:
    """The trials of a study that can be exported, those that ended after their VAE, and which one the study selected."""

    candidates: list[Candidate]
    without_critic: list[int]
    selected: int | None


@dataclass(frozen=True)
class Material:
    """What a bundle is assembled from."""

    models: Path
    denoiser: Path
    metrics: dict[str, Any]
    images: dict[str, Path] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def choose(study: str, trials: Finished, number: int | None, metric: str | None) -> tuple[Candidate, str]:
    """The trial to export and the rule that chose it. Raises InputError where there is none such."""
    known = {candidate.number: candidate for candidate in trials.candidates}
    if metric is not None:
        chosen = best_of(trials.candidates, metric)
        if chosen.warning:
            print(f"WARNING: {chosen.warning}", file=sys.stderr)
        return known[chosen.trial], chosen.rule
    rule = "given by number" if number is not None else "selected by the study"
    wanted = trials.selected if number is None else number
    if wanted is None:
        raise InputError(f"study {study}: has not selected a trial yet; give --trial N or --best METRIC")
    if wanted in trials.without_critic:
        raise InputError(f"--trial {wanted}: ended after its VAE, so it has no critic to export")
    if wanted not in known:
        listed = ", ".join(map(str, sorted(known))) or "none"
        raise InputError(f"--trial {wanted}: not a finished trial of {study}; it has {listed}")
    return known[wanted], rule


def from_storage(storage: Path, study: str, number: int | None, metric: str | None) -> Material:
    """Reads the study's folder and the stage store. Raises InputError for what is missing or damaged."""
    from tune.manifest import DamagedStage
    from tune.stores import open_store, places_of
    from tune.trial_result import TrialResult

    record = read_study(storage, study)
    folder = storage / study
    if not (folder / "summary.json").exists():
        raise InputError(f"{folder / 'summary.json'}: missing, since no trial of study {study} has finished yet")
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        rows = {row["number"]: row for row in summary["trials"]}
        selected = None if summary["selected"] is None else summary["selected"]["trial"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder / 'summary.json'}: not a study's summary") from None
    candidates = [
        Candidate(row["number"], row["params"], {k: v for k, v in row["metrics"].items() if v is not None}, row["constraint"])
        for row in rows.values()
        if row["state"] == FINISHED
    ]
    without_critic = [row["number"] for row in rows.values() if row["state"] == "PRUNED"]
    trial, rule = choose(study, Finished(candidates, without_critic, selected), number, metric)
    path = folder / "trials" / f"{trial.number:03d}" / "result.json"
    try:
        result = TrialResult.from_json(json.loads(path.read_text(encoding="utf-8"))["result"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: missing, or not a trial's result") from None
    used = [stage["key"] for stage in [*result.stages, *summary["stages"]] if stage["kind"] == "denoiser"]
    if "models" not in result.artifacts or not used:
        raise InputError(f"{path}: the trial left no models, or its denoiser is not known")
    places = places_of(storage, record.stages, record.database, check=False)
    store = open_store(places.stages, places.database or "")
    try:
        known = store.read("denoiser", used[0]) is not None
    except DamagedStage as error:
        raise InputError(str(error)) from None
    if not known:
        raise InputError(f"{store.name}: the study's denoiser {used[0]} is not in the stage store")
    metrics: dict[str, Any] = dict(result.metrics)
    if trial.number == selected and summary.get("final_metrics"):
        metrics["final"] = summary["final_metrics"]
    provenance = {
        "study": study,
        "trial": trial.number,
        "rule": rule,
        "parameters": dict(trial.params),
        "data_source": data_source(Path(summary["data"]["path"]), record.config.data.path is None),
        "data_digest": record.data_digest,
        "seed": record.seed,
        "git_revision": summary.get("git_revision", "unknown"),
    }
    images = {name: found for name, image in result.images.items() if (found := moved(image, path.parent)).is_file()}
    return Material(moved(result.artifacts["models"], path.parent), store.path("denoiser", used[0]), metrics, images, provenance)


def moved(path: Path, folder: Path) -> Path:
    """A trial's file where the trial wrote it, or in the trial's folder if the storage was moved since."""
    return path if path.exists() else folder / path.name


def data_source(path: Path, made: bool) -> str:
    """Where the recordings come from: as the data set says, if it is still there."""
    if made:
        return "synthetic"
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs["source"])
    except (OSError, KeyError):
        return "not stated"


def from_tracking(uri: str, study: str, number: int | None, metric: str | None, into: Path) -> Material:
    """Downloads the trial's models and the study's denoiser. Raises InputError for what the server does not have."""
    from tune.tracking_writer import EXPERIMENT, import_mlflow

    check_tracking(uri)
    mlflow = import_mlflow()
    client = mlflow.MlflowClient(tracking_uri=uri)
    where = f"--tracking-uri {redact(uri)}"

    def runs(query: str) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = client.search_runs([experiment.experiment_id], query, max_results=500, page_token=token)
            found, token = [*found, *page], page.token
            if not token:
                return found

    def download(run: Any, artifact: str) -> Path:
        if not client.list_artifacts(run.info.run_id, artifact):
            raise InputError(f"{where}: run {run.info.run_name} has no artifact {artifact!r}")
        folder = into / run.info.run_id
        folder.mkdir(exist_ok=True)
        return Path(client.download_artifacts(run.info.run_id, artifact, str(folder)))

    try:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        parents = [] if experiment is None else runs(f"tags.`migvis.study` = '{study}' and tags.`migvis.kind` = 'study'")
        if not parents:
            raise InputError(f"{where}: has no study {study}")
        parent = parents[0]
        below = runs(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        children = {int(run.data.tags["migvis.trial"]): run for run in below}
        states = {trial: run.data.tags.get("migvis.state") for trial, run in children.items()}
        candidates = [
            Candidate(trial, searched(run), run.data.metrics, run.data.metrics.get("constraint"))
            for trial, run in children.items()
            if states[trial] == FINISHED
        ]
        selected = parent.data.tags.get("migvis.selected_trial")
        without_critic = [trial for trial, state in states.items() if state == "PRUNED"]
        finished = Finished(candidates, without_critic, None if selected is None else int(selected))
        trial, rule = choose(study, finished, number, metric)
        run = children[trial.number]
        models, denoiser = download(run, "models"), download(parent, "denoiser")
        pictures = download(run, "pictures") if client.list_artifacts(run.info.run_id, "pictures") else None
    except mlflow.exceptions.MlflowException as error:
        raise InputError(f"{where}: {redact(str(error).splitlines()[0])[:300]}") from error
    metrics: dict[str, Any] = {name: value for name, value in run.data.metrics.items() if is_result(name)}
    if str(trial.number) == selected:
        final = {name.removeprefix("final/"): value for name, value in parent.data.metrics.items() if name.startswith("final/")}
        metrics |= {"final": final} if final else {}
    provenance = {
        "study": study,
        "trial": trial.number,
        "rule": rule,
        "parameters": dict(trial.params),
        "data_source": "synthetic" if parent.data.tags.get("migvis.data.path") == "None" else "not stated",
        "data_digest": parent.data.tags.get("migvis.data_digest", "unknown"),
        "seed": parent.data.tags.get("migvis.seed", "unknown"),
        "git_revision": parent.data.tags.get("mlflow.source.git.commit", "unknown"),
        "mlflow_run": run.info.run_id,
    }
    images = {} if pictures is None else {path.stem: path for path in sorted(pictures.glob("*.png"))}
    return Material(models, denoiser, metrics, images, provenance)


def searched(run: Any) -> dict[str, Any]:
    """The searched hyperparameters of a trial's run; the rest of the configuration has dotted names there."""
    return {name: value for name, value in run.data.params.items() if "." not in name and name != "study"}


def is_result(name: str) -> bool:
    """Whether a run's metric is a result: not seconds, not a value per seed, not a curve of a fit."""
    return not name.startswith(("seconds/", "per_seed/", "system/")) and "/seed" not in name


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description="Export a finished trial of a study as a bundle, which migvis.load reads.")
    parser.add_argument("study", metavar="STUDY", help="the study's name")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--storage", type=Path, metavar="DIR", help="where the study is kept (default: ~/.local/share/migvis)")
    source.add_argument("--tracking-uri", metavar="URI", help="take everything from this MLflow server or database alone")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--trial", type=int, metavar="N", help="the trial's number (default: the one that the study selected)")
    which.add_argument("--best", metavar="METRIC", help="the feasible trial with the highest METRIC")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="the bundle's folder; a bundle there is replaced")
    arguments = parser.parse_args(argv)
    try:
        study = check_name(arguments.study)
        with tempfile.TemporaryDirectory() as downloads:
            if arguments.tracking_uri is not None:
                material = from_tracking(arguments.tracking_uri, study, arguments.trial, arguments.best, Path(downloads))
            else:
                storage = (arguments.storage or default_storage()).absolute()
                material = from_storage(storage, study, arguments.trial, arguments.best)
            from migvis.bundle import assemble_bundle

            assemble_bundle(
                material.models, material.denoiser, arguments.out, material.metrics, material.images, material.provenance
            )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    provenance = material.provenance
    print(f"trial {provenance['trial']} of {study} ({provenance['rule']})")
    print(f"{arguments.out}: written; migvis.load({str(arguments.out)!r}) reads it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
