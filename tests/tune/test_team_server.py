"""A study, and several writers at once, on the team's server: real PostgreSQL, a real S3-compatible store, access control."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services import free_port, wait_until
from tests.team_server import LAB_HOST, SCRIPT, TeamServer, clean_environment

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 8


@pytest.fixture(scope="module")
def team(postgres, object_store, tmp_path_factory) -> Iterator[TeamServer]:
    server = TeamServer(postgres, object_store, tmp_path_factory.mktemp("team"))
    with server.running():
        server.add_user()
        yield server


@pytest.fixture
def client(team, monkeypatch) -> Any:
    """MLflow's client as the user of the server has it."""
    from tune.tracking_writer import import_mlflow

    for name, value in team.client_environment.items():
        monkeypatch.setenv(name, value)
    return import_mlflow().MlflowClient(team.uri)


@contextmanager
def driver(script: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`main` with the science of the tests in a process of its own; it and its Ray are ended afterwards."""
    child = subprocess.Popen(
        [sys.executable, str(script), "--storage", str(script.parent), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**clean_environment(), **environment},
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()  # as Ctrl-C: Ray is shut down
            try:
                child.wait(120)
            except subprocess.TimeoutExpired:
                child.kill()


def run_driver(script: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code and everything that was printed."""
    with driver(script, *arguments, **environment) as child:
        output = child.communicate(timeout=1200)[0]
    return child.returncode, output


def trials_of(storage: Path, study: str) -> dict[int, dict[str, Any]]:
    """The trials of summary.json that are over, by number."""
    path = storage / study / "summary.json"
    trials = json.loads(path.read_text())["trials"] if path.exists() else []
    return {trial["number"]: trial for trial in trials if trial["state"] in ("COMPLETE", "PRUNED")}


def assert_arrived_once(client: Any, storage: Path, study: str) -> None:
    """Every trial of the study is one run with the trial's own metrics, each one point, and its picture."""
    (experiment,) = [one.experiment_id for one in client.search_experiments() if one.name == "migvis"]
    (parent,) = client.search_runs([experiment], f"tags.`migvis.study` = '{study}' and tags.`migvis.kind` = 'study'")
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=500)
    expected = trials_of(storage, study)
    assert len(expected) == TRIALS
    assert Counter(int(run.data.tags["migvis.trial"]) for run in runs) == Counter(list(expected))
    assert {parent.info.status, *(run.info.status for run in runs)} == {"FINISHED"}
    for run in runs:
        trial = expected[int(run.data.tags["migvis.trial"])]
        assert trial["mlflow_run_id"] == run.info.run_id
        for name, value in trial["metrics"].items():
            assert [point.value for point in client.get_metric_history(run.info.run_id, name)] == [value]
        if trial["state"] == "COMPLETE":
            assert [file.path for file in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/edits.png"]


def files_with(folder: Path, *words: str) -> list[Path]:
    """The files below a folder that contain one of the words."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(word.encode() in path.read_bytes() for word in words)]


@pytest.mark.slow
def test_a_study_arrives_whole_and_its_password_nowhere(team, client, driver_script) -> None:
    storage = driver_script.parent
    code, output = run_driver(driver_script, "--study", "whole", "--trials", str(TRIALS), **team.client_environment)
    assert code == 0, output
    assert "WARNING: http" not in output
    assert f"open {team.uri}" in output
    assert_arrived_once(client, storage, "whole")
    trials = trials_of(storage, "whole")
    # In the bucket, below the folder that BUCKET names, as only the server has its keys.
    kept = [key for key in team.store.keys(team.bucket, "runs/") if key.endswith("/pictures/edits.png")]
    assert len(kept) == sum(trial["state"] == "COMPLETE" for trial in trials.values())
    assert [version.run_id for version in client.search_model_versions("name = 'migvis'")]
    (rows,) = team.postgres.query(team.database, "SELECT count(*) FROM runs WHERE name LIKE 'whole%'")[0]
    assert rows == TRIALS + 1
    # One database holds the runs and the users.
    assert team.postgres.query(team.database, "SELECT username, is_admin FROM users ORDER BY 1") == [
        ("admin", True),
        (team.user, False),
    ]
    dump = subprocess.run(
        ["pg_dump", team.database], env={**os.environ, **team.postgres.environment}, capture_output=True, check=True
    ).stdout
    assert b"migvis.study" in dump
    for secret in (team.password, team.admin_password, team.store.secret_key, team.postgres.password):
        assert secret not in output
        assert secret.encode() not in dump
        assert files_with(storage, secret) == []
        assert files_with(team.folder, secret) == []  # the server's log


@pytest.mark.slow
def test_credentials_in_the_uri_work_and_are_kept_nowhere(team, client, driver_script) -> None:
    storage, uri = driver_script.parent, team.uri.replace("http://", f"http://{team.user}:{team.password}@")
    code, output = run_driver(driver_script, "--study", "inline", "--trials", str(TRIALS), "--tracking-uri", uri)
    assert code == 0, output
    assert_arrived_once(client, storage, "inline")
    assert team.password not in output
    assert files_with(storage, team.password) == []


@pytest.mark.slow
def test_without_the_right_password_no_study_begins(team, driver_script) -> None:
    storage = driver_script.parent
    before = sorted(storage.iterdir())
    for environment, message in (
        ({}, "the server asks who you are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ({**team.client_environment, "MLFLOW_TRACKING_PASSWORD": "wrong-Password"}, "the server does not accept this user"),
    ):
        code, output = run_driver(driver_script, "--study", "refused", "--tracking-uri", team.uri, **environment)
        assert code == 2, output
        assert output.startswith("error: ")
        assert message in output
        assert output.count("\n") == 1
        assert "wrong-Password" not in output
    assert sorted(storage.iterdir()) == before


@pytest.mark.slow
def test_what_the_server_refuses(team) -> None:
    admin, user = ("admin", team.admin_password), (team.user, team.password)
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    # Only the health of the server, and nothing in it, is for everybody.
    assert team.request("/health") == (200, "OK")
    for path in ("/", search, "/api/2.0/mlflow-artifacts/artifacts", "/version", "/signup"):
        assert team.request(path)[0] == 401, path
    assert team.request(search, user)[0] == 200
    # The password that older versions of MLflow shipped, and that of another user.
    assert team.request(search, ("admin", "password1234"))[0] == 401
    assert team.request(search, ("admin", team.password))[0] == 401
    # A host name that was pointed here, and a page of another site.
    assert team.request(search, user, {"Host": "evil.example"})[0] == 403
    assert team.request(search, user, {"Host": LAB_HOST})[0] == 200
    body = {"name": "from a page"}
    assert team.request("/api/2.0/mlflow/experiments/create", user, {"Origin": "http://evil.example"}, body)[0] == 403
    assert team.request("/api/2.0/mlflow/experiments/create", user, {"Origin": f"http://{LAB_HOST}"}, body)[0] == 200
    # Who is no administrator makes no users, and deletes no experiment of another.
    new = {"username": "eve", "password": "eve-has-a-long-one"}
    assert team.request("/api/2.0/mlflow/users/create", user, body=new)[0] == 403
    status, answer = team.request("/api/2.0/mlflow/experiments/create", admin, body={"name": "the administrator's"})
    assert status == 200
    mine = {"experiment_id": json.loads(answer)["experiment_id"]}
    assert team.request("/api/2.0/mlflow/runs/create", user, body=mine)[0] == 200
    assert team.request("/api/2.0/mlflow/experiments/delete", user, body=mine)[0] == 403
    # Only this machine reaches it: each socket that listens on its port has the loopback address.
    sockets = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = {words[1] for words in sockets if words[3] == "0A" and words[1].endswith(f":{team.port:04X}")}
    assert listening == {f"0100007F:{team.port:04X}"}


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from PIL import Image
from tune.trial_record import TrialRecord
from tune.tracking import Tracker
from tune.tracking_writer import Writer
from tune.trial_result import TrialResult

folder, name, uri = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
memory = {}
writer = Writer(uri, None, name, study_id=name, seed=0, tags={}, params={"vae.epochs": 1}, recall=memory.get,
                remember=memory.__setitem__, experiment="many writers")
tracker = Tracker(writer)
tracker.start()
for number in range(20):
    picture = folder / f"{name}-{number}.png"
    Image.new("L", (8, 8), number).save(picture)
    images = {"edits": picture} if number % 5 == 0 else {}
    result = TrialResult({"value": number / 7}, curves={"loss": [(step, 1.0 / (step + 1)) for step in range(50)]}, images=images)
    record = TrialRecord(number, "COMPLETE", {"pc_weight": 1e-3}, result.to_json(), -0.1, 0, None, 1.0)
    tracker.trial_started(record)
    tracker.trial_ended(record)
tracker.study_ended("FINISHED")
problems = tracker.close(1500)
print("\\n".join(problems))
sys.exit(1 if problems else 0)
"""


@pytest.mark.slow
def test_six_writers_at_once_lose_nothing_and_double_nothing(team, client, tmp_path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(_WRITER)
    environment = {**clean_environment(), **team.client_environment, "OMP_NUM_THREADS": "1"}
    names = [f"writer-{index}" for index in range(6)]
    processes = [
        subprocess.Popen(
            [sys.executable, script, tmp_path, name, team.uri, ROOT], env=environment, stdout=subprocess.PIPE, text=True
        )
        for name in names
    ]
    try:
        outputs = [child.communicate(timeout=1800)[0] for child in processes]
    finally:
        for child in processes:
            child.kill()
    assert [child.returncode for child in processes] == [0] * 6, outputs
    # All began at once where there was no experiment yet.
    (experiment,) = [one for one in client.search_experiments() if one.name == "many writers"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = {run.info.run_id: run.data.tags["migvis.study"] for run in runs if "migvis.kind" in run.data.tags}
    assert sorted(parents.values()) == names
    children = [run for run in runs if run.info.run_id not in parents]
    found = Counter((parents[run.data.tags["mlflow.parentRunId"]], int(run.data.tags["migvis.trial"])) for run in children)
    assert found == Counter((name, number) for name in names for number in range(20))
    for run in children:
        assert run.data.metrics["value"] == int(run.data.tags["migvis.trial"]) / 7
        assert run.info.status == "FINISHED"
    points = team.postgres.query(
        team.database,
        "SELECT m.run_uuid, count(*), count(DISTINCT step) FROM metrics m JOIN runs r USING (run_uuid)"
        f" WHERE key = 'loss' AND r.experiment_id = {experiment.experiment_id} GROUP BY 1",
    )
    assert {(total, steps) for _, total, steps in points} == {(50, 50)}
    assert len(points) == 120
    pictures = [key for key in team.store.keys(team.bucket, f"runs/{experiment.experiment_id}/") if "/pictures/" in key]
    assert len(pictures) == 6 * 4


def _progressed(storage: Path, study: str, trials: int) -> bool:
    return len(trials_of(storage, study)) >= trials


@pytest.mark.slow
def test_a_backup_is_restored_and_upgraded(team, client, tmp_path) -> None:
    client.set_experiment_tag("0", "kept", "in the backup")
    environment = {**clean_environment(), **team.server_environment}
    dump, restored = tmp_path / "migvis.dump", team.postgres.create_database()
    subprocess.run(["pg_dump", "--format", "custom", "--file", dump], env=environment, check=True)
    # Again and again: a restore replaces what is there.
    for _ in range(2):
        words = ["pg_restore", "--clean", "--if-exists", "--exit-on-error", "--dbname", restored, dump]
        subprocess.run(words, env=environment, check=True)
    done = subprocess.run(
        ["bash", SCRIPT, "upgrade"], env={**environment, "PGDATABASE": restored}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for table in ("runs", "metrics", "tags", "experiment_tags", "users", "alembic_version", "alembic_version_auth"):
        statement = f"SELECT count(*) FROM {table}"
        assert team.postgres.query(restored, statement) == team.postgres.query(team.database, statement), table
    assert team.postgres.query(restored, "SELECT value FROM experiment_tags WHERE key = 'kept'") == [("in the backup",)]


@pytest.mark.slow
def test_a_server_that_hangs_makes_metrics_late_and_no_study_wait(team, client, driver_script) -> None:
    storage = driver_script.parent
    arguments = ("--study", "hung", "--trials", str(TRIALS))
    with driver(driver_script, *arguments, TRIAL_SECONDS="1", **team.client_environment) as child:
        wait_until(lambda: child.poll() is not None or _progressed(storage, "hung", 2), "two trials", 900)
        team.signal(signal.SIGSTOP)
        try:
            # The study goes on to its last trial, while no call to MLflow is answered.
            wait_until(lambda: child.poll() is not None or _progressed(storage, "hung", TRIALS), "all trials", 900)
        finally:
            team.signal(signal.SIGCONT)
        output = child.communicate(timeout=900)[0]
    assert child.returncode == 0, output
    assert "WARNING: http" not in output
    assert_arrived_once(client, storage, "hung")


@pytest.mark.slow
def test_resume_sends_what_a_dead_server_did_not_get(postgres, object_store, driver_script, tmp_path, monkeypatch) -> None:
    from tune.tracking_writer import import_mlflow

    storage = driver_script.parent
    team = TeamServer(postgres, object_store, tmp_path)
    for name, value in team.client_environment.items():
        monkeypatch.setenv(name, value)
    arguments = ("--study", "left", "--trials", str(TRIALS))
    with team.running():
        team.add_user()
        with driver(driver_script, *arguments, TRIAL_SECONDS="1", **team.client_environment) as child:
            wait_until(lambda: child.poll() is not None or _progressed(storage, "left", 2), "two trials", 900)
            team.signal(signal.SIGKILL)
            output = child.communicate(timeout=900)[0]
    assert child.returncode == 0, output
    assert re.search(r"WARNING: http://127.0.0.1:\d+: not everything has arrived after 60 s .* --resume", output)
    with team.running():
        code, output = run_driver(driver_script, "--study", "left", "--resume", **team.client_environment)
        assert code == 0, output
        assert "WARNING: http" not in output
        assert_arrived_once(import_mlflow().MlflowClient(team.uri), storage, "left")


def start(**changes: str | None) -> tuple[int, str]:
    """serve_team.sh with settings that lack only what `changes` sets; its exit code and what it printed."""
    settings = {"PGHOST": "127.0.0.1", "PGPORT": str(free_port()), "PGDATABASE": "d", "PGUSER": "u", "PGPASSWORD": "pg-secret"}
    settings |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "s3-secret", "BUCKET": "s3://b"}
    settings |= {"TRACKING_URL": "https://mlflow.lab.example", "MLFLOW_AUTH_ADMIN_PASSWORD": "admin-secret"}
    given = {**settings, **changes}
    environment = {**clean_environment(), **{name: value for name, value in given.items() if value is not None}}
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, timeout=250)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PGPASSWORD": None}, "PGPASSWORD is not set"),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": ""}, "MLFLOW_AUTH_ADMIN_PASSWORD is not set"),
        ({"BUCKET": "/srv/artifacts"}, "BUCKET: expected s3://NAME"),
        ({"TRACKING_URL": "mlflow.lab.example"}, "TRACKING_URL: expected http"),
        ({"TRACKING_URL": "https://*"}, "TRACKING_URL: expected http"),
        ({}, "PostgreSQL at 127.0.0.1: "),
    ],
)
def test_a_missing_or_wrong_setting_is_one_line(changes, message) -> None:
    code, output = start(**changes)
    assert code == 2, output
    assert output.startswith(f"error: {message}"), output
    assert output.count("\n") == 1
    assert "secret" not in output


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_one_line(postgres, object_store) -> None:
    settings = {**postgres.environment, **object_store.environment, "PGDATABASE": postgres.create_database()}
    code, output = start(**settings, BUCKET="s3://no-such-bucket")
    assert (code, output.count("\n")) == (2, 1), output
    assert output.startswith("error: BUCKET s3://no-such-bucket: ")


@pytest.mark.slow
def test_the_password_that_mlflow_once_shipped_is_refused(postgres, object_store) -> None:
    settings = {**postgres.environment, **object_store.environment, "PGDATABASE": postgres.create_database()}
    settings |= {"BUCKET": f"s3://{object_store.create_bucket()}", "MLFLOW_AUTH_ADMIN_PASSWORD": "password1234"}
    code, output = start(**settings)
    assert code != 0
    assert "insecure default password" in output


def test_the_container_file_sets_all_that_the_script_needs() -> None:
    services = yaml.safe_load((SCRIPT.parent / "compose.yaml").read_text())["services"]
    needed = {name for line in SCRIPT.read_text().splitlines() if line.startswith("need ") for name in line.split()[1:]}
    assert {"PGPASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD"} < needed
    assert needed <= set(services["tracking"]["environment"])
    # No password has a default, and only the tracking server has a port outside.
    for service in services.values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or re.fullmatch(r"\$\{\w+:\?is not set\}", value)
    assert [name for name, service in services.items() if "ports" in service] == ["tracking"]
    copied = re.findall(r"^COPY (.+) \./$", (SCRIPT.parent / "Dockerfile").read_text(), re.MULTILINE)
    assert all((SCRIPT.parent / name).is_file() for names in copied for name in names.split())
