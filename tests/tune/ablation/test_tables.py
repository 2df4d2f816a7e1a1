"""Tables and sentences from metrics that are known beforehand."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from migvis.config import VAEConfig
from migvis.vae import NeuralVAE
from migvis.weights import save_tensors, save_vae
from tune.ablation.algebra import FULL, Case
from tune.ablation.outcome import Cell, Outcome
from tune.ablation.report import caution, costs, findings
from tune.ablation.study import Column, Reading, Study
from tune.ablation.tables import at_its_best_scale, differences, region_of_realism, similarity_over_seeds, values
from tune.context import StudyContext
from tune.pipeline import StageUse
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


def stored(found: Outcome, stage: Stage) -> Path:
    """The folder of a stage that counts as finished."""
    folder = found.store.path(stage.kind, stage.key)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def stored_scores(found: Outcome, case: str, seed: int, scores: list[float]) -> None:
    """An evaluation of a cell, with these scores of its pairs, the same for both groups."""
    stage = Stage("evaluation", {"case": case, "seed": seed}, lambda context: None)
    tensors = {"score": torch.tensor(scores * 2), "pair": torch.arange(len(scores)).repeat(2)}
    save_tensors(stored(found, stage) / "readings.safetensors", tensors)
    found.readings[Cell(case, "M1", seed)] = [Reading(stage)]


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
    assert "4–5 seeds" in values(invented, "M1").title


def test_no_base_no_differences_and_nothing_measured_is_a_dash(tmp_path) -> None:
    assert differences(outcome(tmp_path, {}, base=None), "M1") is None
    assert values(outcome(tmp_path, {}), "M1").rows == [["full", "–", "–"], ["without PC", "–", "–"]]


def test_a_csv_holds_the_table(invented, tmp_path) -> None:
    table = values(invented, "M1")
    with table.write(tmp_path / "tables").open(newline="", encoding="utf-8") as handle:
        assert list(csv.reader(handle)) == [list(table.header), *map(list, table.rows)]


def test_at_equal_realism_the_scale_is_chosen_by_validation_and_judged_by_test(tmp_path) -> None:
    """The best scale on test pairs is not the one that validation pairs choose, and an unreal method shows nothing."""

    def edits(validation, test, realism, move=0.5):
        return {
            "validation/selectivity": [validation] * 5,
            "validation/realism": [realism] * 5,
            "validation/own_move": [move] * 5,
            "selectivity": [test + 0.01 * seed for seed in SEEDS],
            "realism": [realism] * 5,
            "own_move": [move + 0.02 * seed for seed in SEEDS],
        }

    metrics = {
        "MI, γ = 1": edits(0.2, 0.30, 0.9),
        "MI, γ = 5": edits(0.4, 0.10, 0.8),
        "MI, γ = 9": edits(0.9, 0.90, 0.5),
        "AP-LR, γ = 1": edits(0.3, 0.05, 0.75),
        "SLT, γ = 1": edits(0.9, 0.90, 0.2),
        "AP-CFG, γ = 1": edits(0.6, 0.00, 0.9, move=0.1),
        "AP-CFG, γ = 9": edits(0.1, 0.00, 0.1, move=0.9),
        "likelihood, γ = 1": edits(0.4, 0.10, 0.8),
    }
    (table,) = at_its_best_scale(outcome(tmp_path, metrics, [Case(name) for name in metrics], base=None))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["MI"][0] == "γ = 5"
    assert rows["MI"][6].startswith("0.120")
    assert rows["AP-LR"][0] == "γ = 1"
    assert rows["AP-LR"][-2].startswith("+0.000")
    assert rows["AP-LR"][-1].startswith("-0.050")
    assert rows["SLT"][0] == "none: no scale reaches a realism of at least 0.7 (at most 0.20)"
    moved = "no scale with a realism of at least 0.7 reaches an own move of at least 0.2 (at most 0.10)"
    assert rows["AP-CFG"][0] == f"none: {moved}"
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert table.emphasis == {(1, 9)}
    assert table.findings == (
        "M1, AP-LR at γ = 1: selectivity -0.050 [-0.050, -0.050], to MI at its own scale.",
        "M1, SLT: no scale reaches a realism of at least 0.7 (at most 0.20) on validation pairs.",
        f"M1, AP-CFG: {moved} on validation pairs.",
        "M1, likelihood at γ = 1: no clear difference to MI at its own scale.",
    )


def test_without_realism_validation_s_selectivity_alone_chooses(tmp_path) -> None:
    values = {"validation/selectivity": 0.4, "selectivity": 0.3}, {"validation/selectivity": 0.2, "selectivity": 0.9}
    metrics = {f"MI, γ = {scale}": {name: [value] * 5 for name, value in own.items()} for scale, own in enumerate(values)}
    (table,) = at_its_best_scale(outcome(tmp_path, metrics, [Case(name) for name in metrics], base=None))
    assert table.rows[0][:3] == ["MI", "γ = 0", "–"]


def test_where_edits_are_objects_by_edit_step(tmp_path) -> None:
    doses = {
        (0.5, 1.0): (0.9, 0.1),
        (0.5, 9.0): (0.8, 0.3),
        (0.7, 1.0): (0.75, 0.2),
        (0.7, 9.0): (0.1, 0.9),
        (0.9, 1.0): (0.2, 0.5),
    }
    cases = [Case(f"{dose}", {"synthesis.edit_step": dose[0], "synthesis.guidance_scale": dose[1]}) for dose in doses]
    metrics = {f"{dose}": {"realism": [own[0]] * 5, "selectivity": [own[1]] * 5} for dose, own in doses.items()}
    (table,) = region_of_realism(outcome(tmp_path, metrics, cases, base=None))
    assert [row[:3] for row in table.rows] == [["0.5 T", "1, 9", "9"], ["0.7 T", "1", "1"], ["0.9 T", "none", "–"]]


def test_one_seed_says_nothing_of_chance(invented) -> None:
    invented.seeds = range(1)
    assert findings(invented) == []
    assert caution(invented).startswith("A single seed")
    invented.seeds = SEEDS
    assert caution(invented).startswith("2 differences are shown")


def test_a_selectivity_that_hangs_on_a_few_stimuli_is_not_called_clear(tmp_path) -> None:
    """Equal in every seed, so clear of 0 over seeds; but one pair of stimuli makes all of it."""
    found = outcome(tmp_path, {})
    found.study = Study("s", "?", (FULL, OTHER), lambda *_: [], (Column("selectivity", "selectivity"),))
    for case, scores in (("full", [0.0, 0.0, 0.0]), ("without PC", [0.0, 0.0, 0.9])):
        for seed in SEEDS:
            stored_scores(found, case, seed, scores)
            found.metrics[Cell(case, "M1", seed)] = {"selectivity": sum(scores) / 3 + 0.001 * seed * (case == "full")}
    assert found.difference("without PC", "full", "M1", "selectivity").clear_of_zero
    assert not found.over_stimuli("without PC", "full", "M1").clear_of_zero
    (sentence,) = findings(found)
    assert "no interval" in sentence


def test_costs_tell_what_was_built_from_what_was_found(invented) -> None:
    for key, (seconds, reused) in {"a": (5.0, False), "b": (70.0, False), "c": (9.0, True)}.items():
        invented.uses["vae", key] = StageUse("vae", key, "", seconds, reused)
    assert costs(invented) == [("vae", 2, "1 min 15 s", 1, "9 s")]


def test_groups_that_are_swapped_between_seeds_are_matched_again(tmp_path) -> None:
    """Two VAEs alike but for the order of their groups: none is similar in its place, all are after matching."""
    responses = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    found = outcome(tmp_path, {}, [FULL], base=None)
    found.seeds = range(2)
    subject = SimpleNamespace(response=responses.numpy())
    found.__dict__["dataset"] = SimpleNamespace(split={"test": np.arange(40)}, subjects={"M1": subject})
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            vae = NeuralVAE(VAEConfig(group_count=3, group_rank=2), 6, 0, 0)
        if seed:
            last = vae.encoder[2]
            order = torch.tensor([4, 5, 0, 1, 2, 3, 10, 11, 6, 7, 8, 9])
            last.weight.data, last.bias.data = last.weight.data[order], last.bias.data[order]
        stage = Stage("vae", {"seed": seed}, lambda context: None)
        save_vae(stored(found, stage), vae)
        found.readings[Cell("full", "M1", seed)] = [Reading(stage)]
    (table,) = similarity_over_seeds(found)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["best matching"] == "1.00"
    assert max(float(row[f"group {g}"]) for g in (1, 2, 3)) < 0.9


def test_selectivity_over_stimuli_resamples_pairs_of_stimuli(tmp_path) -> None:
    """Scores that differ by the same amount in every pair have no spread, however the pairs themselves differ."""
    found = outcome(tmp_path, {})
    for shift, case in ((0.0, "full"), (0.25, "without PC")):
        for seed in SEEDS:
            stored_scores(found, case, seed, [score + shift for score in (0.1, 0.5, -0.3)])
    interval = found.over_stimuli("without PC", "full", "M1")
    assert (interval.mean, interval.low, interval.high, interval.count) == pytest.approx((0.25, 0.25, 0.25, 3), abs=1e-6)
