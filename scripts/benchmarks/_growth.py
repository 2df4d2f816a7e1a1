"""How the service's own cost grows with the number of trials: a long study replayed from a table, and a picture of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from tune.database import sqlite_url
from tune.factorial import FactorialTable
from tune.ledger import Ledger
from tune.replay import TRAINING_PICTURES, Moment, moments, replayed
from tune.run import main
from tune.selection import OBJECTIVES
from tune.space import SearchSpace
from tune.study_config import load_study_config

STUDY = "replayed"
EARLY = 10
"""The trial that later ones are compared with."""
AROUND = 20
"""Trials whose median stands for one of them."""
MB = 2**20


@dataclass(frozen=True)
class Growth:
    """A replayed study. All by trial, seconds but for `memory` (MB of the driver).

    service: from the end of a trial's science to the beginning of the next one's, its own record in MLflow included.
    cpu: of the driver in that time. proposing: the sampler and its database, measured by themselves.
    """

    service: Sequence[float]
    cpu: Sequence[float]
    proposing: Sequence[float]
    memory: Sequence[float]

    @classmethod
    def of(cls, seen: Sequence[Moment], proposing: Sequence[float]) -> Growth:
        pairs = list(pairwise(seen))
        return cls(
            service=[after.began - before.ended for before, after in pairs],
            cpu=[after.cpu - before.cpu for before, after in pairs],
            proposing=proposing,
            memory=[moment.memory / MB for moment in seen],
        )


def around(values: Sequence[float], number: int) -> float:
    """The median of the values near trial `number`, as many of its neighbours as AROUND."""
    start = max(0, min(number - AROUND // 2, len(values) - AROUND))
    return median(values[start : start + AROUND])


def replay(table: FactorialTable, storage: Path, trials: int) -> Growth:
    """Runs a study of replayed trials in a process of its own, as the command line would. Raises RuntimeError if it fails."""
    log = storage / "log.txt"
    arguments = ["--storage", str(storage), "--study", STUDY, "--trials", str(trials)]
    process = get_context("spawn").Process(target=_drive, args=(arguments, table, log))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the replayed study failed: {log.read_text(encoding='utf-8')[-2000:]}")
    return Growth.of(moments(storage / STUDY), _proposing(table, storage / "proposals.db", trials))


def _drive(arguments: list[str], table: FactorialTable, log: Path) -> None:
    with open(log, "w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        code = main(arguments, replayed(table))
    sys.exit(code)


def _proposing(table: FactorialTable, database: Path, trials: int) -> list[float]:
    """Seconds that each proposal of the same study takes by itself."""
    config = load_study_config(None, [f"search.trials={trials}"])
    space = SearchSpace.of(config, TRAINING_PICTURES)
    ledger = Ledger(
        sqlite_url(database), STUDY, space=space, objectives=OBJECTIVES, identity={}, seed=0, trials=trials,
        startup_trials=config.search.startup_trials, start=space.start(config.configuration),
    )  # fmt: skip
    seconds = []
    for _ in range(trials):
        began = time.perf_counter()
        proposal = ledger.propose()
        seconds.append(time.perf_counter() - began)
        assert proposal is not None
        ledger.finish(proposal.number, table.result(table.nearest(proposal.params), set(), proposal.vae_only))
    return seconds


def running_median(values: Sequence[float], width: int = AROUND) -> list[float]:
    """The median of each value and its neighbours, `width` of them or what there is near an end."""
    return [median(values[max(0, place - width // 2) : place + width // 2 + 1]) for place in range(len(values))]


def draw(growth: Growth, limit: float, path: Path) -> Path:
    """Seconds and memory against the trial's number, as a PNG; `limit`: times the seconds of trial EARLY that are allowed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=110, facecolor="white", layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    numbers = range(1, len(growth.service) + 1)
    seconds.plot(numbers, growth.service, ".", color="0.75", markersize=4, label="service, each trial")
    seconds.plot(numbers, running_median(growth.service), color="black", linewidth=2, label="service, running median")
    seconds.plot(numbers, running_median(growth.cpu), color="tab:blue", label="of it CPU of the driver")
    seconds.plot(
        range(len(growth.proposing)),
        running_median(growth.proposing),
        color="tab:orange",
        label="of it proposing (sampler, database)",
    )
    allowed = limit * around(growth.service, EARLY)
    seconds.axhline(allowed, color="tab:red", linestyle="--", linewidth=1, label=f"limit: {limit:g} × trial {EARLY}")
    seconds.set(xlabel="trial", ylabel="seconds", title="Service seconds per trial, stages not included")
    seconds.set_ylim(0, 1.4 * max(allowed, *running_median(growth.service), *running_median(growth.cpu)))
    seconds.legend(fontsize=8, loc="upper left", edgecolor="none", framealpha=0.9, ncols=2)
    memory.plot(range(len(growth.memory)), growth.memory, color="black")
    memory.set(xlabel="trial", ylabel="MB", title="Resident memory of the driver")
    memory.set_ylim(0, 1.2 * max(growth.memory))
    for axes in (seconds, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, len(growth.memory))
    figure.savefig(path, format="png")
    return path
