"""The faults: each disturbs one study at a moment that chance chooses, and recovers as a user would."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.fault_bench import Bench, Driver
from tests.cluster.fault_study import TIMEOUT, Study, blank_storage

KILLS_PER_STUDY = 4
TRIALS = 8
# Where a driver is killed, by how often; the search takes the most of a study.
_PHASES = ("start", "prepare", "search", "search", "search", "search", "final", "tracking")


@dataclass
class Disturbed:
    """A study and what was done to it. seconds: from each fault to the next progress. moments: for people to read."""

    study: Study
    times: int = 0
    seconds: list[float] = field(default_factory=list)
    moments: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Chance:
    """What a fault is given. name: of its study, at most. concurrent: trials at once."""

    bench: Bench
    script: Path
    name: str
    random: random.Random
    concurrent: int = 1

    def study(self, more_options: tuple[str, ...] = (), **more: Any) -> Study:
        # The default sampler also weighs seconds, and so what a fault makes slower.
        sets = (f"search.concurrent_trials={self.concurrent}", "search.threads_per_trial=1", "search.sampler=tpe")
        options = (*(word for text in sets for word in ("--set", text)), *more_options)
        return Study(self.bench, self.name, TRIALS, script=self.script, options=options, **more)

    def pause(self, most: float) -> None:
        time.sleep(self.random.uniform(0.0, most))


def _some_trial(chance: Chance, study: Study, driver: Driver, last: int = TRIALS - 2) -> None:
    """Waits until a trial that chance chooses has begun, and for a part of it."""
    begun, least = len(study.noted("trial")), study.finished()
    wanted = begun + 1 + chance.random.randrange(max(1, last - least))
    study.wait(lambda: len(study.noted("trial")) >= wanted, driver)
    chance.pause(2.0)


def _recover(disturbed: Disturbed, since: float, before: int, driver: Driver) -> None:
    disturbed.study.wait_for_progress(before, driver)
    disturbed.seconds.append(time.monotonic() - since)


def driver(chance: Chance, host: Callable[[int], int] = lambda kill: 0) -> Disturbed:
    """kill -9 of the driver, several times in one study; resumed on the host that `host` names."""
    disturbed = Disturbed(study := chance.study())
    phases = sorted(chance.random.sample(_PHASES, KILLS_PER_STUDY), key=("start", "prepare", "search", "final", "tracking").index)
    running = study.start()
    for kill, phase in enumerate(phases):
        if phase == "start":
            if chance.random.random() < 0.5:
                study.wait((study.folder / "driver").exists, running)
            chance.pause(5.0)
        elif phase == "search":
            _some_trial(chance, study, running, TRIALS // 2)
        else:
            seen = len(study.noted(phase))
            study.wait(lambda phase=phase, seen=seen: len(study.noted(phase)) > seen, running)
            chance.pause(1.5)
        if running.ended():
            break
        since, before = time.monotonic(), study.finished()
        running.kill()
        disturbed.times += 1
        disturbed.moments.append(f"{phase}, {before} finished")
        running = study.start(host(kill))
        _recover(disturbed, since, before, running)
    study.finish(running)
    return disturbed


def elsewhere(chance: Chance) -> Disturbed:
    """kill -9 of the driver; resumed on the next host, which can only see that the holder's counter stands still."""
    return driver(chance, host=lambda kill: (kill + 1) % 3)


def clocks(chance: Chance) -> Disturbed:
    """As `elsewhere`, on hosts whose clocks differ by an hour and more."""
    bench = chance.bench
    bench.clocks.update({1: "+1h", 2: "-1h"})
    try:
        bench.start_cluster()
        return elsewhere(chance)
    finally:
        bench.clocks.clear()
        bench.start_cluster()


def worker_host(chance: Chance) -> Disturbed:
    """kill -9 of all that runs on a worker host, Ray above all, while it runs a trial; nobody restarts anything."""
    disturbed = Disturbed(study := chance.study())
    running = study.start()
    victims = {chance.bench.hosts.name(host): host for host in (1, 2)}

    def there() -> list[str]:
        ran = study.noted("trial")
        return [host for _, host in ran[-chance.concurrent :] if host in victims and study.finished() < TRIALS - 2]

    _some_trial(chance, study, running, TRIALS // 2)
    if not study.wait(lambda: bool(there()), running):
        raise RuntimeError(f"study {study.name}: no trial came to a worker host")
    chance.pause(0.5)
    host = there()[0]
    since, before = time.monotonic(), study.finished()
    chance.bench.hosts.kill_all(victims[host])
    disturbed.times = 1
    disturbed.moments.append(f"{host}, {before} finished")
    _recover(disturbed, since, before, running)
    study.finish(running)
    chance.bench.start_ray(victims[host])
    return disturbed


def head(chance: Chance) -> Disturbed:
    """kill -9 of all that runs on the head: Ray and the driver; the cluster is brought up again, the study resumed."""
    disturbed = Disturbed(study := chance.study())
    _some_trial(chance, study, study.start())
    since, before = time.monotonic(), study.finished()
    chance.bench.hosts.kill_all(0)
    disturbed.times = 1
    disturbed.moments.append(f"{before} finished")
    chance.bench.start_cluster()
    running = study.start()
    _recover(disturbed, since, before, running)
    study.finish(running)
    return disturbed


def second_driver(chance: Chance) -> Disturbed:
    """A second driver of the same study, on the same host and on another: each must exit 2 and name the first."""
    disturbed = Disturbed(study := chance.study())
    running = study.start()
    _some_trial(chance, study, running, 1)
    for host in (0, 1):
        since = time.monotonic()
        other = study.start(host)
        code = other.wait(TIMEOUT)
        errors = [line for line in other.output.splitlines() if line.strip()]
        if code != 2 or len(errors) != 1 or f" on {chance.bench.hosts.name(0)} since " not in errors[0]:
            raise RuntimeError(f"a second driver: exit {code}: {other.output}\nthe first: {running.output}")
        disturbed.times += 1
        disturbed.moments.append(f"from {chance.bench.hosts.name(host)}: {errors[0]}")
        disturbed.seconds.append(time.monotonic() - since)
    study.finish(running)
    return disturbed


def full_storage(chance: Chance) -> Disturbed:
    """The storage folder, a small file system, runs full; space is freed when the driver has ended, and the study resumed."""
    storage = blank_storage(chance.bench.small / chance.name, chance.bench.folder / "blank.db")
    disturbed = Disturbed(study := chance.study(storage=storage))
    running = study.start()
    _some_trial(chance, study, running)
    ballast = storage / "ballast"
    since, before = time.monotonic(), study.finished()
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    code = running.wait(TIMEOUT)
    line = running.output.strip().splitlines()[-1]
    disturbed.times = 1
    disturbed.moments.append(f"{before} finished; exit {code}: {line}")
    if code != 2 or not line.startswith("error: ") or "go on with: " not in line:
        raise RuntimeError(f"full storage: exit {code}:\n{running.output}")
    ballast.unlink()
    since = time.monotonic()
    running = study.start()
    _recover(disturbed, since, study.finished(), running)
    study.finish(running)
    return disturbed


class Server:
    """An MLflow server on this machine, which all hosts reach."""

    def __init__(self, address: str, database: Path, artifacts: Path) -> None:
        self.uri = f"http://{address}:5077"
        host = address
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}", "--host", host),
            *("--port", "5077", "--workers", "1", "--artifacts-destination", str(artifacts)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        from tune.tracking_uri import check_tracking

        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while True:
            try:
                return check_tracking(self.uri)
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def tracking_server(chance: Chance) -> Disturbed:
    """The tracking server is gone for 60 s; what it missed arrives later, in the same session or in a resumed one."""
    folder = chance.bench.folder / f"server-{chance.name}"
    blank_storage(folder, chance.bench.folder / "blank.db")
    server = Server(f"{chance.bench.hosts.subnet}.1", folder / "mlflow.db", folder / "artifacts")
    server.start()
    try:
        study = chance.study(tracking=folder / "mlflow.db", more_options=("--tracking-uri", server.uri))
        disturbed = Disturbed(study)
        running = study.start()
        _some_trial(chance, study, running, 2)
        before = study.finished()
        server.stop()
        disturbed.times = 1
        time.sleep(60.0)
        server.start()
        since = time.monotonic()
        study.finish(running)
        resumed = not study.complete_in_mlflow()
        disturbed.moments.append(f"{before} finished{'; resumed once more' if resumed else ''}")
        if resumed:
            study.finish(study.start())
        disturbed.seconds.append(time.monotonic() - since)
        return disturbed
    finally:
        server.stop()
