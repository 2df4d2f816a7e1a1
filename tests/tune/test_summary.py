"""summary.json says everything of a study, and neither it nor the ledger costs more the more trials there are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from tune.context import StudyContext
from tune.database import sqlite_url
from tune.ledger import Ledger
from tune.search import PAYLOAD, LedgerSearcher
from tune.selection import OBJECTIVES, Selected
from tune.space import SearchSpace
from tune.study_config import load_study_config
from tune.summary import Outcome, PhaseClock, Summary
from tune.tracking_writer import run_key
from tune.trial_result import TrialResult, stage_totals

CONFIG = load_study_config(None)


def context_of(folder: Path) -> StudyContext:
    return StudyContext(
        storage=folder,
        study="s",
        folder=folder,
        config=CONFIG,
        data_path=folder / "data.h5",
        data_digest="d",
        rendered=True,
        seed=0,
        stages_root=folder / "stages",
        workers=1,
    )


def ledger_of(folder: Path, trials: int) -> Ledger:
    space = SearchSpace.of(CONFIG, 900)
    return Ledger(
        sqlite_url(folder / "optuna.db"),
        "s",
        space=space,
        objectives=OBJECTIVES,
        identity={},
        seed=0,
        trials=trials,
        startup_trials=3,
        start=space.start(CONFIG.configuration),
    )


def result_of(number: int) -> TrialResult:
    metrics = {"neural_r2": 0.9, "group_mig": 0.5, "selectivity": 0.01 * number, "realism": 0.5, "pc_saturation": 0.9}
    stages = [
        {"kind": "vae", "key": f"v{number}", "label": "", "seconds": 2.0, "reused": False},
        {"kind": "denoiser", "key": "d", "label": "", "seconds": 0.0, "reused": True},
    ]
    return TrialResult({**metrics, "odd": math.nan}, constraint=-0.1, stages=stages)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_a_summary_says_everything_and_is_right_at_any_time(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 4)
    summary = Summary(context_of(tmp_path), ledger, PhaseClock({"search": 3.0}), "r")
    ledger.remember("stages_prepare", [{"kind": "denoiser", "key": "d", "label": "", "seconds": 7.0, "reused": False}])
    for _ in range(2):
        ledger.finish(ledger.propose().number, result_of(0))
    failing = ledger.propose()
    ledger.fail(failing.number, 'a "word"\nand another line')
    assert summary.write("running") == [
        "in 2 of 2 trials the partial correlation was saturated (pc_saturation above 0.8): pc_weight had nothing to act on there"
    ]
    first = read(tmp_path)
    assert [trial["state"] for trial in first["trials"]] == ["COMPLETE", "COMPLETE", "WAITING"]
    assert [trial["mlflow_run_id"] for trial in first["trials"]] == [None] * 3
    assert first["trials"][2]["error"] == 'a "word"\nand another line'
    assert first["trials"][2]["params"] == failing.params
    assert first["trials"][0]["metrics"]["odd"] is None

    ledger.remember(run_key(0), "run-0")  # MLflow is written to beside the trials
    while (proposal := ledger.propose()) is not None:
        ledger.finish(proposal.number, result_of(proposal.number))
    outcome = Outcome(Selected(1, ledger.record(1).params, "ideal_corner"), {"neural_r2": 0.8}, tmp_path / "export")
    summary.write("finished", outcome)
    content = read(tmp_path)
    assert list(content) == [
        "study", "state", "preset", "seed", "data", "git_revision", "machine", "objectives", "trials", "stages",
        "selected", "final_metrics", "notes", "export", "wall_seconds", "configuration",
    ]  # fmt: skip
    assert [trial["mlflow_run_id"] for trial in content["trials"]] == ["run-0", None, None, None]
    for trial, record in zip(content["trials"], ledger.records(), strict=True):
        metrics = {name: None if math.isnan(value) else value for name, value in record.result().metrics.items()}
        told = (trial["number"], trial["state"], trial["params"], trial["metrics"], trial["constraint"], trial["seconds"])
        assert told == (record.number, record.state, record.params, metrics, -0.1, record.seconds)
    stages = [*ledger.remembered("stages_prepare"), *(stage for record in ledger.records() for stage in record.result().stages)]
    assert content["stages"] == stage_totals(stages)
    assert (content["state"], content["selected"]["trial"], content["export"]) == ("finished", 1, str(tmp_path / "export"))
    assert content["configuration"] == CONFIG.model_dump(mode="json")

    later = ledger_of(tmp_path, 4)  # a later session knows nothing of what the first one kept
    Summary(context_of(tmp_path), later, PhaseClock({"search": 3.0}), "r").write("finished", outcome)
    assert read(tmp_path) == content


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How many results are parsed, and how many statements databases are sent."""
    counts = {"parsed": 0, "statements": 0}
    parse = TrialResult.from_json

    def counting(text: str) -> TrialResult:
        counts["parsed"] += 1
        return parse(text)

    def execute(*_: Any) -> None:
        counts["statements"] += 1

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", execute)
    monkeypatch.setattr(TrialResult, "from_json", staticmethod(counting))
    try:
        yield counts
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", execute)


def test_a_late_trial_costs_no_more_work_than_an_early_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = 40
    ledger = ledger_of(tmp_path, trials)
    summary = Summary(context_of(tmp_path), ledger, PhaseClock(), "r")
    started: list[int] = []
    searcher = LedgerSearcher(
        ledger,
        concurrent=1,
        failures_allowed=0,
        is_lost=lambda node: False,
        on_start=lambda record: started.append(record.number),
        on_end=lambda record: summary.write("running") and None,
    )
    costs = []
    for number in range(trials):
        with counted(monkeypatch) as counts:
            searcher.suggest(str(number))
            ledger.remember(run_key(number), f"run-{number}")
            searcher.on_trial_complete(str(number), {PAYLOAD: result_of(number).to_json()})
        monkeypatch.undo()
        costs.append(counts)
    assert started == list(range(trials))
    assert len(read(tmp_path)["trials"]) == trials
    assert [cost["parsed"] for cost in costs] == [2] * trials  # as reported, and for the summary
    assert max(cost["statements"] for cost in costs[-10:]) <= max(cost["statements"] for cost in costs[5:15])
