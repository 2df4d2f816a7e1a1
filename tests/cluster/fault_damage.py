"""Faults that need the real science: damaged files of the stage store, and a Ray Train worker that is killed in a long fit.

The science is that of the tests of whole studies, in its smallest version; its data set and stages are shared by the studies
of one bench, so that only what is damaged is fitted anew.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.fault_kinds import Chance, Disturbed
from tests.cluster.fault_study import Study, blank_storage
from tests.tune.test_two_studies import TINY
from tune.store import MANIFEST, StageStore

STEPS = 400
# tpe: what `reuse` proposes depends on the seconds that stages took, and those of a stage that is fitted anew are others.
OPTIONS = ("search.sampler=tpe", "search.startup_trials=2", *TINY)


def _study(chance: Chance, trials: int, more: tuple[str, ...], storage: Path) -> Study:
    sets = tuple(word for text in (*OPTIONS, *more) for word in ("--set", text))
    return Study(chance.bench, chance.name, trials, script=None, options=sets, storage=storage)


def real_study(chance: Chance) -> Study:
    """Three trials, over the bench's own store."""
    return _study(chance, 3, (), chance.bench.storage)


def long_fit(chance: Chance) -> Study:
    """One trial, whose denoiser takes so long that it can be disturbed; over a store of its own."""
    storage = chance.bench.folder / f"store-{chance.name}"
    return _study(chance, 1, (f"denoiser.training_steps={STEPS}",), blank_storage(storage, chance.bench.folder / "blank.db"))


def truncate(path: Path, chance: Chance) -> None:
    os.truncate(path, chance.random.randrange(path.stat().st_size))


def flip(path: Path, chance: Chance) -> None:
    """Turns one bit; the file keeps its length and its times."""
    status = path.stat()
    with path.open("r+b") as file:
        place = chance.random.randrange(status.st_size)
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << chance.random.randrange(8)]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _used(study: Path, name: str) -> set[tuple[str, str]]:
    """The stages that a part of a study used."""
    uses = json.loads((study / "uses" / f"{name}.json").read_text())["uses"]
    return {(use["kind"], use["key"]) for use in uses}


def _damaged(chance: Chance, damage: Callable[[Path, Chance], None]) -> Disturbed:
    """Damages a file of a stage that this study still has to read: one for all trials, or one of its last trial alone."""
    study = real_study(chance)
    undisturbed = study.storage / "undisturbed-real_study-1"
    store = StageStore(study.storage / "stages")
    shared, *of_trials = (_used(undisturbed, name) for name in ("prepare", "trial-000", "trial-001", "trial-002"))
    own = of_trials[2] - shared - of_trials[0] - of_trials[1]
    early = chance.random.random() < 0.5 or not own
    stage = chance.random.choice(sorted(shared if early else own))
    files = sorted(path for path in store.path(*stage).rglob("*") if path.is_file())
    disturbed = Disturbed(study)
    running = study.start()
    if not early:
        study.wait((study.folder / "uses" / "trial-000.json").exists, running)
    path = chance.random.choice(files)
    since, before = time.monotonic(), study.finished()
    damage(path, chance)
    disturbed.times = 1
    disturbed.moments.append(f"{before} finished: {stage[0]}/{path.name}{' (manifest)' if path.name == MANIFEST else ''}")
    aside = store.root / ".damaged"
    study.wait(lambda: bool(list(aside.glob(f"{stage[0]}-{stage[1]}-*"))), running)
    study.wait_for_progress(before, running)
    disturbed.seconds.append(time.monotonic() - since)
    study.finish(running)
    if "moved to" not in running.output or store.read(*stage) is None:
        raise RuntimeError(f"{stage}: neither reported nor fitted anew:\n{running.output}")
    return disturbed


def truncated(chance: Chance) -> Disturbed:
    """A file of a stage is cut off somewhere."""
    return _damaged(chance, truncate)


def flipped(chance: Chance) -> Disturbed:
    """One bit of a file of a stage is another."""
    return _damaged(chance, flip)


def training_worker(chance: Chance) -> Disturbed:
    """kill -9 of the Ray Train worker in the middle of the denoiser's fit; Ray Train starts another one by itself."""
    study = long_fit(chance)
    disturbed = Disturbed(study)
    running = study.start()

    def report() -> Path | None:
        return next(study.storage.glob("stages/.partial/denoiser-*/.ray-train-*/progress.json"), None)

    def steps() -> int:
        path = report()
        return 0 if path is None else int(json.loads(path.read_text())["step"])

    wanted = chance.random.randrange(50, STEPS - 100)
    study.wait(lambda: steps() >= wanted, running)
    killed = [
        process
        for host in range(chance.bench.hosts.count)
        for process in chance.bench.hosts.processes(host)
        if "TrainWorker" in process.command
    ]
    since, before, path = time.monotonic(), steps(), report()
    assert path is not None
    reported = path.stat().st_mtime_ns
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    disturbed.times = len(killed)
    disturbed.moments.append(f"step {before} of {STEPS}")
    study.wait(lambda: not path.exists() or path.stat().st_mtime_ns > reported, running)
    disturbed.seconds.append(time.monotonic() - since)
    study.finish(running)
    return disturbed
