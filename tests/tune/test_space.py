from __future__ import annotations

import optuna
import pytest
from pydantic import ValidationError

from migvis.config import PRESETS
from migvis.errors import InputError
from tune.space import PARAMETERS, SearchSpace, apply, parameters_of, two_digits
from tune.study_config import STUDY_PRESETS, load_study_config

optuna.logging.set_verbosity(optuna.logging.WARNING)


def space(*overrides: str, pictures: int = 900) -> SearchSpace:
    return SearchSpace.of(load_study_config(None, overrides), pictures)


def test_defaults_are_the_designs() -> None:
    full, quick = SearchSpace.of(STUDY_PRESETS["paper"], 900), space()
    for both in (full, quick):
        assert both.pc_weight == (1e-6, 1e-1)
        assert (both.group_count, both.group_rank) == ((2, 8), (1, 8))
    assert full.infonce_batch == (16, 32, 64, 128, 256, 512)
    assert (full.edit_step, full.guidance_scale) == ((0.3, 0.95), (0.1, 100.0))
    assert quick.infonce_batch == (16, 32, 64, 128, 256)
    assert (quick.edit_step, quick.guidance_scale) == ((0.5, 0.95), (1.0, 100.0))


def test_infonce_batch_is_at_most_the_training_pictures() -> None:
    assert space(pictures=100).infonce_batch == (16, 32, 64)
    with pytest.raises(InputError, match=r"critic\.infonce_batch.*40.*64"):
        space(pictures=40)
    with pytest.raises(InputError, match=r"search\.infonce_batch"):
        space("critic.infonce_batch=8", pictures=10)


def test_diagonal_readout_fixes_the_rank() -> None:
    assert space("vae.readout=diagonal").group_rank == (3, 3)


def test_suggestions_are_rounded_in_range_and_applicable() -> None:
    full = SearchSpace.of(STUDY_PRESETS["paper"], 900)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(200):
        params = full.suggest(study.ask())
        assert tuple(params) == tuple(PARAMETERS)
        assert params["pc_weight"] == two_digits(params["pc_weight"])
        assert 1e-6 <= params["pc_weight"] <= 1e-1
        assert 0.1 <= params["guidance_scale"] <= 100
        assert 0.3 <= params["edit_step"] <= 0.95
        assert params["edit_step"] == pytest.approx(round(params["edit_step"] / 0.05) * 0.05)
        assert parameters_of(apply(PRESETS["quick"], params)) == params
        seen.add(params["edit_step"])
    assert len(seen) == 14


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_trial_0_is_the_presets_configuration(preset: str) -> None:
    params = space().start(PRESETS[preset])
    assert apply(PRESETS[preset], params) == PRESETS[preset]


def test_trial_0_is_rounded_to_the_nearest_value() -> None:
    config = load_study_config(None, ["vae.pc_weight=0.00123", "synthesis.edit_step=0.57"])
    start = SearchSpace.of(config, 900).start(config.configuration)
    assert (start["pc_weight"], start["edit_step"]) == (0.0012, 0.55)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("vae.group_rank=12", "outside search.group_rank [1, 8]; --set search.group_rank=[1,12] widens it"),
        ("vae.pc_weight=1e-07", "outside search.pc_weight [1e-06, 0.1]; --set search.pc_weight=[1e-07,0.1] widens it"),
        ("vae.pc_weight=0", "outside search.pc_weight [1e-06, 0.1]"),
        (
            "critic.infonce_batch=100",
            "outside search.infonce_batch [16, 32, 64, 128, 256]; --set search.infonce_batch=[16,32,64,100,128,256] widens it",
        ),
        ("synthesis.edit_step=0.43", "outside search.edit_step [0.5, 0.95]; --set search.edit_step=[0.45,0.95] widens it"),
    ],
)
def test_trial_0_outside_the_space_is_refused_with_the_range_to_widen(override: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        space(override)
    assert str(caught.value) == f"{override}: {line}"
    if "--set" in line:
        space(override, line.split("--set ")[1].removesuffix(" widens it"))


def test_apply_changes_only_the_searched_values_and_validates() -> None:
    base = PRESETS["quick"]
    changed = apply(base, {"guidance_scale": 3.0})
    assert changed.synthesis.guidance_scale == 3.0
    assert changed.vae == base.vae
    assert base.synthesis.guidance_scale == PRESETS["quick"].synthesis.guidance_scale != 3.0
    with pytest.raises(InputError):
        apply(base, {"epochs": 3})
    with pytest.raises(ValidationError):
        apply(base, {"edit_step": 0.99})


def test_ranges_tell_spaces_apart() -> None:
    assert space().ranges() == space().ranges()
    assert space("search.group_count=[2, 6]").ranges() == {**space().ranges(), "search.group_count": [2, 6]}
    assert space(pictures=100).ranges()["search.infonce_batch"] == [16, 32, 64]
