"""A study that is disturbed: its start, how far it is, and at its end whether anything is missing or there twice."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.fault_bench import Bench, Driver
from tests.tune.conftest import SCIENCE

TIMEOUT = 1800.0
"""Seconds for anything at all, on a machine that does other things besides."""

# The small science of the other tests, a second a trial, which also notes what began when and where.
_NOTED = """
import socket
from dataclasses import replace

def noted(name, function, seconds):
    def run(context, *arguments):
        number = arguments[2] if name == "trial" else None
        with open(context.folder / "noted.txt", "a") as handle:
            handle.write(json.dumps([name, number, socket.gethostname(), time.monotonic()]) + "\\n")
        time.sleep(seconds)
        return function(context, *arguments)
    return run

def finish_and_note(context, selected):
    result = finish(context, selected)
    noted("tracking", lambda context: None, 0.0)(context)
    return result

hooks = replace(hooks, prepare=noted("prepare", prepare, 1.0), run_trial=noted("trial", run_trial, 1.0),
                finish=noted("final", finish_and_note, 1.0))

from tune.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], hooks))
"""


def write_small_science(path: Path) -> Path:
    """A file that runs like tune/run.py, with the small science."""
    path.write_text(SCIENCE + _NOTED)
    return path


@dataclass(frozen=True)
class Audit:
    """What a study left. lost: trials that are not there exactly once in the database, the summary and MLflow alike.

    twice: executions beyond the first of each trial. chosen: parameters of all trials, and the selected one.
    """

    lost: list[str]
    twice: int
    chosen: dict[str, Any]


class Study:
    """A study of `trials` trials on a bench. script: the small science; None: tune/run.py itself, with `options`."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        trials: int,
        *,
        script: Path | None,
        options: tuple[str, ...] = (),
        storage: Path | None = None,
        tracking: Path | None = None,
    ) -> None:
        self.bench, self.name, self.trials, self._script, self._options = bench, name, trials, script, options
        self.storage = storage or bench.storage
        self.folder = self.storage / name
        self._tracking = tracking or self.storage / "mlflow.db"

    def start(self, host: int = 0) -> Driver:
        """A driver, as a user starts it who sees whether the study has begun."""
        how = ("--resume",) if (self.folder / "study.json").exists() else ("--trials", str(self.trials), *self._options)
        arguments = ("--study", self.name, "--storage", str(self.storage), *how)
        return self.bench.driver(*arguments, host=host, script=self._script)

    def finish(self, driver: Driver) -> None:
        """Waits for the driver's good end. Raises RuntimeError with what it printed otherwise."""
        code = driver.wait(TIMEOUT)
        if code:
            raise RuntimeError(f"study {self.name}: exit {code}:\n{driver.output}")

    def _query(self, path: Path, text: str, *values: object) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(text, values).fetchall()

    def finished(self) -> int:
        """Trials recorded as finished, now."""
        with contextlib.suppress(sqlite3.Error):
            rows = self._query(self.folder / "optuna.db", "select count(*) from trials where state in ('COMPLETE', 'PRUNED')")
            return int(rows[0][0])
        return 0

    def noted(self, name: str) -> list[tuple[int | None, str]]:
        """(trial, host) of each beginning of "prepare", "trial", "final" or "tracking"."""
        path = self.folder / "noted.txt"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [(number, host) for kind, number, host, _ in lines if kind == name]

    def wait(self, until: Callable[[], bool], driver: Driver | None = None) -> bool:
        """Waits for something; False where the driver ends before."""
        deadline = time.monotonic() + TIMEOUT
        while not until():
            if driver is not None and driver.ended():
                return until()
            if time.monotonic() > deadline:
                raise RuntimeError(f"study {self.name}: waited in vain: {driver.output if driver else ''}")
            time.sleep(0.05)
        return True

    def wait_for_progress(self, before: int, driver: Driver) -> None:
        """Until one more trial than `before` has finished, or the study has ended."""
        self.wait(lambda: self.finished() > before or driver.ended())

    def audit(self) -> Audit:
        """Compares the database, summary.json and MLflow with each other, and with how often each trial was executed."""
        summary = json.loads((self.folder / "summary.json").read_text())
        in_summary: dict[int, Any] = {}
        for trial in summary["trials"]:
            in_summary.setdefault(trial["number"], []).append(trial)
        in_database = self._in_database()
        in_mlflow = self._in_mlflow()
        lost = [] if summary["state"] == "finished" else [f"the study is {summary['state']}"]
        for number in range(self.trials):
            entries, states, runs = in_summary.get(number, []), in_database[number], in_mlflow.get(number, [])
            places = {"summary": len(entries), "database": len(states), "MLflow": len(runs)}
            if set(places.values()) != {1}:
                lost.append(f"trial {number}: {places}")
            elif (entries[0]["state"], entries[0]["metrics"]["neural_r2"]) != (states[0], runs[0]):
                lost.append(f"trial {number}: {entries[0]['state']} {entries[0]['metrics']} {states} {runs}")
        more = sorted({*in_summary, *in_database, *in_mlflow} - set(range(self.trials)))
        lost += [f"trial {number}: not asked for" for number in more]
        chosen = {str(trial["number"]): trial["params"] for trial in summary["trials"]}
        return Audit(lost, self._executed_twice(), {"trials": chosen, "selected": summary["selected"]})

    def complete_in_mlflow(self) -> bool:
        """Whether each trial has a finished run there."""
        return set(range(self.trials)) <= self._in_mlflow().keys()

    def _executed_twice(self) -> int:
        """By what the small science noted; the real one notes nothing, and there the database's attempts have to do."""
        numbers = [number for number, _ in self.noted("trial")]
        if self._script is None:
            rows = self._query(self.folder / "optuna.db", "select value_json from trial_user_attributes where key = 'number'")
            numbers = [int(number) for (number,) in rows]
        return len(numbers) - len(set(numbers))

    def _in_database(self) -> Counter[int] | dict[int, list[str]]:
        rows = self._query(
            self.folder / "optuna.db",
            "select attributes.value_json, trials.state from trials join trial_user_attributes as attributes"
            " on attributes.trial_id = trials.trial_id and attributes.key = 'number'"
            " where trials.state in ('COMPLETE', 'PRUNED')",
        )
        found: dict[int, list[str]] = {number: [] for number in range(self.trials)}
        for number, state in rows:
            found.setdefault(int(number), []).append(state)
        return found

    def _in_mlflow(self) -> dict[int, list[float]]:
        """neural_r2 of each finished run of a trial, by trial."""
        rows = self._query(
            self._tracking,
            "select trial.value, metric.value from tags as trial join runs on runs.run_uuid = trial.run_uuid"
            " join tags as parent on parent.run_uuid = trial.run_uuid and parent.key = 'mlflow.parentRunId'"
            " join tags as study on study.run_uuid = parent.value and study.key = 'migvis.study' and study.value = ?"
            " join latest_metrics as metric on metric.run_uuid = trial.run_uuid and metric.key = 'neural_r2'"
            " where trial.key = 'migvis.trial' and runs.status = 'FINISHED'",
            self.name,
        )
        found: dict[int, list[float]] = {}
        for number, value in rows:
            found.setdefault(int(number), []).append(value)
        return found


def blank_storage(folder: Path, database: Path) -> Path:
    """A storage folder whose MLflow database is made already: a copy of `database`, which is made if it is missing."""
    from tune.tracking_writer import create_database

    folder.mkdir(parents=True, exist_ok=True)
    create_database(database, folder / "mlflow-artifacts")
    shutil.copyfile(database, folder / "mlflow.db")
    return folder
