"""Tables and sentences from metrics that are known beforehand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from migvis.weights import save_tensors
from tune.ablation.algebra import FULL, Case
from tune.ablation.outcome import Cell, Outcome
from tune.ablation.report import findings
from tune.ablation.study import Column, Reading, Study
from tune.ablation.tables import at_equal_realism, differences, values
from tune.context import StudyContext
from tune.stage_graph import Stage
from tune.study_config import STUDY_PRESETS

SEEDS = range(5)
OTHER = Case("without PC", {"vae.pc_weight": 0.0})
R2 = {"full": [0.90, 0.92, 0.91, 0.93, 0.90], "without PC": [0.95, 0.97, 0.97, 0.98, 0.95]}
NOISE = {"full": [0.1, 0.5, 0.2, 0.4, 0.3], "without PC": [0.5, 0.1, 0.3, 0.2, 0.4]}


def outcome(tmp_path: Path, metrics, cases=(FULL, OTHER), **options) -> Outcome:
    """An outcome of invented metrics, {case: {metric: a value per seed}}."""
    columns = (Column("neural_r2", "R², %", 100, 1), Column("noise", "noise"))
    study = Study("invented", "?", tuple(cases), lambda *_: [], columns, **options)
    context = StudyContext(
        tmp_path, "invented", tmp_path, STUDY_PRESETS["quick"], tmp_path / "set.h5", "digest", True, 0, tmp_path / "stages", 1
    )
    found = Outcome(study, context, cases, ("M1",), SEEDS, {}, {})
    for case, named in metrics.items():
        for metric, own in named.items():
            for seed, value in enumerate(own):
                found.metrics.setdefault(Cell(case, "M1", seed), {})[metric] = value
    return found


@pytest.fixture
def invented(tmp_path) -> Outcome:
    metrics = {case: {"neural_r2": R2[case], "noise": NOISE[case]} for case in R2}
    return outcome(tmp_path, metrics, published={("M1", "full", "neural_r2"): 76.58})


def test_values_are_mean_and_sd_with_the_paper_s_beside(invented) -> None:
    table = values(invented, "M1")
    assert table.header == ["case", "R², %", "paper", "noise"]
    assert table.rows[0] == ["full", f"91.2 ± {100 * np.std(R2['full'], ddof=1):.1f}", "76.6", "0.300 ± 0.158"]
    assert table.rows[1][2] == "–"
    assert "5 seeds" in table.title


def test_differences_are_paired_and_bold_where_they_are_clear(invented) -> None:
    table = differences(invented, "M1")
    expected = stats.ttest_rel(R2["without PC"], R2["full"]).confidence_interval(0.95)
    assert table.rows == [["without PC", f"+5.2 [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]", table.rows[0][2]]]
    assert table.emphasis == {(0, 1)}
    (sentence,) = findings(invented)
    assert sentence.startswith("M1, without PC: R², % +5.2 [")
    assert "noise" not in sentence


def test_a_seed_that_failed_is_left_out_of_both_sides_of_a_pair(invented) -> None:
    del invented.metrics[Cell("without PC", "M1", 4)]
    assert invented.difference("without PC", "full", "M1", "neural_r2").count == 4
    assert invented.interval("full", "M1", "neural_r2").count == 5
    assert "4–5" in values(invented, "M1").title.replace("5–4", "4–5")


def test_no_base_no_differences_and_nothing_measured_is_a_dash(tmp_path) -> None:
    assert differences(outcome(tmp_path, {}, base=None), "M1") is None
    assert values(outcome(tmp_path, {}), "M1").rows == [["full", "–", "–"], ["without PC", "–", "–"]]


def test_a_csv_holds_the_table(invented, tmp_path) -> None:
    table = values(invented, "M1")
    with table.write(tmp_path / "tables").open(newline="", encoding="utf-8") as handle:
        assert list(csv.reader(handle)) == [list(table.header), *map(list, table.rows)]


def test_at_equal_realism_the_scale_is_chosen_by_validation_and_judged_by_test(tmp_path) -> None:
    """The best scale on test pairs is not the one that validation pairs choose, and an unreal method shows nothing."""

    def edits(validation, test, realism):
        return {
            "validation/selectivity": [validation] * 5,
            "validation/realism": [realism] * 5,
            "selectivity": [test + 0.01 * seed for seed in SEEDS],
            "realism": [realism] * 5,
        }

    metrics = {
        "MI, γ = 1": edits(0.2, 0.30, 0.9),
        "MI, γ = 5": edits(0.4, 0.10, 0.8),
        "MI, γ = 9": edits(0.9, 0.90, 0.5),
        "AP-LR, γ = 1": edits(0.3, 0.05, 0.75),
        "SLT, γ = 1": edits(0.9, 0.90, 0.2),
    }
    (table,) = at_equal_realism(outcome(tmp_path, metrics, [Case(name) for name in metrics], base=None))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["MI"][0] == "γ = 5"
    assert rows["MI"][2].startswith("0.120")
    assert rows["AP-LR"][0] == "γ = 1"
    assert rows["AP-LR"][-1].startswith("-0.050")
    assert rows["SLT"][0] == "none; at most 0.20"
    assert table.emphasis == {(1, 6)}


def test_selectivity_over_stimuli_resamples_pairs_of_stimuli(tmp_path) -> None:
    """Scores that differ by the same amount in every pair have no spread, however the pairs themselves differ."""
    found = outcome(tmp_path, {})
    for shift, case in ((0.0, "full"), (0.25, "without PC")):
        for seed in SEEDS:
            stage = Stage("evaluation", {"case": case, "seed": seed}, lambda context: None)
            folder = found.store.path(stage.kind, stage.key)
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
            pair = torch.tensor([0, 1, 2, 0, 1, 2])
            save_tensors(folder / "readings.safetensors", {"score": torch.tensor([0.1, 0.5, -0.3] * 2) + shift, "pair": pair})
            found.readings[Cell(case, "M1", seed)] = [Reading(stage)]
    interval = found.over_stimuli("without PC", "full", "M1")
    assert (interval.mean, interval.low, interval.high, interval.count) == pytest.approx((0.25, 0.25, 0.25, 3), abs=1e-6)
