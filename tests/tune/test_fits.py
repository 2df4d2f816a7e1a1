"""All three fits as stages, by one worker in this process and by two through Ray Train. Real Ray, so slow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from migvis.config import PRESETS, Configuration
from migvis.data import load_dataset
from migvis.data.synthetic.stimuli import make_synthetic
from migvis.weights import read_tensors
from tune.pipeline import StageUse, ensure, ensure_together
from tune.stages import Stages
from tune.store import StageStore

pytestmark = pytest.mark.slow
QUICK = PRESETS["quick"]
TINY = Configuration(
    data=QUICK.data.model_copy(update={"stimulus_count": 128}),
    vae=QUICK.vae.model_copy(update={"epochs": 4, "batch_size": 32}),
    critic=QUICK.critic.model_copy(update={"infonce_batch": 16, "images_seen": 160, "minimum_steps": 10}),
    denoiser=QUICK.denoiser.model_copy(update={"training_steps": 4, "batch_size": 8, "base_width": 8, "memory_copies": 2}),
    synthesis=QUICK.synthesis,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(TINY.data, tmp_path_factory.mktemp("set") / "set.h5")


@pytest.mark.parametrize("kind", ["vae", "critic", "denoiser"])
def test_two_workers_fit_what_one_fits_alone(local_ray, kind: str, data: Path, tmp_path: Path) -> None:
    digest = load_dataset(data).digest
    weights = []
    for workers in (1, 2):
        stages = Stages(data, digest, TINY, 0, threads=1, workers=workers)
        stage = stages.denoiser() if kind == "denoiser" else getattr(stages, kind)("M1", 0)
        seen: list[str] = []
        store = StageStore(tmp_path / str(workers))
        result = ensure(stage, store, progress=lambda _, update, seen=seen: seen.append(update.name))
        assert any("starting Ray Train" in name for name in seen) == (workers > 1)
        assert result.log["curves"]["loss"], "the log of the fit is in the manifest"
        weights.append(read_tensors(result.path / f"{kind}.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor.float(), weights[1][name].float(), atol=2e-3, rtol=1e-2), name


def test_seeds_of_a_trial_are_fitted_together_as_each_alone(data: Path, tmp_path: Path) -> None:
    stages = Stages(data, load_dataset(data).digest, TINY, 0, threads=1)
    alone, together = (StageStore(tmp_path / name) for name in ("alone", "together"))
    uses: list[StageUse] = []
    ensure_together(stages.vaes(range(3)), together, uses=uses)
    assert [use.kind for use in uses].count("vae") == len(uses) / 2 == 3
    for stage in stages.vaes(range(3)):
        expected, found = ensure(stage, alone), ensure(stage, together)
        assert found.reused
        assert found.log["curves"].keys() == expected.log["curves"].keys()
        tensors = read_tensors(found.path / "vae.safetensors")
        for name, tensor in read_tensors(expected.path / "vae.safetensors").items():
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=1e-4)
    # Ray Train fits one at a time.
    assert all(stage.together is None for stage in replace(stages, workers=2).vaes(range(2)))


def test_a_killed_fit_of_several_is_resumed_by_the_same_set_only(
    data: Path, tmp_path: Path, killed_after: Callable[[int, str], AbstractContextManager[None]]
) -> None:
    stages = Stages(data, load_dataset(data).digest, TINY, 0, threads=1)
    store, reference = (StageStore(tmp_path / name) for name in ("store", "reference"))
    pair = [stages.vae("M1", seed) for seed in (0, 1)]
    first = min(pair, key=lambda stage: stage.key)
    # Another partner for the one whose scratch folder holds the checkpoint, which stays first.
    other = next(stage for seed in range(2, 100) if (stage := stages.vae("M1", seed)).key > first.key)
    with killed_after(2, "migvis.vae_fit"):
        ensure_together(pair, store)
    assert list(store.scratch(first.kind, first.key).glob("vaes-*.pt"))
    ensure_together([first, other], store)
    for stage in (first, other):
        tensors = read_tensors(ensure(stage, store).path / "vae.safetensors")
        for name, tensor in read_tensors(ensure(stage, reference).path / "vae.safetensors").items():
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=1e-4)
