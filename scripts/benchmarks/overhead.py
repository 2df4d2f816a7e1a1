"""What the service itself costs: how it grows over 500 replayed trials, and its share of the default study's time.

The replayed study really runs Ray, both databases and MLflow, only its stages take no time; it needs 2 GB in the folder for
temporary files. The default study is the one of `python tune/run.py`, in a process of its own, which takes some
minutes; the small variant takes the replayed one, as if its stages had taken what the table says. Draws benchmark-overhead.png.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from benchmarks._frame import Options, Result, Row
from benchmarks._growth import EARLY, STUDY, Growth, around, draw, replay
from benchmarks._material import factorial

TRIALS, SMALL_TRIALS = 500, 12
LIMIT = 1.5
"""How many times the service seconds of trial EARLY a late trial may take."""
ROOT = Path(__file__).resolve().parents[2]


def run(options: Options) -> Result:
    """Rows: a study's stages alone against its whole time; early trials against the last ones.

    Figures: `share` is (wall − stages) / stages, also by phase; `growth` of the service seconds per trial; see Growth.
    """
    trials = SMALL_TRIALS if options.small else TRIALS
    with tempfile.TemporaryDirectory() as folder:
        growth = replay(factorial(), Path(folder), trials)
        if options.small:
            wall, stages = seconds_of(Path(folder) / STUDY)
            # Replayed stages take no time: what they would have taken is added.
            wall = {phase: seconds + stages.get(phase, 0.0) for phase, seconds in wall.items()}
    if not options.small:
        wall, stages = default_study()
    picture = draw(growth, LIMIT, options.out / "benchmark-overhead.png")
    rows = [
        Row("a study's time, against its stages'", sum(wall.values()), sum(stages.values())),
        grown(f"service, trial {trials} against {EARLY}", growth.service),
        grown("of it CPU of the driver", growth.cpu),
        grown("of it proposing", growth.proposing),
    ]
    return Result(rows, {**shares(wall, stages), **growth_figures(growth, trials)}, pictures=(picture,))


def grown(name: str, seconds: Any) -> Row:
    """The last trials against the early ones."""
    return Row(name, around(seconds, len(seconds)), around(seconds, EARLY))


def growth_figures(growth: Growth, trials: int) -> dict[str, float]:
    """How the service's cost of a trial grew."""
    early, late = around(growth.service, EARLY), around(growth.service, trials)
    memory_early, memory_late = around(growth.memory, EARLY), around(growth.memory, trials)
    return {
        f"seconds_per_trial_at_{EARLY}": early,
        f"seconds_per_trial_at_{trials}": late,
        "growth": late / early,
        f"cpu_seconds_per_trial_at_{EARLY}": around(growth.cpu, EARLY),
        f"cpu_seconds_per_trial_at_{trials}": around(growth.cpu, trials),
        f"seconds_per_ask_at_{EARLY}": around(growth.proposing, EARLY),
        f"seconds_per_ask_at_{trials}": around(growth.proposing, trials),
        "memory_mb": memory_late,
        "memory_growth_mb": memory_late - memory_early,
    }


def shares(wall: Mapping[str, float], stages: Mapping[str, float]) -> dict[str, float]:
    """What is not spent in stages, against what is; in all, and by those phases that have stages."""
    spent = sum(stages.values())
    by_phase = {f"share_{phase}": wall[phase] / seconds - 1 for phase, seconds in stages.items() if seconds > 0}
    seconds = {f"seconds_{phase}": value for phase, value in wall.items()}
    return {"share": sum(wall.values()) / spent - 1, **by_phase, **seconds, "seconds_stages": spent}


def default_study() -> tuple[dict[str, float], dict[str, float]]:
    """Runs the default study as a user does; its wall seconds and those of its stages, by phase.

    The phase "process" is what the study itself does not see: the interpreter's start and its end.
    """
    with tempfile.TemporaryDirectory() as storage:
        command = [sys.executable, "tune/run.py", "--storage", storage, "--study", "default"]
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        seconds = time.monotonic() - began
        wall, stages = seconds_of(Path(storage) / "default")
        return {**wall, "process": seconds - sum(wall.values())}, stages


def seconds_of(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Of the finished study in a folder: wall seconds by phase, and the seconds of the stages that each phase built."""
    wall = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["wall_seconds"]
    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'optuna.db'}")
    results = [json.loads(trial.user_attrs["result"]) for trial in study.trials if "result" in trial.user_attrs]
    records = {
        "prepare": study.user_attrs["stages_prepare"],
        "search": [stage for result in results for stage in result["stages"]],
        "final": study.user_attrs["stages_final"],
    }
    built = {phase: sum(stage["seconds"] for stage in stages if not stage["reused"]) for phase, stages in records.items()}
    return wall, built
