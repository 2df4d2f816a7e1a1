from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from migvis.config import PRESETS
from migvis.errors import InputError
from migvis.training import FitError
from tune.context import Hooks, StudyContext
from tune.run import main
from tune.selection import Selected
from tune.store import StageStore
from tune.store_lock import StoreInUse, alone
from tune.study_config import load_study_config
from tune.study_folder import default_storage, latest_unfinished, open_storage, read_study
from tune.study_lock import StudyTakenOver, locked
from tune.summary import ROOT
from tune.trial_process import trainable


def summary_of(storage: Path, study: str) -> dict:
    return json.loads((storage / study / "summary.json").read_text())


def calls_of(storage: Path, study: str) -> list:
    return [json.loads(line) for line in (storage / study / "calls.txt").read_text().splitlines()]


def fails(capsys, storage: Path, hooks: Hooks, *arguments: str) -> str:
    """The one line of a command that must exit 2."""
    assert main(["--storage", str(storage), *arguments], hooks) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_study_end_to_end_then_more_trials(local_ray, storage, science, capsys) -> None:
    arguments = ["--storage", str(storage), "--study", "first", "--set", "search.startup_trials=2"]
    assert main([*arguments, "--trials", "3", "--seed", "5"], science) == 0
    said = capsys.readouterr().out
    summary = summary_of(storage, "first")
    assert [trial["number"] for trial in summary["trials"]] == [0, 1, 2]
    assert {trial["state"] for trial in summary["trials"]} <= {"COMPLETE", "PRUNED"}
    assert all(trial["mlflow_run_id"] for trial in summary["trials"])
    assert summary["trials"][0]["params"]["guidance_scale"] == PRESETS["quick"].synthesis.guidance_scale
    finished = sum(trial["state"] == "COMPLETE" for trial in summary["trials"])
    assert {"kind": "denoiser", "key": "d", "seconds": 2.0, "fitted": 1, "reused": finished} in summary["stages"]
    assert summary["selected"]["trial"] in (0, 1, 2)
    assert summary["selected"]["rule"] == "ideal_corner"
    assert Path(summary["export"]).is_dir()
    assert set(summary["wall_seconds"]) == {"start", "prepare", "search", "final", "tracking"}
    assert (summary["state"], summary["seed"], summary["data"]["digest"]) == ("finished", 5, "digest")
    for words in ("mlflow/serve.sh", "final.png", "bundle", "trial 2", "denoiser: fitted"):
        assert words in said
    assert not list((storage / "first").glob("tune*"))
    page = (storage / "first" / "report.html").read_text()
    for words in (f"Trial {summary['selected']['trial']} is selected", "Pareto front", "data:image/png;base64,", "by the gate"):
        assert words in page

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("migvis").experiment_id
    runs = client.search_runs([experiment])
    assert len(runs) == 4
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs} == {None, parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    bundle = f"bundle-{summary['selected']['trial']}"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {bundle, "models", "pictures"}
    assert client.get_model_version("migvis", "1").tags["trial"] == str(summary["selected"]["trial"])

    assert main(["--storage", str(storage), "--study", "first", "--resume", "--trials", "5"], science) == 0
    more = summary_of(storage, "first")
    assert more["trials"][:3] == summary["trials"]
    assert [number for number, _ in calls_of(storage, "first")] == [0, 1, 2, 3, 4]
    assert len(client.search_runs([experiment])) == 6
    assert next(stage for stage in more["stages"] if stage["kind"] == "denoiser")["fitted"] == 1  # told by both sessions


@pytest.mark.slow
def test_extended_study_keeps_what_was_selected_until_there_is_something_newer(
    local_ray, storage, science, blank_mlflow, monkeypatch, capsys
) -> None:
    def choose(index: int) -> None:
        def chosen(candidates, rule, objectives) -> Selected:
            return Selected(candidates[index].number, candidates[index].params, rule)

        monkeypatch.setattr("tune.study_run.select", chosen)

    def interrupted(context) -> None:
        raise KeyboardInterrupt

    uri = f"sqlite:///{storage / 'other.db'}"
    (storage / "other.db").write_bytes(blank_mlflow.read_bytes())
    arguments = ["--storage", str(storage), "--set", "search.pc_weight=[1e-6, 1e-4]"]
    choose(0)
    assert main([*arguments, "--study", "x", "--trials", "1", "--tracking-uri", uri], science) == 0
    first = summary_of(storage, "x")
    arguments = ["--storage", str(storage), "--resume"]
    assert main([*arguments, "--study", "x", "--trials", "2"], replace(science, prepare=interrupted)) == 130
    between = summary_of(storage, "x")
    assert (first["state"], between["state"]) == ("finished", "interrupted")
    for name in ("selected", "final_metrics", "export"):
        assert between[name] == first[name]
    assert latest_unfinished(storage).config.search.trials == 2

    choose(-1)
    assert main(arguments, science) == 0  # the same tracking server, without being told
    last = summary_of(storage, "x")
    assert (first["selected"]["trial"], last["selected"]["trial"], last["state"]) == (0, 1, "finished")
    assert read_study(storage, "x").finished

    import mlflow

    client = mlflow.MlflowClient(uri)
    (parent,) = client.search_runs([client.get_experiment_by_name("migvis").experiment_id], "tags.`migvis.kind` = 'study'")
    for version in ("1", "2"):
        source = client.get_model_version("migvis", version).source
        params = json.loads(Path(source.removeprefix("file://"), "configuration.json").read_text())
        assert params == last["trials"][int(version) - 1]["params"]
    assert parent.info.artifact_uri.startswith((storage / "mlflow-artifacts").as_uri())
    assert parent.data.tags["migvis.search.trials"] == "2"
    assert mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}").get_experiment_by_name("migvis") is None


def test_tracking_uri_is_kept_for_the_resume_without_its_credentials(tmp_path, science, monkeypatch, capsys) -> None:
    seen = []

    class Stub:
        def __init__(self, context, hooks, record, space, data, uri, check_held) -> None:
            record.write(context.folder)
            seen.append(uri)
            raise InputError("enough")

    monkeypatch.setattr("tune.study_run.StudyRun", Stub)
    monkeypatch.setattr("tune.study.check_tracking", lambda uri: None)
    fails(capsys, tmp_path, science, "--study", "c", "--tracking-uri", "postgresql://me:secret@db/x")
    study_id = read_study(tmp_path, "c").id
    fails(capsys, tmp_path, science, "--resume")
    assert seen == ["postgresql://me:secret@db/x", "postgresql://db/x"]
    assert read_study(tmp_path, "c").id == study_id
    assert "secret" not in (tmp_path / "c" / "study.json").read_text()


def study_context(storage: Path) -> StudyContext:
    config = load_study_config(None, [], {})
    return StudyContext(
        storage, "t", storage / "t", config, storage / "data.h5", "digest", True, 0, storage / "stages", workers=1
    )


def test_nothing_is_pruned_while_a_driver_or_a_trial_lives(tmp_path, science, monkeypatch, capsys) -> None:
    def try_to_prune(storage: Path) -> None:
        with pytest.raises(StoreInUse), alone(StageStore(storage / "stages")):
            pass
        raise InputError("enough")

    monkeypatch.setattr("tune.study_run.StudyRun", lambda context, *others: try_to_prune(context.storage))
    assert "enough" in fails(capsys, tmp_path, science, "--study", "c")
    hooks = replace(science, run_trial=lambda context, *others: try_to_prune(context.storage))
    with pytest.raises(InputError, match="enough"):
        trainable(study_context(tmp_path), hooks)({"number": 0, "params": {}, "vae_only": False})
    with alone(StageStore(tmp_path / "stages")):
        pass


@pytest.mark.slow
def test_failing_trial_is_retried_then_the_study_goes_on(local_ray, storage, science, capsys) -> None:
    arguments = ["--storage", str(storage), "--study", "f", "--trials", "2", "--set", "vae.epochs=13"]
    assert main([*arguments, "--set", "search.retries=1"], science) == 0
    numbers = [number for number, _ in calls_of(storage, "f")]
    assert numbers == [0, 1, 1, 2]
    trials = summary_of(storage, "f")["trials"]
    assert trials[1]["state"] == "FAIL"
    assert "non-finite loss" in trials[1]["error"]
    assert "non-finite loss" in capsys.readouterr().out
    assert "RuntimeError" in (storage / "f" / "trials" / "001" / "error.txt").read_text()


@pytest.mark.parametrize("when", ["tune.study_run.fetch_trial", "tune.ledger.Ledger.finish", "tune.ledger.Ledger.propose"])
def test_what_keeps_a_trial_from_being_recorded_ends_the_study_in_its_own_line(
    local_ray, storage, science, capsys, monkeypatch, when
) -> None:
    def away(*arguments) -> None:
        raise InputError("--stages s3://b: does not answer")

    monkeypatch.setattr(when, away)
    assert fails(capsys, storage, science, "--study", "a", "--trials", "2") == "error: --stages s3://b: does not answer"
    monkeypatch.undo()
    assert main(["--storage", str(storage), "--resume"], science) == 0
    assert [trial["number"] for trial in summary_of(storage, "a")["trials"]] == [0, 1]


@pytest.mark.parametrize(
    "ended_by", [InputError("--database: refused"), StorageInternalError("invalid data"), KeyboardInterrupt()]
)
def test_a_database_that_is_away_is_one_line_with_what_goes_on(tmp_path, science, capsys, monkeypatch, ended_by) -> None:
    def away(*arguments) -> None:
        raise StorageInternalError("invalid data") from OperationalError("SELECT", {}, Exception("Connection refused\nreally?"))

    def end(*arguments) -> None:
        monkeypatch.setattr("tune.ledger.Ledger.records", away)
        if isinstance(ended_by, StorageInternalError):
            away()
        raise ended_by

    monkeypatch.setattr("tune.study_run.connect", end)
    line = fails(capsys, tmp_path, science, "--study", "a")
    if isinstance(ended_by, InputError):
        assert line == "error: --database: refused"
    else:
        database = f"--database sqlite:///{tmp_path / 'a' / 'optuna.db'}: is away: Connection refused"
        resume = f"python tune/run.py --study a --resume --storage {tmp_path}"
        assert line == f"error: {database}; go on with: {resume}"


@pytest.mark.parametrize("own", [True, False])
def test_the_first_stages_are_built_while_a_ray_of_its_own_starts(
    storage, science, capsys, monkeypatch, own
) -> None:
    begun = threading.Event()

    def begin(context: StudyContext) -> None:
        begun.set()
        raise RuntimeError("which prepare would meet again")

    def connect(*arguments) -> None:
        assert begun.wait(60 if own else 0.5) == own
        raise InputError("--address: no Ray cluster answers")

    monkeypatch.setattr("tune.study_run.connect", connect)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    address = [] if own else ["--address", "127.0.0.1:1"]
    line = fails(capsys, storage, replace(science, begin=begin), "--study", "a", *address)
    assert line == "error: --address: no Ray cluster answers"


def test_a_study_that_is_taken_over_while_a_trial_is_recorded_says_by_whom(
    local_ray, storage, science, capsys, monkeypatch
) -> None:
    def taken_over(*arguments) -> None:
        raise StudyTakenOver("study a: taken over by another driver; this one has stopped")

    monkeypatch.setattr("tune.ledger.Ledger.finish", taken_over)
    assert main(["--storage", str(storage), "--study", "a", "--trials", "1"], science) == 1
    assert capsys.readouterr().err == "error: study a: taken over by another driver; this one has stopped\n"


def test_bad_input_found_in_a_trial_exits_2(local_ray, storage, science, capsys) -> None:
    line = fails(capsys, storage, science, "--study", "g", "--set", "vae.epochs=14")
    assert line == f"error: weights.pt: not found; go on with: python tune/run.py --study g --resume --storage {storage}"
    assert summary_of(storage, "g")["state"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--trials", "0"], "search.trials"),
        (["--set", "vae.pc_wieght=1"], "vae.pc_weight"),
        (["--set", "vae.group_count=1"], "vae.group_count"),
        (["--set", "synthesis.edit_step=0.99"], "synthesis.edit_step"),
        (["--set", "critic.infonce_batch=1000"], "critic.infonce_batch"),
        (["--set", "search.rule=best"], "search.rule"),
        (["--set", "search.rule=..x:y"], "search.rule"),
        (["--set", "data.path=2020-13-45"], "data.path=2020-13-45"),
        (["--tracking-uri", "http://a..b:5000"], "--tracking-uri"),
        (["--database", "sqlite+pysqlite:////no/such/x.db"], "--database"),
        (["--config", "/no/such.yaml"], "such.yaml"),
        (["--data", "/no/such.h5"], "such.h5"),
        (["--study", "a/b"], "--study"),
        (["--study", "stages"], "stages"),
        (["--resume"], "no unfinished study"),
        (["--resume", "--study", "nothing"], "nothing"),
        (["--tracking-uri", "http://127.0.0.1:9"], "--tracking-uri"),
        (["--seed", "-1"], "--seed"),
        (["--set", "vae.group_rank=12"], "vae.group_rank=12: outside search.group_rank"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, science, capsys, arguments, part) -> None:
    assert part in fails(capsys, tmp_path, science, *arguments)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_mistake_in_the_options_is_one_line(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--trials", "abc"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: argument --trials: invalid int value: 'abc'\n"


def test_a_python_without_the_packages_is_one_line() -> None:
    """As for somebody who copies `python tune/run.py` where no environment is active."""
    bare = subprocess.run([sys.executable, "-S", "-E", "tune/run.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (bare.returncode, bare.stdout) == (2, "")
    assert re.fullmatch(r"error: this Python has no package \w+; begin the command with `uv run python`\n", bare.stderr)


def test_fit_that_fails_before_the_first_trial_is_one_line(local_ray, storage, science, capsys) -> None:
    def prepare(context) -> None:
        raise FitError("fit denoiser: the loss is nan at step 3")

    assert main(["--storage", str(storage), "--study", "n"], replace(science, prepare=prepare)) == 1
    assert capsys.readouterr().err == "error: prepare: fit denoiser: the loss is nan at step 3\n"
    assert summary_of(storage, "n")["state"] == "failed"


def test_more_workers_than_the_cluster_has_room_for_are_refused_before_anything_is_fitted(
    local_ray, storage, science, capsys
) -> None:
    def never(context) -> None:
        raise AssertionError

    line = fails(capsys, storage, replace(science, prepare=never), "--study", "w", "--set", "search.fit_workers=3")
    assert line.endswith("search.fit_workers=3: so many workers with a CPU each cannot be placed; the cluster has 1 × 2 CPU")


def test_storage_that_cannot_be_written(tmp_path, science, capsys) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot be written" in fails(capsys, blocked / "storage", science)


def test_storage_that_is_full_before_there_is_a_study(tmp_path, science, capsys, monkeypatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("tune.study_folder.write_text", full)
    assert fails(capsys, tmp_path, science).endswith(f"--storage {tmp_path}: is full; free some space")


def test_dry_run_prints_the_plan_and_writes_no_study(tmp_path, science, capsys) -> None:
    assert main(["--storage", str(tmp_path), "--study", "p", "--dry-run"], science) == 0
    assert capsys.readouterr().out.startswith("plan of p: SearchSpace")
    assert not (tmp_path / "p").exists()


def test_existing_study_is_never_harmed(local_ray, storage, science, capsys) -> None:
    assert main(["--storage", str(storage), "--study", "s", "--trials", "1"], science) == 0
    before = (storage / "s" / "summary.json").read_bytes()
    assert "--resume" in fails(capsys, storage, science, "--study", "s")
    assert "seed" in fails(capsys, storage, science, "--study", "s", "--resume", "--seed", "9")
    changed = ["--study", "s", "--resume", "--set", "search.group_rank=[1, 4]"]
    line = fails(capsys, storage, science, *changed)
    assert "begun with another search: search.group_rank was [1, 8], is now [1, 4]" in line
    with locked(storage / "s"):
        held = rf"error: --study s: process {os.getpid()} on {socket.gethostname()} since \S+ is running it"
        assert re.fullmatch(held, fails(capsys, storage, science, "--study", "s", "--resume"))
    assert (storage / "s" / "summary.json").read_bytes() == before
    assert read_study(storage, "s").config.search.group_rank == (1, 8)
    with pytest.raises(InputError, match="no unfinished"):
        latest_unfinished(storage)


def test_default_storage(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_storage() == tmp_path / "migvis"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_storage() == Path.home() / ".local/share/migvis"
    assert open_storage(tmp_path / "new").is_dir()
