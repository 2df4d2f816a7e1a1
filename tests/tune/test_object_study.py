"""Whole studies whose stages are on an object store: files come back, secrets go nowhere, a full bucket harms nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import services

pytestmark = pytest.mark.slow

# Small, real functions of the parameters that keep what they make in the stage store. Text, because drivers run it.
SCIENCE = """
import os, sys, time
from pathlib import Path
from PIL import Image
from tune.context import DataSummary, Hooks
from tune.pipeline import Stage
from tune.runner import Runner
from tune.trial_result import FinalResult, Prepared, TrialResult

def open_data(config, storage):
    path = storage / "data.h5"
    path.write_bytes(b"recordings")
    return DataSummary(path, "digest", 900)

def stage(kind, value, size=300_000, inputs=None):
    def build(context):
        (context.folder / "values").write_bytes(bytes([value % 256]) * size)
    return Stage(kind, {"value": value}, build, inputs=inputs or {})

def prepare(context):
    runner = Runner(context, "prepare", "prepare")
    path = runner(stage("denoiser", 1)).path
    context.reporter("prepare").line(f"prepared in {path}")
    return Prepared(runner.records(), {"denoiser": path})

def run_trial(context, configuration, params, number, vae_only=False):
    assert context.data_path.read_bytes() == b"recordings"
    runner = Runner(context, f"trial {number}", f"trial-{number:03d}")
    path = runner(stage("vae", 10 + number, inputs={"denoiser": stage("denoiser", 1)})).path
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"{number}\\n")
    time.sleep(float(os.environ.get("TRIAL_SECONDS", "0")))
    while number >= 2 and "GATE" in os.environ and not Path(os.environ["GATE"]).exists():
        time.sleep(0.1)
    folder = context.trial_folder(number)
    Image.new("L", (8, 8), number).save(folder / "edits.png")
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "vae.safetensors").write_bytes(path.joinpath("values").read_bytes()[:10])
    metrics = {"neural_r2": 0.9, "group_mig": 1 / params["group_rank"], "selectivity": params["edit_step"], "realism": 0.5}
    return TrialResult(metrics, constraint=-1.0, images={"edits": folder / "edits.png"},
                       artifacts={"models": folder / "models"}, stages=runner.records(), seconds=runner.seconds())

def finish(context, selected):
    bundle = context.folder / "bundle"
    bundle.mkdir(exist_ok=True)
    (bundle / "configuration.json").write_text("{}")
    runner = Runner(context, "final", "final")
    runner(stage("gallery", selected.trial))
    return FinalResult({"neural_r2": 0.88}, bundle, stages=runner.records())

hooks = Hooks(open_data, prepare, run_trial, finish, plan=lambda context, space: "plan", expected_seconds={})

if __name__ == "__main__":
    from tune.run import main
    sys.exit(main(sys.argv[1:], hooks))
"""


class Drivers:
    """Drivers of studies, each a process, and a Ray with the workers of them all; each host has a cache of its own."""

    def __init__(self, folder: Path, storage: Path, **environment: str) -> None:
        self.folder, self.storage = folder, storage
        self.calls = folder / "calls.txt"
        self.script = folder / "driver.py"
        self.script.write_text(SCIENCE)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", **environment}
        self.address = ""

    @contextmanager
    def workers(self, **environment: str) -> Iterator[None]:
        """Starts Ray with this environment, and ends it."""
        own = {"CALLS": str(self.calls), "MIGVIS_CACHE": str(self.folder / "cache-workers"), "RAY_USAGE_STATS_ENABLED": "0"}
        for attempt in range(5):
            port = services.free_port()
            with tempfile.TemporaryDirectory(prefix="mr", dir="/tmp", ignore_cleanup_errors=True) as short:
                command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
                command += ["--node-ip-address=127.0.0.1", f"--temp-dir={short}", "--include-dashboard=false"]
                command += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000"]
                log = self.folder / f"ray-{attempt}.log"
                with services.process(command, log, env={**self.environment, **own, **environment}) as ray:

                    def up(ray: subprocess.Popen = ray, log: Path = log) -> bool:
                        return ray.poll() is not None or "Ray runtime started" in log.read_text()

                    services.wait_until(up, "Ray")
                    if ray.poll() is not None:
                        continue  # a busy machine is too slow for its own patience of 30 s
                    self.address = f"127.0.0.1:{port}"
                    yield
                    return
        raise RuntimeError("Ray did not start")

    def start(self, *arguments: str, host: str = "a", **environment: str) -> subprocess.Popen:
        command = [sys.executable, str(self.script), "--storage", str(self.storage), "--tracking-uri", self.tracking]
        own = {**self.environment, "MIGVIS_CACHE": str(self.folder / f"cache-{host}"), **environment}
        words = [*command, "--address", self.address, *arguments]
        return subprocess.Popen(words, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def tracking(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def run(self, *arguments: str, host: str = "a", **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, host=host, **environment)
        try:
            output, errors = process.communicate(timeout=1200)
        finally:
            process.kill()
        return process.returncode, output, errors

    def summary(self, study: str) -> dict:
        return json.loads((self.storage / study / "summary.json").read_text())


@pytest.fixture
def tracked(blank_mlflow: Path, tmp_path: Path) -> Path:
    """A folder whose MLflow database exists already."""
    (tmp_path / "mlflow.db").write_bytes(blank_mlflow.read_bytes())
    return tmp_path


def everything_in(folder: Path) -> bytes:
    """The bytes of all files in a folder."""
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_study_on_s3_and_postgresql_killed_and_resumed_elsewhere(
    tracked: Path, object_store: services.ObjectStore, postgres: services.Postgres
) -> None:
    bucket, database = object_store.create_bucket(), postgres.uri(postgres.create_database())
    drivers = Drivers(tracked, tracked / "storage", **object_store.environment)
    uri, gate = f"s3://{bucket}/migvis", tracked / "gate"
    given = ["--study", "s", "--trials", "4", "--stages", uri, "--database", database]
    with drivers.workers(PGPASSWORD=postgres.password, GATE=str(gate)):
        process = drivers.start(*given)
        deadline = time.monotonic() + 600
        while not (drivers.calls.exists() and "2" in drivers.calls.read_text().split()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        second = drivers.run(*given, "--resume", host="b")
        assert second[0] == 2, second
        assert second[2].startswith(f"error: --study s: process {process.pid} on "), second
        process.send_signal(signal.SIGKILL)
        process.communicate()
        gate.touch()
        # What was said is remembered, but for the password.
        assert drivers.run("--resume", host="b")[0] == 2
        code, output, errors = drivers.run("--resume", host="b", PGPASSWORD=postgres.password)
        assert code == 0, (output, errors)
        summary = drivers.summary("s")
        assert [(trial["number"], trial["state"]) for trial in summary["trials"]] == [(n, "COMPLETE") for n in range(4)]
        calls = drivers.calls.read_text().split()
        assert sorted(set(calls)) == ["0", "1", "2", "3"]
        assert [calls.count(number) for number in "013"] == [1, 1, 1]
        fitted = {stage["kind"]: stage["fitted"] for stage in summary["stages"]}
        assert fitted["denoiser"] == 1
        for number in range(4):
            folder = drivers.storage / "s" / "trials" / f"{number:03d}"
            assert (folder / "edits.png").is_file()
            assert (folder / "models" / "vae.safetensors").read_bytes() == bytes([10 + number]) * 10
            assert (drivers.storage / "s" / "uses" / f"trial-{number:03d}.json").is_file()
        import mlflow

        client = mlflow.MlflowClient(drivers.tracking)
        found = client.search_runs([client.get_experiment_by_name("migvis").experiment_id])
        runs = [run for run in found if "migvis.trial" in run.data.tags]
        assert len(runs) == 4
        assert all([found.path for found in client.list_artifacts(run.info.run_id, "models")] for run in runs)
        assert object_store.keys(bucket, "migvis/vae/")
        assert not [key for key in object_store.keys(bucket) if "/.partial/" in key and not key.endswith("/")]
        secrets = (object_store.secret_key.encode(), postgres.password.encode())
        told = everything_in(tracked / "storage") + everything_in(tracked / "mlflow-artifacts") + (output + errors).encode()
        told += drivers.tracking.encode() + (tracked / "mlflow.db").read_bytes()
        told += b"".join(
            object_store.client().get_object(Bucket=bucket, Key=key)["Body"].read() for key in object_store.keys(bucket)
        )
        assert not [secret for secret in secrets if secret in told]

        # Another study of the database shares its stages, on a host that has none; its name is taken.
        other = Drivers(tracked, tracked / "other storage", **object_store.environment)
        other.address = drivers.address
        again = ["--trials", "1", "--stages", uri, "--database", database]
        code, output, errors = other.run("--study", "t", *again, host="c")
        assert code == 0, (output, errors)
        assert {stage["kind"]: stage["fitted"] for stage in other.summary("t")["stages"]}["denoiser"] == 0
        code, output, errors = other.run("--study", "s", *again, host="c")
        assert (code, errors.count("\n")) == (2, 1), errors
        assert "exists in --database" in errors
        assert postgres.password not in errors


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, which only root can mount: without it nothing can be filled up for real."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", str(folder)], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_bucket_that_is_full_ends_the_study_in_one_line_and_it_goes_on_when_there_is_room(tracked: Path, small: Path) -> None:
    drivers = Drivers(tracked, tracked / "storage")
    uri = (small / "bucket").as_uri()
    (small / "others").write_bytes(bytes(2_500_000))
    with drivers.workers():
        code, output, errors = drivers.run("--study", "s", "--trials", "6", "--stages", uri)
    assert code == 2, output
    (line,) = errors.splitlines()
    refused, _, resume = line.partition("; go on with: ")
    assert refused == f"error: --stages {uri}: No space left on device"
    assert resume.startswith("python tune/run.py --study s --resume --storage ")
    before = drivers.summary("s")
    finished = [trial["number"] for trial in before["trials"] if trial["state"] == "COMPLETE"]
    assert 1 <= len(finished) < 6
    (small / "others").unlink()
    with drivers.workers():
        code, output, errors = drivers.run("--resume")
    assert code == 0, (output, errors)
    trials = drivers.summary("s")["trials"]
    assert [(trial["number"], trial["state"]) for trial in trials] == [(number, "COMPLETE") for number in range(6)]
    assert [trials[number]["params"] for number in finished] == [before["trials"][number]["params"] for number in finished]
    calls = drivers.calls.read_text().split()
    assert [calls.count(str(number)) for number in range(6)] == [1] * 6
    assert all((drivers.storage / "s" / "trials" / f"{number:03d}" / "edits.png").is_file() for number in range(6))


def test_a_damaged_object_is_fitted_again_and_told_in_the_terminal_and_in_the_summary(tracked: Path) -> None:
    drivers = Drivers(tracked, tracked / "storage")
    uri = (tracked / "bucket").as_uri()
    arguments = ["--stages", uri, "--trials", "1"]
    with drivers.workers():
        assert drivers.run("--study", "s", *arguments)[0] == 0
    (damaged,) = [path for path in (tracked / "bucket" / "vae").rglob("*") if path.is_file() and path.suffix != ".json"]
    content = bytearray(damaged.read_bytes())
    content[7] ^= 4
    damaged.write_bytes(content)
    with drivers.workers(MIGVIS_CACHE=str(tracked / "cache of a new host")):
        code, output, errors = drivers.run("--study", "t", *arguments)
    assert code == 0, (output, errors)
    (note,) = drivers.summary("t")["notes"][-1:]
    assert note.startswith(f"a stored vae was damaged: {uri}/vae/")
    assert "does not match its digest" in note
    assert f"note: {note}" in output
    assert {stage["kind"]: stage["fitted"] for stage in drivers.summary("t")["stages"]}["vae"] == 1
    assert (tracked / "storage" / "t" / "trials" / "000" / "models" / "vae.safetensors").read_bytes() == bytes([10]) * 10
