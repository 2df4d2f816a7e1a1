"""Evaluates a full grid of configurations of the quick preset, for comparing samplers on it (scripts/benchmark.py sampler).

12 VAEs × 3 InfoNCE batches × 3 edit steps × 3 guidance scales = 324 configurations, each through the same stages as a trial of
a study, with what each stage cost: seconds of CPU time of one thread, so that a busy machine does not change them (of a stage
that was there already, the seconds that its manifest tells). A VAE that misses the gate ends its 27 configurations, as it does
in a study. Finished parts are kept in the storage folder, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from migvis.weights import read_json
from tune.pipeline import ensure
from tune.space import apply, parameters_of
from tune.stage_graph import Stage, topological
from tune.stages import Stages
from tune.store import StageStore
from tune.store_lock import in_use
from tune.study_config import STUDY_PRESETS
from tune.study_data import open_data
from tune.study_folder import write_json
from tune.summary import git_revision, machine

GRID: dict[str, tuple[float, ...]] = {
    "pc_weight": (5e-5, 1e-3, 1e-2),
    "group_count": (2, 4),
    "group_rank": (3, 6),
    "infonce_batch": (32, 64, 128),
    "edit_step": (0.6, 0.75, 0.9),
    "guidance_scale": (5.0, 20.0, 80.0),
}
"""The values of each hyperparameter; the quick preset's own are among them."""
CONFIG = STUDY_PRESETS["quick"]
_VAE, _CRITIC = ("pc_weight", "group_count", "group_rank"), ("infonce_batch",)
_KEPT = ("group_mig", "selectivity", "realism", "mig", "neural_r2", "alignment", "move_pose_group1", "move_category_group1",
         "move_pose_group2", "move_category_group2")  # fmt: skip


def combinations(names: tuple[str, ...]) -> list[dict[str, float]]:
    """All combinations of the values of some hyperparameters."""
    return [dict(zip(names, values, strict=True)) for values in product(*(GRID[name] for name in names))]


def short(stage: Stage) -> str:
    """Enough of a stage's key to tell the stages of the table apart."""
    return stage.key[:12]


class Evaluator:
    """Builds stages in the storage folder, all from one seed, and keeps what each of them cost."""

    def __init__(self, storage: Path, seed: int) -> None:
        torch.set_num_threads(1)
        self.store = StageStore(storage / "stages")
        data = open_data(CONFIG, storage)
        self.stages = Stages(data.path, data.digest, CONFIG.configuration, seed, threads=1)
        self.subject, self.seed = CONFIG.data.subjects[0], seed
        self.seconds: dict[str, dict[str, float]] = {}

    def of(self, params: dict[str, float]) -> Stages:
        """The stages of a configuration of the grid."""
        return replace(self.stages, configuration=apply(CONFIG.configuration, params))

    def __call__(self, stage: Stage) -> Path:
        """The folder of a stage; its inputs are built before it, so that its cost is its own."""
        for below in stage.inputs.values():
            self(below)
        began = time.process_time()
        result = ensure(stage, self.store)
        cost = result.seconds if result.reused else time.process_time() - began
        self.seconds.setdefault(stage.kind, {}).setdefault(short(stage), round(cost, 3))
        return result.path

    def metrics(self, params: dict[str, float]) -> dict[str, float]:
        """What the VAE of a configuration keeps of the responses, and how far it falls short of the gate."""
        metrics = read_json(self(self.of(params).representation(self.subject, self.seed)) / "metrics.json")
        missing = metrics["standard_neural_r2"] - CONFIG.search.r2_margin - metrics["neural_r2"]
        return {**metrics, "constraint": missing}


def study_part(storage: Path, seed: int) -> dict[str, Any]:
    """The stages that all configurations share."""
    evaluate = Evaluator(storage, seed)
    for stage in evaluate.stages.study_stages():
        evaluate(stage)
    return {"rows": [], "seconds": evaluate.seconds}


def vae_part(storage: Path, seed: int, vae: dict[str, float]) -> dict[str, Any]:
    """One VAE and its standard VAE: the gate."""
    evaluate = Evaluator(storage, seed)
    start = {name: values[0] for name, values in GRID.items()}
    return {"rows": [], "constraint": evaluate.metrics({**start, **vae})["constraint"], "seconds": evaluate.seconds}


def critic_part(storage: Path, seed: int, fixed: dict[str, float]) -> dict[str, Any]:
    """One critic of a VAE, and all edits that use it."""
    evaluate, rows = Evaluator(storage, seed), []
    for edits in combinations(("edit_step", "guidance_scale")):
        params = {**fixed, **edits}
        stages, metrics = evaluate.of(params), evaluate.metrics(params)
        needed = [stages.representation(evaluate.subject, seed)]
        if metrics["constraint"] <= 0:
            needed.append(stages.evaluation(evaluate.subject, seed))
            metrics |= read_json(evaluate(needed[-1]) / "metrics.json")
        kept = {name: round(metrics[name], 5) for name in (*_KEPT, "constraint") if name in metrics}
        used = {stage.kind: short(stage) for stage in topological(needed)}
        rows.append({"params": params, "metrics": kept, "stages": used})
    return {"rows": rows, "seconds": evaluate.seconds}


def main(argv: list[str] | None = None) -> int:
    """Makes the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, required=True, metavar="DIR", help="where stages and finished parts are kept")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the table")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all fits and draws (default %(default)s)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="of one thread each (default %(default)s)")
    arguments = parser.parse_args(argv)
    began, storage, seed = time.monotonic(), arguments.storage.absolute(), arguments.seed
    parts = storage / f"parts-{seed}"
    parts.mkdir(parents=True, exist_ok=True)
    open_data(CONFIG, storage)  # made here, once
    vaes = {f"vae-{number:02d}": vae for number, vae in enumerate(combinations(_VAE))}
    critics = {
        f"{name}-critic-{number}": {**vae, **critic}
        for name, vae in vaes.items()
        for number, critic in enumerate(combinations(_CRITIC))
    }
    waves = (
        {"study": (study_part, storage, seed)},
        {name: (vae_part, storage, seed, vae) for name, vae in vaes.items()},
        {name: (critic_part, storage, seed, critic) for name, critic in critics.items()},
    )
    workers = ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn"))
    with in_use(StageStore(storage / "stages")), workers as pool:
        for wave in waves:
            missing = {name: job for name, job in wave.items() if not (parts / f"{name}.json").exists()}
            running = {pool.submit(*job): name for name, job in missing.items()}
            for number, future in enumerate(as_completed(running), 1):
                write_json(parts / f"{running[future]}.json", future.result())
                used = time.monotonic() - began
                print(f"[{used:.0f} s] {running[future]} done, {number} of {len(missing)}", flush=True)
    rows: list[dict[str, Any]] = []
    seconds: dict[str, dict[str, float]] = {}
    for name in (name for wave in waves for name in wave):
        part = read_json(parts / f"{name}.json")
        rows += part["rows"]
        for kind, costs in part["seconds"].items():
            seconds[kind] = {**costs, **seconds.get(kind, {})}
    table = {
        "made_by": "scripts/make_factorial.py",
        "git_revision": git_revision(),
        "machine": machine(),
        "seed": seed,
        "seconds_of": "CPU time of one thread",
        "start": parameters_of(CONFIG.configuration),
        "grid": {name: list(values) for name, values in GRID.items()},
        "seconds": seconds,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(table) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
