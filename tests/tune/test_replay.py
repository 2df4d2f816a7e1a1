"""Studies replayed from a table: its values come out, and what was built before is reused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tune.context import StudyContext
from tune.database import sqlite_url
from tune.factorial import FactorialTable
from tune.ledger import Ledger
from tune.replay import METRICS, WEIGHTS, moments, replayed
from tune.run import main
from tune.selection import OBJECTIVES
from tune.space import SearchSpace
from tune.study_config import load_study_config
from tune.study_lock import locked
from tune.tracking_writer import sent_key

TRIALS = 12
CONFIG = load_study_config(None)


@pytest.mark.slow
def test_a_study_ends_with_the_tables_values(local_ray, storage: Path, table: FactorialTable) -> None:
    arguments = ["--storage", str(storage), "--study", "replayed", "--trials", str(TRIALS)]
    assert main(arguments, replayed(table)) == 0
    summary = json.loads((storage / "replayed" / "summary.json").read_text())
    assert [trial["number"] for trial in summary["trials"]] == list(range(TRIALS))
    uses: dict[tuple[str, str], int] = {}
    looked_at = 0
    for trial in summary["trials"]:
        row = table.nearest(trial["params"])
        vae_only = trial["ended"] == "VAE only"
        assert not (vae_only and row.pruned)
        looked_at += vae_only
        assert trial["state"] == ("PRUNED" if row.pruned or vae_only else "COMPLETE")
        assert trial["constraint"] == row.constraint
        told = row.metrics_of_vae if vae_only else row.metrics
        assert {name: trial["metrics"][name] for name in told} == told
        assert ("realism" in trial["metrics"]) == (trial["state"] == "COMPLETE")
        assert len(trial["metrics"]) == METRICS
        for stage in row.stages_of_vae if vae_only else row.stages:
            uses[stage] = uses.get(stage, 0) + 1
    assert 0 < looked_at < TRIALS - 2
    shared = {stage for stage in uses if stage[0] in ("denoiser", "trajectory", "instruments")}
    told = {(stage["kind"], stage["key"]): (stage["fitted"], stage["reused"], stage["seconds"]) for stage in summary["stages"]}
    assert told == {stage: (1, count - (stage not in shared), table.seconds[stage]) for stage, count in uses.items()}
    assert sum(reused for _, reused, _ in told.values()) > TRIALS

    seen = moments(storage / "replayed")
    assert [moment.number for moment in seen] == list(range(TRIALS))
    assert all(before.ended <= after.arrived <= after.began <= after.ended for before, after in pairwise(seen))
    assert all(0 < before.cpu <= after.cpu for before, after in pairwise(seen))
    assert all(moment.memory > 10 * 2**20 for moment in seen)
    assert all(before.tracking <= after.tracking for before, after in pairwise(seen))


def test_what_a_trial_built_is_reused_by_the_next_one_only(tmp_path: Path, table: FactorialTable, monkeypatch) -> None:
    context = StudyContext(
        storage=tmp_path,
        study="s",
        folder=tmp_path / "s",
        config=CONFIG,
        data_path=tmp_path / "data.h5",
        data_digest="d",
        rendered=True,
        seed=0,
        stages_root=tmp_path / "stages",
        workers=1,
    )
    context.folder.mkdir()
    space = SearchSpace.of(CONFIG, 900)
    params = space.start(CONFIG.configuration)
    ledger = Ledger(
        sqlite_url(context.folder / "optuna.db"),
        "s",
        space=space,
        objectives=OBJECTIVES,
        identity={},
        seed=0,
        trials=2,
        startup_trials=1,
        start=params,
    )
    (tmp_path / "mlflow.db").touch()
    run_trial = replayed(table).run_trial
    with locked(context.folder):  # this process is the driver
        first = run_trial(context, CONFIG.configuration, params, 0)
        again = run_trial(context, CONFIG.configuration, params, 0)  # its process was killed
        assert [stage["reused"] for stage in first.stages] == [stage["reused"] for stage in again.stages] == [False] * 9
        assert again.seconds == {stage["kind"]: stage["seconds"] for stage in again.stages}

        monkeypatch.setattr("tune.replay._PATIENCE", 0.1)
        with pytest.raises(TimeoutError, match="trial 0 was not written"):
            run_trial(context, CONFIG.configuration, params, 1)
        ledger.remember(sent_key(0), True)
        second = run_trial(context, CONFIG.configuration, params, 1)
        assert [stage["reused"] for stage in second.stages] == [True] * 9
        assert second.seconds == {}
    models = second.artifacts["models"]
    assert {path.stem for path in models.iterdir()} == set(WEIGHTS)
    assert sum(path.stat().st_size for path in models.iterdir()) == pytest.approx(1_340_000, rel=0.01)
    assert second.images["edits"].stat().st_size == pytest.approx(123_000, rel=0.05)
