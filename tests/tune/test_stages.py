"""What each hyperparameter changes in the stage graph, and what it leaves to be reused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from migvis.config import PRESETS, Configuration, VAEConfig
from tune.sources import source_files
from tune.stage_graph import topological
from tune.stages import EXPECTED_SECONDS, Stages


def keys(configuration: Configuration, **options: Any) -> dict[str, str]:
    stages = Stages(Path("set.h5"), "digest", configuration, **{"seed": 0, **options})
    return {
        f"{stage.kind} {stage.label}".strip(): stage.key
        for stage in topological([*stages.study_stages(), *stages.trial_stages(range(1)), stages.gallery("M1", 0)])
    }


def changed(section: str, **values: object) -> set[str]:
    base = PRESETS["quick"]
    other = base.model_copy(update={section: getattr(base, section).model_copy(update=values)})
    before, after = keys(base), keys(other)
    assert before.keys() == after.keys()
    return {name.split()[0] for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("synthesis", {"guidance_scale": 7.0}, {"synthesis", "evaluation", "gallery"}),
        ("synthesis", {"edit_step": 0.5}, {"synthesis", "evaluation", "gallery"}),
        ("critic", {"infonce_batch": 32}, {"critic", "synthesis", "evaluation", "gallery"}),
        ("vae", {"pc_weight": 1e-3}, {"vae", "representation", "critic", "synthesis", "evaluation", "gallery"}),
        ("vae", {"group_rank": 4}, {"vae", "standard_vae", "representation", "critic", "synthesis", "evaluation", "gallery"}),
        ("synthesis", {"sweep_scales": (1.0,)}, {"gallery"}),
        ("synthesis", {"shifts": (3.0,)}, {"gallery"}),
        ("synthesis", {"final_pairs": 7}, {"trajectory", "gallery"}),
    ],
)
def test_a_change_rebuilds_what_reads_it_and_nothing_else(section: str, values: dict[str, object], expected: set[str]) -> None:
    assert changed(section, **values) == expected


def test_the_denoiser_and_what_follows_change_with_its_configuration() -> None:
    assert changed("denoiser", training_steps=5) == {"denoiser", "trajectory", "synthesis", "evaluation", "gallery"}


def test_the_pool_is_made_for_critics_and_probes_that_read_it() -> None:
    """A critic of clean pictures and the oracle of rendered stimuli need no denoiser."""
    base = PRESETS["quick"]
    pooled = base.model_copy(update={"critic": base.critic.model_copy(update={"training_images": "pool"})})
    assert "pool" not in keys(base)
    assert {"pool", "critic M1 seed 0"} <= keys(pooled).keys()
    assert "pool" in keys(base, rendered=False)
    fewer = pooled.model_copy(update={"denoiser": pooled.denoiser.model_copy(update={"training_steps": 5})})
    assert keys(fewer)["critic M1 seed 0"] != keys(pooled)["critic M1 seed 0"]
    assert keys(fewer)["instruments"] == keys(pooled)["instruments"]
    assert keys(fewer, rendered=False)["instruments"] != keys(pooled, rendered=False)["instruments"]


def test_the_standard_vae_is_shared_by_all_splits_of_its_dimensions() -> None:
    base = PRESETS["quick"]
    split = base.model_copy(update={"vae": base.vae.model_copy(update={"group_count": 6, "group_rank": 2})})
    assert keys(base)["standard_vae M1 seed 0"] == keys(split)["standard_vae M1 seed 0"]
    assert keys(base)["vae M1 seed 0"] != keys(split)["vae M1 seed 0"]


def test_any_number_of_dimensions_has_a_standard_vae() -> None:
    base = PRESETS["quick"]
    wide = base.model_copy(update={"vae": base.vae.model_copy(update={"group_count": 12, "group_rank": 8})})
    config = Stages(Path("set.h5"), "digest", wide, seed=0).standard_vae("M1", 0).config["vae"]
    assert VAEConfig.model_validate(config).group_count == 96


def test_the_oracle_is_calibrated_before_the_longest_fit() -> None:
    kinds = [stage.kind for stage in Stages(Path("set.h5"), "digest", PRESETS["quick"], seed=0).study_stages()]
    assert kinds == ["instruments", "denoiser", "trajectory"]
    recordings = Stages(Path("set.h5"), "digest", PRESETS["quick"], seed=0, rendered=False).study_stages()
    assert [stage.kind for stage in recordings] == ["denoiser", "pool", "instruments", "trajectory"]


def test_how_a_stage_is_run_is_in_no_key() -> None:
    assert keys(PRESETS["quick"]) == keys(PRESETS["quick"], threads=7, workers=3, ray_train=True)


def test_seed_and_data_are_in_every_fit() -> None:
    base, other = keys(PRESETS["quick"]), keys(PRESETS["quick"], seed=1)
    assert base["denoiser"] != other["denoiser"]
    digest = Stages(Path("set.h5"), "another", PRESETS["quick"], seed=0)
    assert digest.vae("M1", 0).key != base["vae M1 seed 0"]


def test_every_kind_has_an_expected_cost() -> None:
    assert {name.split()[0] for name in keys(PRESETS["quick"], rendered=False)} <= set(EXPECTED_SECONDS)


def test_a_stage_reads_the_source_of_all_that_computes_it() -> None:
    stages = Stages(Path("set.h5"), "digest", PRESETS["quick"], seed=0)
    needed = {
        stages.denoiser(): {"diffusion", "unet", "memory", "training", "optimizer", "randomness"},
        stages.representation("M1", 0): {"representation", "group_disentanglement", "logistic", "reconstruction", "vae"},
        stages.trajectory(): {"diffusion", "edit_scores", "selectivity", "rotations", "instrument", "objects"},
        stages.instruments(): {"edit_scores", "render_fit", "renderer", "rotations", "probes"},
        stages.critic("M1", 0): {"critic", "critic_batches", "encoders", "training"},
        stages.synthesis("M1", 0): {"synthesis", "guidance", "tilt", "memory", "diffusion"},
        stages.gallery("M1", 0): {"gallery", "builders", "synthesis", "guidance", "tilt", "memory", "diffusion"},
        stages.evaluation("M1", 0): {"edit_scores", "selectivity", "novelty", "render_fit", "rotations"},
    }
    for stage, names in needed.items():
        files = source_files(stage.modules)
        assert names | {"stage_data", "dataset"} <= {file.stem for file in files}, stage.kind
        assert Path(stage.build.func.__code__.co_filename).stem in {file.stem for file in files}
        assert not {"builders", "fits"} <= {file.stem for file in files}, stage.kind
        assert not {"config", "errors", "run", "store"} & {file.stem for file in files}, stage.kind
    vae = {file.stem for file in source_files(stages.vae("M1", 0).modules)}
    assert not {"unet", "diffusion", "critic", "synthesis"} & vae, "a change of the denoiser refits no VAE"
