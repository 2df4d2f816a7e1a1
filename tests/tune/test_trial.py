"""Small pure parts of a trial: means over subjects and seeds, and which uses of stages count."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info

from tests.tune.tiny_studies import TINY, prepared
from tune.context import StudyContext
from tune.pipeline import StageUse
from tune.runner import Runner
from tune.stage_graph import Stage, StageContext, Together
from tune.study_config import load_study_config
from tune.study_data import open_data
from tune.trial import begin, means, saturation


def test_means_are_over_subjects_and_seeds_and_each_is_kept() -> None:
    values = {
        ("M1", 0): {"neural_r2": 0.5, "selectivity": 0.1},
        ("M1", 1): {"neural_r2": 0.7},
        ("M2", 0): {"neural_r2": 0.9, "selectivity": 0.3},
        ("M2", 1): {"neural_r2": 0.9},
    }
    total, per_seed = means(values)
    assert total["neural_r2"] == pytest.approx(0.75)
    assert total["selectivity"] == pytest.approx(0.2)
    assert total["M1/neural_r2"] == pytest.approx(0.6)
    assert per_seed["M1/neural_r2"] == [0.5, 0.7]
    assert per_seed["M2/selectivity"] == [0.3]
    single, _ = means({("M1", 0): {"neural_r2": 0.5}})
    assert set(single) == {"neural_r2"}


def test_a_stage_that_a_trial_fits_and_reads_again_is_not_called_reused() -> None:
    runner = Runner.__new__(Runner)
    runner.uses = [
        StageUse("vae", "a", "", 3.0, False),
        StageUse("vae", "a", "", 3.0, True),
        StageUse("critic", "b", "", 5.0, True),
        StageUse("critic", "b", "", 5.0, True),
    ]
    assert [(record["kind"], record["reused"]) for record in runner.records()] == [("vae", False), ("critic", True)]
    assert runner.seconds() == {"vae": 3.0}


def study_context(storage: Path) -> StudyContext:
    return StudyContext(
        storage=storage,
        study="s",
        folder=storage / "s",
        config=load_study_config(None, [], {}),
        data_path=storage / "set.h5",
        data_digest="digest",
        rendered=True,
        seed=0,
        stages_root=storage / "stages",
        workers=1,
    )


def test_what_a_killed_process_had_fitted_is_not_called_reused_by_the_next(tmp_path: Path) -> None:
    def build(context: StageContext) -> None:
        (context.folder / "value").write_text("1")

    stages = [Stage(kind, {}, build) for kind in ("denoiser", "trajectory")]
    context = study_context(tmp_path)
    Runner(context, "prepare", "prepare")(stages[0])
    after = Runner(context, "prepare", "prepare")
    for stage in stages:
        after(stage)
    assert [(record["kind"], record["reused"]) for record in after.records()] == [("denoiser", False), ("trajectory", False)]
    other = Runner(context, "trial 0", "trial-000")
    other(stages[0])
    assert [record["reused"] for record in other.records()] == [True]


def test_what_a_killed_process_had_fitted_together_is_not_called_reused_by_the_next(tmp_path: Path) -> None:
    def build(context: StageContext) -> None:
        (context.folder / "value").write_text("1")

    def build_all(contexts: Sequence[StageContext]) -> None:
        for context in contexts:
            if context.stage.config["fails"]:
                raise RuntimeError("killed")
            build(context)

    def pair(fails: bool) -> list[Stage]:
        together = Together(str(fails), build_all)
        return [Stage("vae", {"fails": fails}, build, seed=seed, together=together) for seed in (0, 1)]

    context = study_context(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        Runner(context, "trial 0", "trial-000").together(pair(False) + pair(True))
    after = Runner(context, "trial 0", "trial-000")
    for stage in pair(False):
        assert after(stage).reused
    assert [record["reused"] for record in after.records()] == [False, False]


def test_numpy_and_scikit_learn_take_as_many_threads_as_a_trial_may(tmp_path: Path) -> None:
    config = load_study_config(None, ["search.threads_per_trial=1"])
    Runner(replace(study_context(tmp_path), config=config), "trial 0", "trial-000")
    pools = threadpool_info()
    assert pools
    assert {pool["num_threads"] for pool in pools} == {1}


def test_saturation_is_the_last_point_of_its_curve() -> None:
    assert saturation({"M1/vae/seed0/pc_saturation": [(0, 0.2), (50, 0.9)]}, "M1/vae/seed0") == {"pc_saturation": 0.9}
    assert saturation({}, "M1/vae/seed0") == {}


def test_what_was_begun_while_ray_started_is_not_called_reused(tmp_path: Path) -> None:
    config = load_study_config(None, TINY)
    data = open_data(config, tmp_path)
    context = replace(study_context(tmp_path), config=config, data_path=data.path, data_digest=data.digest)
    begin(context)
    assert [kind for kind, _ in context.store().stages()] == ["instruments"]
    uses = prepared(context).stages
    assert {use["kind"]: use["reused"] for use in uses} == dict.fromkeys(("instruments", "denoiser", "trajectory"), False)
    told = [json.loads(path.read_text())["text"] for path in sorted((context.folder / "progress").glob("*.line"))]
    # The two others were there as it was prepared.
    assert [line.split(" in ")[0] for line in told[-3:-1]] == ["instruments: built", "denoiser: reused"]
    assert told[-1].startswith("trajectory: reused")
