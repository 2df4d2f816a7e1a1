"""A ledger of its own for each test, and a made-up landscape for its trials."""

from __future__ import annotations

import math
from pathlib import Path

from tune.database import sqlite_url
from tune.ledger import Ledger
from tune.selection import OBJECTIVES
from tune.space import SearchSpace
from tune.study_config import load_study_config
from tune.trial_result import TrialResult

CONFIG = load_study_config(None)
CONFIGURATION = {"vae.epochs": 5, "vae.readout": "linear"}


def open_ledger(
    folder: Path, *, trials=8, space=None, seed=3, identity=None, recover=None, retries=2, objectives=OBJECTIVES, sampler="reuse"
) -> Ledger:
    space = space or SearchSpace.of(CONFIG, 900)
    return Ledger(
        sqlite_url(folder / "optuna.db"),
        "study",
        space=space,
        objectives=objectives,
        identity=identity or {"configuration": CONFIGURATION},
        seed=seed,
        trials=trials,
        startup_trials=3,
        sampler=sampler,
        start=space.start(CONFIG.configuration),
        retries=retries,
        recover=recover or (lambda number, params: None),
    )


def result_of(params, vae_only: bool = False) -> TrialResult:
    """A smooth made-up landscape: larger ranks lose nothing, a large pc_weight fails the constraint."""
    mig = 1 / params["group_rank"]
    selectivity = 1 - abs(params["edit_step"] - 0.8)
    realism = 1 / (1 + params["guidance_scale"])
    constraint = math.log10(params["pc_weight"]) + 2.5
    metrics = {"neural_r2": 0.9, "group_mig": mig, "selectivity": selectivity, "realism": realism}
    pruned = constraint > 0
    if vae_only:
        return TrialResult({"neural_r2": 0.9, "group_mig": mig}, constraint=constraint, pruned=True)
    return TrialResult({"neural_r2": 0.5} if pruned else metrics, constraint=constraint, pruned=pruned)


def run(ledger: Ledger, count: int = 1000) -> list:
    proposals = []
    while len(proposals) < count and (proposal := ledger.propose()) is not None:
        proposals.append(proposal)
        ledger.finish(proposal.number, result_of(proposal.params, proposal.vae_only))
    return proposals
