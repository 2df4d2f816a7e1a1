"""The rivals of mutual information over the stage graph: what each reads, and that each makes the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from migvis.config import PRESETS, Configuration
from migvis.data import load_dataset
from migvis.data.synthetic.stimuli import make_synthetic
from migvis.errors import InputError
from migvis.weights import read_tensors
from tune.gallery import read_gallery
from tune.pipeline import ensure
from tune.stage_graph import topological
from tune.stages import EXPECTED_SECONDS, Stages
from tune.store import StageStore
from tune.study import Request, open_study

QUICK = PRESETS["quick"]
FIT = {
    "information": "critic",
    "likelihood": "latent_encoder",
    "activation": "latent_encoder",
    "linear_activation": "latent_regression",
    "classifier_free": "conditional_denoiser",
    "decoder": "image_decoder",
}
TINY = Configuration(
    data=QUICK.data.model_copy(update={"stimulus_count": 128, "split": (0.4, 0.3, 0.3)}),
    vae=QUICK.vae.model_copy(update={"epochs": 2, "batch_size": 32, "group_count": 2, "group_rank": 2}),
    critic=QUICK.critic.model_copy(
        update={"infonce_batch": 8, "images_seen": 32, "minimum_steps": 4, "evaluation_candidates": 16}
    ),
    denoiser=QUICK.denoiser.model_copy(
        update={
            "training_steps": 2,
            "conditional_steps": 2,
            "batch_size": 8,
            "base_width": 8,
            "memory_copies": 1,
            "diffusion_steps": 8,
        }
    ),
    synthesis=QUICK.synthesis.model_copy(
        update={"guidance_scale": 1.0, "sweep_scales": (0.5,), "shifts": (1.0,), "trial_pairs": 2, "final_pairs": 2}
    ),
)


def configured(method: str, base: Configuration = TINY, **synthesis: object) -> Configuration:
    return base.model_copy(update={"synthesis": base.synthesis.model_copy(update={"method": method, **synthesis})})


def keys(configuration: Configuration) -> dict[str, str]:
    stages = Stages(Path("set.h5"), "digest", configuration, 0)
    return {stage.kind: stage.key for stage in topological([stages.synthesis("M1", 0)])}


@pytest.mark.parametrize("method", FIT)
def test_a_method_fits_what_it_edits_with_and_leaves_the_rest(method: str) -> None:
    base, other = keys(TINY), keys(configured(method))
    assert {kind for kind in FIT.values() if kind in other} == {FIT[method]}
    assert all(base[kind] == other[kind] for kind in base.keys() & other.keys() - {"synthesis"})
    assert (base["synthesis"] == other["synthesis"]) == (method == "information")
    assert other.keys() <= EXPECTED_SECONDS.keys()
    scaled = keys(configured(method, guidance_scale=0.5))
    assert {kind for kind in other if other[kind] != scaled[kind]} == {"synthesis"}
    unguided = keys(configured(method, guidance="gradient"))
    assert (other["synthesis"] == unguided["synthesis"]) == (method in ("classifier_free", "decoder"))


def test_further_steps_of_the_conditional_denoiser_leave_the_unconditional_one() -> None:
    base = configured("classifier_free")
    more = base.model_copy(update={"denoiser": base.denoiser.model_copy(update={"conditional_steps": 3})})
    before, after = keys(base), keys(more)
    assert {kind for kind in before if before[kind] != after[kind]} == {"conditional_denoiser", "synthesis"}


@pytest.mark.parametrize("change", [{"guidance_scale": 20.0, "sweep_scales": ()}, {"guidance_scale": 1.0}])
def test_a_decoder_interpolates_only(change: dict[str, object]) -> None:
    synthesis = {**QUICK.synthesis.model_dump(), "method": "decoder", **change}
    with pytest.raises(ValidationError, match=r"synthesis.method=decoder .* of at most 1, got (20|80)"):
        Configuration(**{**QUICK.model_dump(), "synthesis": synthesis})


def test_a_study_searches_mutual_information_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^synthesis.method: a study searches information only; .* got 'likelihood'$"):
        open_study(Request(storage=tmp_path, dry_run=True, overrides=("synthesis.method=likelihood",)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(TINY.data, tmp_path_factory.mktemp("set") / "set.h5")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StageStore:
    return StageStore(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("method", FIT)
def test_every_method_makes_the_same_files(method: str, data: Path, store: StageStore) -> None:
    stages = Stages(data, load_dataset(data).digest, configured(method), 0, threads=1)
    made = ensure(stages.synthesis("M1", 0), store).path
    edits, gallery = read_tensors(made / "edits.safetensors"), read_gallery(ensure(stages.gallery("M1", 0), store).path)
    assert edits["images"].shape == (2 * 2 + 2, 1, 32, 32)
    assert edits["scale"].tolist() == [1.0] * 4 + [0.0] * 2
    assert gallery.images.shape == (2 * 2 + 2 * 2, 2, 1, 32, 32)
    for images in (edits["images"], gallery.images):
        assert bool(images.isfinite().all())
        assert float(images.abs().max()) <= 1
    assert (made / "synthesis.json").is_file()
    assert (made / "bank.safetensors").is_file() == (method == "information")
    if method == "decoder":
        assert not torch.allclose(edits["images"][:2], edits["images"][4:], atol=1e-4), "γ = 0 is the reconstruction"
