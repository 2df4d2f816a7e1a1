"""Drivers in processes of their own: killed, interrupted, or sent to a cluster that is not there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from tune.database import sqlite_url
from tune.ledger import Ledger
from tune.selection import OBJECTIVES
from tune.space import SearchSpace
from tune.study_config import load_study_config


def summary_of(storage: Path, study: str) -> dict:
    return json.loads((storage / study / "summary.json").read_text())


class Driver:
    """`main` with the tests' science, in a process of its own."""

    def __init__(self, script: Path, **environment: str) -> None:
        self.storage, self.script = script.parent, script
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, str(self.script), "--storage", str(self.storage), *arguments]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for_trial(self, process: subprocess.Popen, number: int) -> None:
        path = self.storage / "k" / "calls.txt"
        while not (path.exists() and f"[{number}, " in path.read_text()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)


@pytest.mark.parametrize("option", [True, False], ids=["by option", "by RAY_ADDRESS"])
def test_address_where_no_cluster_is_exits_2_within_seconds(driver_script, option) -> None:
    if option:
        process = Driver(driver_script).start("--study", "a", "--address", "127.0.0.1:9")
    else:
        process = Driver(driver_script, RAY_ADDRESS="127.0.0.1:9").start("--study", "a")
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 2
    assert errors.startswith(f"error: {'--address' if option else 'RAY_ADDRESS'} 127.0.0.1:9: no Ray cluster answers")
    assert errors.count("\n") == 1


def test_a_process_that_lives_on_after_sigterm_says_where_it_is_stuck(tmp_path) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(
        """
import contextlib, os, signal, time
from tune import command_line

def stuck_here():
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    time.sleep(1)

command_line._ENDS_WITHIN = 0.2
command_line.interrupted_by_termination()
stuck_here()
"""
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert "in stuck_here" in ended.stderr


@pytest.mark.slow
def test_a_ray_that_does_not_end_does_not_keep_an_interrupted_study(driver_script) -> None:
    text = driver_script.read_text()
    stuck = "import threading, tune.study_run as run\nrun.disconnect, run._RAY_ENDS_WITHIN = threading.Event().wait, 0.5\n"
    driver_script.write_text(text.replace("from tune.run import main", f"{stuck}from tune.run import main"))
    driver = Driver(driver_script, TRIAL_SECONDS="0.3")
    process = driver.start("--study", "k", "--trials", "50")
    driver.wait_for_trial(process, 1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; go on with: python tune/run.py --study k --resume" in errors


def completed_params(storage: Path, study: str) -> list:
    return [(trial["number"], trial["params"]) for trial in summary_of(storage, study)["trials"]]


@pytest.mark.slow
def test_kill_9_of_the_driver_then_resume(storage, driver_script, science, tmp_path) -> None:
    driver = Driver(driver_script, TRIAL_SECONDS="0.3")
    process = driver.start("--study", "k", "--trials", "5")
    driver.wait_for_trial(process, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = driver.start("--resume")
    output = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert [number for number, _ in completed_params(storage, "k")] == [0, 1, 2, 3, 4]
    calls = [json.loads(line) for line in (storage / "k" / "calls.txt").read_text().splitlines()]
    finished_before = {0, 1, 2}
    assert all(sum(call[0] == number for call in calls) == 1 for number in finished_before)
    assert sum(call[0] == 3 for call in calls) <= 2
    assert {json.dumps(call) for call in calls if call[0] == 3} == {json.dumps([3, dict(completed_params(storage, "k"))[3]])}
    study = optuna.load_study(study_name="k", storage=f"sqlite:///{storage / 'k' / 'optuna.db'}")
    states = [trial.state.name for trial in study.trials]
    assert sum(state in ("COMPLETE", "PRUNED") for state in states) == 5
    assert "RUNNING" not in states
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    assert len(client.search_runs([client.get_experiment_by_name("migvis").experiment_id])) == 6

    # The same study, undisturbed: the ledger and the science without Ray.
    config = load_study_config(None, ["search.trials=5"])
    space = SearchSpace.of(config, 900)
    start = space.start(config.configuration)
    options = {"objectives": OBJECTIVES, "identity": {}, "seed": 0, "trials": 5, "startup_trials": 3}
    ledger = Ledger(sqlite_url(tmp_path / "undisturbed.db"), "u", space=space, start=start, **options)
    expected = []
    while (proposal := ledger.propose()) is not None:
        expected.append((proposal.number, proposal.params))
        elsewhere = CallsElsewhere(tmp_path)
        result = science.run_trial(elsewhere, config.configuration, proposal.params, proposal.number, proposal.vae_only)
        ledger.finish(proposal.number, result)
    assert completed_params(storage, "k") == expected


class CallsElsewhere:
    """A context of its own for trials that run beside the study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def trial_folder(self, number: int) -> Path:
        return self.folder


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_while_the_data_set_is_made_and_ray_is_imported_exits_130(tmp_path, driver_script, how) -> None:
    making = tmp_path / "making"
    waits = f"""
def open_data(config, storage):
    while "ray" not in sys.modules:
        time.sleep(0.05)
    Path({str(making)!r}).touch()
    time.sleep(600)

hooks = Hooks(open_data, prepare, run_trial, finish, plan=None)
"""
    driver_script.write_text(driver_script.read_text().replace("\nfrom tune.run", f"{waits}\nfrom tune.run"))
    process = Driver(driver_script).start("--study", "i")
    while not making.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(how)
    _, errors = process.communicate(timeout=250)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert not (tmp_path / "i").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 4)])
def test_interrupt_exits_130_with_the_line_that_resumes(storage, driver_script, how, times) -> None:
    driver = Driver(driver_script, TRIAL_SECONDS="1")
    process = driver.start("--study", "k", "--trials", "5")
    driver.wait_for_trial(process, 1)
    process.send_signal(how)
    for _ in range(times - 1):  # by somebody who cannot wait
        time.sleep(0.4)
        process.send_signal(how)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 130
    assert errors.strip() == f"interrupted; go on with: python tune/run.py --study k --resume --storage {storage}"
    assert summary_of(storage, "k")["state"] == "interrupted"


ELSEWHERE = """
import tune.leases
tune.leases._process_namespace = lambda: "another host"
"""


@pytest.mark.slow
def test_driver_that_stood_still_while_another_took_over_writes_nothing_more(storage, driver_script) -> None:
    driver = Driver(driver_script, TRIAL_SECONDS="1")
    stopped = driver.start("--study", "k", "--trials", "4")
    started = [stopped]
    try:
        driver.wait_for_trial(stopped, 1)
        stopped.send_signal(signal.SIGSTOP)
        second = driver.start("--study", "k", "--resume")
        _, errors = second.communicate(timeout=120)
        assert second.returncode == 2
        assert errors.startswith(f"error: --study k: process {stopped.pid} on {socket.gethostname()} since ")
        assert errors.count("\n") == 1

        # As from another host, where only the lease's counter tells that the first driver does nothing.
        elsewhere = storage / "elsewhere.py"
        elsewhere.write_text(ELSEWHERE + driver_script.read_text())
        successor = Driver(elsewhere, TRIAL_SECONDS="1").start("--study", "k", "--resume")
        started.append(successor)
        driver.wait_for_trial(successor, 2)
        stopped.send_signal(signal.SIGCONT)
        _, errors = stopped.communicate(timeout=120)
        line = f"error: study k: taken over by process {successor.pid} on {socket.gethostname()} since "
        assert (stopped.returncode, errors[: len(line)], errors.count("\n")) == (1, line, 1)
        output = successor.communicate(timeout=300)
        assert successor.returncode == 0, output
    finally:
        for process in started:
            process.kill()
    study = optuna.load_study(study_name="k", storage=f"sqlite:///{storage / 'k' / 'optuna.db'}")
    states = [trial.state.name for trial in study.trials]
    assert sum(state in ("COMPLETE", "PRUNED") for state in states) == 4
    assert "RUNNING" not in states
    summary = summary_of(storage, "k")
    assert (summary["state"], [trial["number"] for trial in summary["trials"]]) == ("finished", [0, 1, 2, 3])
    assert not list((storage / "k").glob("tune*"))
