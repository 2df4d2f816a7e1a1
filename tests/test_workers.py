"""Every fit on 1, 2 and 4 workers: one loss curve and one set of weights, in float64 over gloo, from the real fit functions.

Batches are of sizes that the workers do not divide, too. A batch's InfoNCE and its partial correlation couple all of its
samples, so a gather that loses negatives or gradients shows at once.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from migvis import randomness
from migvis.conditional import fit_conditional_denoiser
from migvis.config import CriticConfig, DenoiserConfig, VAEConfig
from migvis.critic import fit_critic
from migvis.diffusion import fit_denoiser, noise_schedule
from migvis.errors import InputError
from migvis.image_decoder import fit_image_decoder
from migvis.latent_encoder import fit_latent_encoder
from migvis.training import FitResult, Shard, fit
from migvis.unet import UNet
from migvis.vae_fit import fit_vae

STEPS = 50
LOSS, WEIGHT = 1e-10, 1e-8
"""What is asked of the loss of each step and of each weight at the end."""
FITS = ("vae_fit", "critic", "diffusion", "conditional", "latent_encoder", "image_decoder")
PICTURES, STIMULI, SIZE, GROUPS, RANK = 40, 60, 16, 3, 2
WAIT = timedelta(seconds=900)
pytestmark = pytest.mark.timeout(1200)  # a second per fit, and what a busy machine makes of it


class Fitted(NamedTuple):
    """weights: all tensors of the model. curves: as in FitResult, of every step."""

    weights: dict[str, Tensor]
    curves: dict[str, list[tuple[int, float]]]


def drawn(stream: str, *shape: int) -> Tensor:
    return randomness.normal(0, stream, 0, torch.arange(shape[0]), shape[1:])


def vae(shard: Shard, dtype: torch.dtype, *, rows: int, labelled: bool = True, **options: str) -> tuple[nn.Module, FitResult]:
    """150 stimuli, so many batches of `rows` that there are STEPS steps; the partial correlation weighs much."""
    responses, pose, category = drawn("responses", 150, 20).to(dtype), 30 * drawn("pose", 150, 6), torch.arange(150) % 5
    config = VAEConfig(
        group_count=GROUPS, group_rank=RANK, batch_size=rows, epochs=STEPS // (150 // rows), pc_weight=0.05, hidden_width=16
    )
    labels = (pose, category) if labelled else (None, None)
    return fit_vae(responses, *labels, config, category_count=5, seed=3, shard=shard, **options)


def pictures(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """PICTURES pictures and, of each, two draws of a pool."""
    clean = (drawn("pictures", PICTURES, 1, SIZE, SIZE) / 2).clamp(-1, 1).to(dtype)
    return clean, (clean[:, None] + 0.1 * drawn("pool", PICTURES, 2, 1, SIZE, SIZE).to(dtype)).clamp(-1, 1)


def posteriors(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """mean and log-variance of STIMULI stimuli, and the picture that each shows: some are shown twice."""
    row = torch.cat([torch.arange(PICTURES), torch.arange(STIMULI - PICTURES)])
    return drawn("mean", STIMULI, GROUPS * RANK).to(dtype), drawn("log_var", STIMULI, GROUPS * RANK).to(dtype) - 1, row


def critic_config(rows: int, images: str) -> CriticConfig:
    return CriticConfig(
        encoder="cnn", training_images=images, infonce_batch=rows, images_seen=1, minimum_steps=STEPS,
        embedding_width=16, embedding_dropout=0.1, learning_rate=4e-3,
    )  # fmt: skip


def critic(
    shard: Shard, dtype: torch.dtype, *, rows: int, images: str, fitted: Callable[..., tuple[nn.Module, FitResult]] = fit_critic,
    **options: str,
) -> tuple[nn.Module, FitResult]:  # fmt: skip
    """The critic of GROUPS groups, or what is fitted on the same pairs."""
    clean, pool = pictures(dtype)
    config = critic_config(rows, images)
    return fitted(clean, pool, *posteriors(dtype), config, GROUPS, seed=3, shard=shard, **options)


def image_decoder(shard: Shard, dtype: torch.dtype, *, rows: int) -> tuple[nn.Module, FitResult]:
    return fit_image_decoder(pictures(dtype)[0], *posteriors(dtype), critic_config(rows, "clean"), seed=3, shard=shard)


def denoiser_config(rows: int, copies: int) -> DenoiserConfig:
    """The quick preset's, smaller: flips, small t more often, a memory of `copies`."""
    return DenoiserConfig(
        base_width=8, width_multipliers=(1, 2), stem_patch=2, training_steps=STEPS, batch_size=rows, learning_rate=1.5e-3,
        ema_decay=0.998, time_bias=2.0, attention_pixels=16, memory_copies=copies, memory_rank=16,
    )  # fmt: skip


def denoiser(shard: Shard, dtype: torch.dtype, *, rows: int, copies: int, **options: str) -> tuple[nn.Module, FitResult]:
    return fit_denoiser(pictures(dtype)[0], denoiser_config(rows, copies), seed=3, shard=shard, **options)


def conditional(shard: Shard, dtype: torch.dtype, *, rows: int) -> tuple[nn.Module, FitResult]:
    clean, _ = pictures(dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet(denoiser_config(rows, 1), SIZE, noise_schedule(150)).to(dtype)
    unet.normalise_to(clean)
    return fit_conditional_denoiser(unet, clean, *posteriors(dtype), GROUPS, steps=STEPS, seed=3, shard=shard)


CASES: dict[str, Callable[[Shard, torch.dtype], tuple[nn.Module, FitResult]]] = {
    "VAE, labels, batches of 30": functools.partial(vae, rows=30),
    "VAE, no labels, batches of 75": functools.partial(vae, rows=75, labelled=False),
    "critic, clean, batches of 16": functools.partial(critic, rows=16, images="clean"),
    "critic, pool, batches of 19": functools.partial(critic, rows=19, images="pool"),
    "denoiser, batches of 8": functools.partial(denoiser, rows=8, copies=0),
    "denoiser, memory, batches of 11": functools.partial(denoiser, rows=11, copies=2),
    "conditional denoiser, batches of 11": functools.partial(conditional, rows=11),
    "latent encoder, batches of 19": functools.partial(critic, rows=19, images="pool", fitted=fit_latent_encoder),
    "image decoder, batches of 19": functools.partial(image_decoder, rows=19),
}
IN_BF16: dict[str, Callable[[Shard, torch.dtype], tuple[nn.Module, FitResult]]] = {
    "VAE": functools.partial(vae, rows=30, precision="bf16"),
    "critic": functools.partial(critic, rows=19, images="pool", precision="bf16"),
    "denoiser": functools.partial(denoiser, rows=11, copies=2, precision="bf16"),
}


def fit_everything(shard: Shard) -> dict[str, Fitted]:
    """All cases, every step of them logged: those of CASES in float64, those of IN_BF16 with float32 weights."""
    for name in FITS:
        module = importlib.import_module(f"migvis.{name}")
        module.fit = lambda *arguments, **options: fit(*arguments, **{**options, "log_every": 1})
    try:
        result = {}
        for cases, dtype in ((CASES, torch.float64), (IN_BF16, torch.float32)):
            for name, case in cases.items():
                model, fitted = case(shard, dtype)
                assert {weight.dtype for weight in model.parameters()} == {dtype}
                result[name] = Fitted({key: value.detach() for key, value in model.state_dict().items()}, fitted.curves)
        return result
    finally:
        for name in FITS:
            importlib.import_module(f"migvis.{name}").fit = fit


def run_worker(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=WAIT)
    try:
        fitted = fit_everything(Shard(rank, world))
        torch.save({name: tuple(one) for name, one in fitted.items()}, folder / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> Mapping[str, Fitted]:
    return fit_everything(Shard())


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids=lambda world: f"N = {world}")
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Mapping[str, Fitted]]:
    """What each of the workers has in the end."""
    world, folder = request.param, tmp_path_factory.mktemp("workers")
    workers = torch.multiprocessing.spawn(run_worker, args=(world, folder), nprocs=world, join=False)
    try:
        while not workers.join():
            pass
    finally:
        for process in workers.processes:
            process.kill()
            process.join()
    stored = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
    return [{name: Fitted(*one) for name, one in of_rank.items()} for of_rank in stored]


@pytest.mark.parametrize("name", CASES)
def test_workers_fit_what_one_fits(alone: Mapping[str, Fitted], together: list[Mapping[str, Fitted]], name: str) -> None:
    expected = alone[name]
    assert [at for at, _ in expected.curves["loss"]] == list(range(1, STEPS + 1))
    assert expected.curves["loss"][-1][1] != expected.curves["loss"][0][1]
    for worker in together:
        found = worker[name]
        assert found.curves.keys() == expected.curves.keys()
        for term, curve in expected.curves.items():
            apart = max(abs(value - wanted) for (_, value), (_, wanted) in zip(found.curves[term], curve, strict=True))
            assert apart <= LOSS, f"{term}: {apart}"
        for key, weight in expected.weights.items():
            torch.testing.assert_close(found.weights[key], weight, rtol=0, atol=WEIGHT)


@pytest.mark.parametrize("name", IN_BF16)
def test_in_bf16_workers_come_close_to_one(alone: Mapping[str, Fitted], together: list[Mapping[str, Fitted]], name: str) -> None:
    expected, found = (dict(one[name].curves["loss"]) for one in (alone, together[0]))
    apart = max(abs(found[at] - value) / abs(value) for at, value in expected.items())
    print(f"\n{name}: the loss is at most {apart:.2g} of itself apart")
    assert apart < 5e-3
    for worker in together[1:]:
        for key, weight in together[0][name].weights.items():
            assert torch.equal(worker[name].weights[key], weight), "all workers hold the same weights"


@pytest.mark.parametrize("world", [2, 3, 4])
def test_shards_share_no_sample_and_draw_what_one_worker_draws(world: int) -> None:
    for step in range(20):
        batch = randomness.epoch_batch(1, "batch", step, PICTURES, 11)
        shards = [Shard(rank, world).take(batch) for rank in range(world)]
        assert sorted(torch.cat(shards).tolist()) == sorted(set(batch.tolist()))
        whole = randomness.normal(1, "noise", step, batch, (1, 7, 9))
        times = randomness.uniform(1, "time", step, batch)
        for rank, shard in enumerate(shards):
            assert torch.equal(randomness.normal(1, "noise", step, shard, (1, 7, 9)), Shard(rank, world).take(whole))
            assert torch.equal(randomness.uniform(1, "time", step, shard), Shard(rank, world).take(times))


def test_a_batch_smaller_than_the_workers_is_refused() -> None:
    with pytest.raises(InputError, match="workers=4: a batch of 3 samples is too small"):
        Shard(0, 4).take(torch.arange(3))
