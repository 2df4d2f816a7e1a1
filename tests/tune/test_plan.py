"""The text of --dry-run: hits, misses, and seconds from what the store has observed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tune.context import StudyContext
from tune.plan import another, plan
from tune.space import PARAMETERS, SearchSpace, apply
from tune.stage_graph import Stage, topological
from tune.stages import EXPECTED_SECONDS
from tune.store import Manifest, StageStore
from tune.study_config import load_study_config
from tune.trial import stages_of

TRIALS = 12
TRIAL = ("vae", "standard_vae", "representation", "critic", "synthesis", "evaluation")


@pytest.fixture
def context(tmp_path: Path) -> StudyContext:
    config = load_study_config(None, [f"search.trials={TRIALS}", "search.final_seeds=2"])
    return StudyContext(tmp_path, "s", tmp_path / "s", config, tmp_path / "x.h5", "digest", True, 0, tmp_path / "stages", 1)


@pytest.fixture
def space(context: StudyContext) -> SearchSpace:
    return SearchSpace.of(context.config, 900)


def store_all(store: StageStore, stages: Iterable[Stage], seconds: float) -> None:
    for stage in topological(stages):
        if not store.exists(stage.kind, stage.key):
            folder = store.start_writing(stage.kind, stage.key)
            (folder / "value").write_text("x")
            inputs = {name: below.key for name, below in stage.inputs.items()}
            identity = (stage.kind, stage.key, stage.label, dict(stage.config), inputs, stage.seed, stage.dtype, "source")
            store.commit(folder, Manifest(*identity, seconds, "now", "0"))


def estimate(text: str) -> list[int]:
    """Seconds: study stages, trial 0, each other trial, how many of those, final stage; and the observed share in %."""
    line = text.splitlines()[-1]
    assert line.startswith("estimate: ")
    numbers = re.match(
        r"estimate: (\d+) s for the study stages, (\d+) s for trial 0, about (\d+) s for each of the other (\d+) trials "
        r"\(less what it reuses\), about (\d+) s for the final stage: up to .* in all, (\d+)% of it from observed seconds",
        line,
    )
    assert numbers is not None, line
    return [int(number) for number in numbers.groups()]


def test_trials_that_ended_are_not_counted_again(context: StudyContext, space: SearchSpace) -> None:
    for number in range(5):
        result = context.trial_folder(number) / "result.json"
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text("{}")
    assert estimate(plan(context, space))[3] == TRIALS - 5


GALLERY = EXPECTED_SECONDS["gallery"]
"""No test stores one, so it is never observed."""


def final_of(seconds: dict[str, float], first_seed_s: tuple[str, ...]) -> float:
    """Of two fits: what the search has fitted of the first one is there, and the test split's sources are inverted once."""
    other = sum(seconds[kind] for kind in TRIAL)
    return 2 * other - sum(seconds[kind] for kind in first_seed_s) + seconds["trajectory"] + GALLERY


def test_an_empty_store_has_no_hits_and_nothing_is_observed(context: StudyContext, space: SearchSpace) -> None:
    text = plan(context, space)
    study = sum(EXPECTED_SECONDS[kind] for kind in ("instruments", "denoiser", "trajectory"))
    trial = sum(EXPECTED_SECONDS[kind] for kind in TRIAL)
    final = final_of(EXPECTED_SECONDS, ("vae", "standard_vae", "critic"))
    assert "hits: 0 of 9 stages exist, 0 s saved" in text
    assert (
        f"misses: 9 of 9 stages are missing, {study + trial:.0f} s to come (0 s observed, {study + trial:.0f} s expected)" in text
    )
    assert estimate(text) == [study, trial, trial, TRIALS - 1, final, 0]
    assert not (context.storage / "stages").exists()


def test_what_exists_is_a_hit_and_the_rest_costs_what_its_kind_did_here(context: StudyContext, space: SearchSpace) -> None:
    store, stages = StageStore(context.stages_root), stages_of(context, context.config.configuration)
    store_all(store, [*stages.study_stages(), *stages.trial_stages(range(1))], 100.0)
    changed = apply(context.config.configuration, {"pc_weight": 1e-3})
    text = plan(context, space)
    assert "hits: 9 of 9 stages exist, 900 s saved" in text
    assert "misses: 0 of 9 stages are missing, 0 s to come (0 s observed, 0 s expected)" in text
    observed = dict.fromkeys(EXPECTED_SECONDS, 100.0)
    final = final_of(observed, ("vae", "standard_vae", "critic"))
    assert estimate(text)[:5] == [0, 0, 600, TRIALS - 1, final]
    assert estimate(text)[5] == round(100 * (1 - GALLERY / (600 * (TRIALS - 1) + final)))

    other = StudyContext(**{**vars(context), "config": context.config.model_copy(update={"vae": changed.vae})})
    text = plan(other, space)
    assert "hits: 4 of 9 stages exist, 400 s saved" in text  # the shared ones, and the standard VAE
    assert "misses: 5 of 9 stages are missing, 500 s to come (500 s observed, 0 s expected)" in text
    assert re.search(r"  standard_vae .*  exists +100\.0 s \(stored\)", text)
    assert re.search(r"  vae .*  missing +100\.0 s \(observed\)", text)
    assert estimate(text)[:4] == [0, 500, 600, TRIALS - 1]


def test_what_the_final_stage_shares_with_any_other_is_there_once_it_was_made(context: StudyContext, space: SearchSpace) -> None:
    store, stages = StageStore(context.stages_root), stages_of(context, context.config.configuration)
    store_all(store, [*stages.study_stages(), *stages.trial_stages(range(1))], 100.0)
    before = estimate(plan(context, space))
    store_all(store, [stage for stage in stages.final_stages(range(2)) if stage.kind != "gallery"], 100.0)
    after = estimate(plan(context, space))
    assert before[4] - after[4] == 100  # the inverted sources of the test pairs, whatever will be selected
    assert after[:4] == before[:4]


def test_another_point_of_the_space_differs_in_all_that_is_searched(context: StudyContext, space: SearchSpace) -> None:
    start = space.start(context.config.configuration)
    point = another(space, start)
    assert all(point[name] != start[name] for name in PARAMETERS)
    assert space.start(apply(context.config.configuration, point)) == point
    fixed = SearchSpace(**{**vars(space), "group_rank": (3, 3)})
    assert another(fixed, start)["group_rank"] == 3
