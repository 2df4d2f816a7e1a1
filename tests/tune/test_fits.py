"""All three fits as stages, by one worker in this process and by two through Ray Train. Real Ray, so slow."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from migvis.config import PRESETS, Configuration
from migvis.data import load_dataset
from migvis.data.synthetic.stimuli import make_synthetic
from migvis.training import WHOLE, FitResult, Shard, StepLoss, Term, fit
from migvis.weights import read_tensors
from tune import fits
from tune.pipeline import StageUse, ensure, ensure_together
from tune.stages import Stages
from tune.store import StageStore

pytestmark = pytest.mark.slow
QUICK = PRESETS["quick"]
TINY = Configuration(
    data=QUICK.data.model_copy(update={"stimulus_count": 128}),
    vae=QUICK.vae.model_copy(update={"epochs": 4, "batch_size": 32}),
    critic=QUICK.critic.model_copy(update={"infonce_batch": 16, "images_seen": 160, "minimum_steps": 10}),
    denoiser=QUICK.denoiser.model_copy(update={"training_steps": 8, "batch_size": 8, "base_width": 8, "memory_copies": 2}),
    synthesis=QUICK.synthesis,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(TINY.data, tmp_path_factory.mktemp("set") / "set.h5")


def in_float32() -> str:
    """Stands for `denoiser_precision`: in bfloat16 (tests/test_workers.py) the sum over workers rounds otherwise than one."""
    return "fp32"


def dying(job: Callable[..., dict[str, Any]], module: str, died: Path) -> Callable[..., dict[str, Any]]:
    """A job whose fit, of `module`, writes a checkpoint every 2 steps, and whose last worker is killed once, in step 5.

    Where the fit began is left beside `died`.
    """

    def run(*arguments: Any, shard: Shard = WHOLE, **options: Any) -> dict[str, Any]:
        def fit_and_die(model: nn.Module, step_loss: StepLoss, **settings: Any) -> FitResult:
            def loss(step: int) -> tuple[Tensor, Mapping[str, Term]]:
                if step == 5 and shard.rank == shard.world - 1 and not died.exists():
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return step_loss(step)

            result = fit(model, loss, **{**settings, "checkpoint_every": 2})
            died.with_suffix(".resumed").write_text(str(result.start_step))
            return result

        importlib.import_module(module).fit = fit_and_die
        importlib.import_module("tune.fits").denoiser_precision = in_float32
        return job(*arguments, shard=shard, **options)

    return run


@pytest.fixture
def sent_to_workers(local_ray) -> Iterator[None]:
    """Workers cannot import this file by name."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[dying.__module__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[dying.__module__])


@pytest.mark.parametrize(
    ("kind", "module"), [("vae", "migvis.vae_fit"), ("critic", "migvis.critic"), ("denoiser", "migvis.diffusion")]
)
def test_two_workers_of_which_one_is_killed_fit_what_one_fits_alone(
    sent_to_workers, kind: str, module: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = load_dataset(data).digest
    weights, losses = [], []
    died = tmp_path / "died"
    monkeypatch.setattr(fits, "denoiser_precision", in_float32)
    for workers in (1, 2):
        if workers > 1:
            monkeypatch.setattr(fits, f"{kind}_job", dying(getattr(fits, f"{kind}_job"), module, died))
        stages = Stages(data, digest, TINY, 0, threads=1, workers=workers)
        stage = stages.denoiser() if kind == "denoiser" else getattr(stages, kind)("M1", 0)
        seen: list[str] = []
        store = StageStore(tmp_path / str(workers))
        result = ensure(stage, store, progress=lambda _, update, seen=seen: seen.append(update.name))
        assert any("starting Ray Train" in name for name in seen) == (workers > 1)
        losses.append(result.log["curves"]["loss"][-1][1])
        weights.append(read_tensors(result.path / f"{kind}.safetensors"))
    assert died.with_suffix(".resumed").read_text() == "4"
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
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
