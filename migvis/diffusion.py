"""Noise schedule, DDIM inversion and sampling (Algorithm 1): pure functions, one algorithm each; and the denoiser's fit.

α_t is the cumulative product: y_t = √α_t·y_0 + √(1 − α_t)·ε (A Eq. 7), t = 0…T with α_0 = 1. DDIM runs in
ȳ = y/√α_t coordinates, where it is an Euler step in the noise level σ_t = √(1/α_t − 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from migvis import randomness
from migvis.config import MAX_EDIT_STEP, DenoiserConfig
from migvis.errors import InputError
from migvis.training import WHOLE, FitResult, Progress, Shard, StepLoss, fit
from migvis.unet import UNet, bfloat16_convolutions, compiled

Denoise = Callable[[Tensor, Tensor], Tensor]
"""ε_θ: (y_t [n, 1, H, W], t [n] int64) -> predicted noise [n, 1, H, W]."""

_ALPHA_FLOOR = 1e-5


def noise_schedule(steps: int, kind: Literal["sigmoid"] = "sigmoid") -> Tensor:
    """α_0…α_T, float32 [steps + 1]: α_t = [sg(3) − sg(6t/T − 3)]/[sg(3) − sg(−3)], floored at 1e-5 (it ends at 0).

    Raises InputError for fewer than 2 steps or an unknown kind.
    """
    if steps < 2:
        raise InputError(f"diffusion_steps: at least 2, got {steps}")
    if kind != "sigmoid":
        raise InputError(f"noise schedule: known kinds are 'sigmoid', got {kind!r}")
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    low, high = torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64)), torch.sigmoid(torch.tensor(3.0, dtype=torch.float64))
    return ((high - torch.sigmoid(6 * t - 3)) / (high - low)).clamp(min=_ALPHA_FLOOR).float()


def noise_levels(alphas: Tensor) -> Tensor:
    """σ_t = √(1/α_t − 1), [T + 1]."""
    return (1 / alphas - 1).clamp(min=0).sqrt()


def edit_step_index(edit_step: float, steps: int) -> int:
    """The integer t′ in 1…⌊0.95 T⌋ of an edit step given as a fraction of T."""
    if not 0 < edit_step <= MAX_EDIT_STEP:
        raise InputError(f"synthesis.edit_step: a fraction of T in (0, {MAX_EDIT_STEP}], got {edit_step}")
    return max(1, min(round(edit_step * steps), max_edit_index(steps)))


def max_edit_index(steps: int) -> int:
    """⌊0.95 T⌋, the last step that is inverted or drawn for the pool."""
    return math.floor(MAX_EDIT_STEP * steps + 1e-9)


def add_noise(images: Tensor, noise: Tensor, t: Tensor, alphas: Tensor) -> Tensor:
    """y_t = √α_t·y_0 + √(1 − α_t)·ε for images and noise [n, 1, H, W] and t [n]."""
    alpha = alphas[t][:, None, None, None]
    return alpha.sqrt() * images + (1 - alpha).sqrt() * noise


def predict_clean(noisy: Tensor, noise: Tensor, alpha: Tensor | float) -> Tensor:
    """x̂₀ = (y_t − √(1 − α_t)·ε)/√α_t (A Eq. 8)."""
    alpha = torch.as_tensor(alpha, dtype=noisy.dtype, device=noisy.device)
    return (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt()


def clip_clean(denoise: Denoise, alphas: Tensor) -> Denoise:
    """Wraps a denoiser so that its x̂₀ lies in [−1, 1]; ε is re-derived at the α_t of the t it is called with."""

    def clipped(noisy: Tensor, t: Tensor) -> Tensor:
        alpha = alphas[t][:, None, None, None]
        clean = predict_clean(noisy, denoise(noisy, t), alpha).clamp(-1, 1)
        return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    return clipped


def check_edit_step(edit_step: int, alphas: Tensor) -> None:
    """Raises InputError for an edit step outside 1…⌊0.95 T⌋."""
    limit = max_edit_index(len(alphas) - 1)
    if not 1 <= edit_step <= limit:
        raise InputError(f"edit_step: an integer in 1…{limit} (0.95 T), got {edit_step}")


def ddim_invert(
    denoise: Denoise, images: Tensor, alphas: Tensor, edit_step: int, trajectory: bool = False, corrections: int = 0
) -> Tensor:
    """The state at t′ = edit_step of images [n, 1, H, W] by deterministic DDIM inversion (Algorithm 1, lines 2–3).

    ȳ_t = ȳ_{t−1} + (σ_t − σ_{t−1})·ε_θ(y_{t−1}, t). The return evaluates ε_θ at y_t instead. So with `corrections`, ε is
    first extrapolated from the two steps before, and then as often evaluated at the y_t that it leads to: a fixed-point
    iteration towards the state from which DDIM returns exactly (Pan et al. 2023, who begin at ε_θ(y_{t−1}, t)). Not at
    t = 1, where σ_0 = 0 and it would not contract. With `trajectory`, all states [t′ + 1, n, 1, H, W], the images first.
    Raises InputError for an edit step outside 1…⌊0.95 T⌋.
    """
    check_edit_step(edit_step, alphas)
    sigma = noise_levels(alphas)
    state, states = images, [images]
    before = noise = torch.zeros_like(images)
    for t in range(1, edit_step + 1):
        times, start = torch.full((len(images),), t, device=images.device), state / alphas[t - 1].sqrt()
        step = sigma[t] - sigma[t - 1]
        if corrections == 0 or t == 1:
            before = noise = denoise(state, times)
        else:
            before, noise = noise, 2 * noise - before
            for _ in range(corrections):
                noise = denoise(alphas[t].sqrt() * (start + step * noise), times)
        state = alphas[t].sqrt() * (start + step * noise)
        if trajectory:
            states.append(state)
    return torch.stack(states) if trajectory else state


def ddim_sample(denoise: Denoise, noisy: Tensor, alphas: Tensor, edit_step: int) -> Tensor:
    """Images [n, 1, H, W] from states at t′ = edit_step by deterministic DDIM sampling (Algorithm 1, lines 4–6).

    ȳ_{t−1} = ȳ_t + (σ_{t−1} − σ_t)·ε(y_t, t). Guidance is inside `denoise`; nothing is clamped here.
    Raises InputError for an edit step outside 1…⌊0.95 T⌋.
    """
    check_edit_step(edit_step, alphas)
    sigma = noise_levels(alphas)
    state = noisy
    for t in range(edit_step, 0, -1):
        noise = denoise(state, torch.full((len(noisy),), t, device=noisy.device))
        scaled = state / alphas[t].sqrt() + (sigma[t - 1] - sigma[t]) * noise
        state = alphas[t - 1].sqrt() * scaled
    return state


def dequantise(images: Tensor, alphas: Tensor, amount: float) -> Tensor:
    """Images [n, 1, H, W] plus Gaussian noise of standard deviation amount·σ_1, fixed by the picture, so that edits compare.

    Inversion multiplies what is uncertain in an image, and an exactly even background has nothing uncertain: its state
    at t′ would hold no noise there, unlike any state that the denoiser was fitted to, and no edit could grow into it.
    The first step of the inversion, which is not corrected, doubles the noise: with T = 150, amount = 0.25 arrives at t′ with
    half of σ_t′ if the later steps are corrected, and with two fifths if they are not.
    """
    noise = randomness.normal(0, "dequantisation", 0, randomness.picture_key(images), tuple(images.shape[1:]))
    return images + amount * noise_levels(alphas)[1] * noise


def denoising_loss(
    unet: UNet, images: Tensor, noise: Tensor, t: Tensor, own: Tensor | None = None, condition: Tensor | None = None
) -> Tensor:
    """Mean of (ε_θ − ε)²·(v + σ_t²)/v over batch and pixels: the ε loss, weighted so that every t counts alike.

    This is the squared error of the raw network, whose target has unit variance at every t (see UNet); the plain ε loss
    hardly weighs x̂₀ at large t, where edits start. own [n]: which remembered pictures the images are (UNet.without);
    condition: as in UNet.forward.
    """
    _, sigma = unet.scales(t)
    error = unet(add_noise(images, noise, t, unet.alphas), t, own, condition) - noise
    return (error.square() * (1 + sigma.square() / unet.pixel_variance)).mean()


def training_times(draws: Tensor, config: DenoiserConfig) -> Tensor:
    """t = ⌈T·u^k⌉ in 1…T for uniform draws u [n]: uniform at k = time_bias = 1.

    With k above 1 a short fit spends more of its steps where edges are made (σ_t below 1): half of the sigmoid
    schedule's steps have σ_t above 1, where only a blur can be predicted.
    """
    return (config.diffusion_steps * draws**config.time_bias).ceil().long().clamp(1, config.diffusion_steps)


def denoiser_step(unet: UNet, images: Tensor, config: DenoiserConfig, seed: int, shard: Shard = WHOLE) -> StepLoss:
    """The loss of a training step of `unet` on training images [n, 1, H, W], both on one device, as `fit` takes it."""
    shape = tuple(images.shape[1:])

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        order = randomness.epoch_batch(seed, "denoiser-batch", step, len(images), config.batch_size)
        rows = shard.take(order).to(images.device)
        batch = images[rows]
        if config.horizontal_flip:
            flip = randomness.uniform(seed, "denoiser-flip", step, rows) < 0.5
            batch = torch.where(flip[:, :, None, None], batch.flip(-1), batch)
        t = training_times(randomness.uniform(seed, "denoiser-time", step, rows)[:, 0], config)
        noise = randomness.normal(seed, "denoiser-noise", step, rows, shape).to(images.dtype)
        recalled = randomness.uniform(seed, "denoiser-recall", step, rows)[:, 0] < config.memory_recall
        loss = denoising_loss(unet, batch, noise, t, torch.where(recalled, -1, rows))
        return shard.share(len(rows), len(order)) * loss, {}

    return step_loss


def fit_denoiser(
    images: Tensor,
    config: DenoiserConfig,
    *,
    seed: int,
    shard: Shard = WHOLE,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    compile_network: bool = False,
) -> tuple[UNet, FitResult]:
    """Fits ε_θ to training images [n, 1, H, W] in [−1, 1]; returns the averaged (EMA) U-Net in evaluation mode.

    precision, compile_network: as `train_denoiser` takes them. t is drawn in 1…T (training_times); images are flipped left to
    right at random. Raises FitError at a non-finite loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive_seed(seed, "denoiser"))
        unet = UNet(config, images.shape[-1], noise_schedule(config.diffusion_steps))
    unet = unet.to(device, images.dtype)
    images = images.to(device)
    unet.normalise_to(images)
    result = train_denoiser(
        unet, images, config, seed=seed, shard=shard, checkpoint=checkpoint, progress=progress, precision=precision,
        compile_network=compile_network,
    )  # fmt: skip
    return unet.eval().requires_grad_(False), result


def train_denoiser(
    unet: UNet,
    images: Tensor,
    config: DenoiserConfig,
    *,
    seed: int,
    shard: Shard = WHOLE,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    compile_network: bool = False,
) -> FitResult:
    """Trains `unet`, in place, on training images [n, 1, H, W] of its device for config.training_steps.

    precision="bf16" computes in bfloat16: on a GPU what autocast lowers, on a CPU the convolutions (bfloat16_convolutions).
    compile_network: as migvis.unet.compiled does, which pays where the fit is long.
    """
    only_convolutions = precision == "bf16" and images.device.type == "cpu"
    with (
        bfloat16_convolutions(unet) if only_convolutions else nullcontext(),
        compiled(unet) if compile_network else nullcontext(),
    ):
        return fit(
            unet,
            denoiser_step(unet, images, config, seed, shard),
            name="denoiser",
            steps=config.training_steps,
            learning_rate=config.learning_rate,
            schedule="cosine",
            ema_decay=config.ema_decay,
            precision="fp32" if only_convolutions else precision,
            checkpoint=checkpoint,
            shard=shard,
            progress=progress,
        )


@torch.no_grad()
def denoised_pool(
    denoise_without: Callable[[Tensor], Denoise], images: Tensor, alphas: Tensor, draws: int, seed: int, batch: int = 256
) -> Tensor:
    """x̂₀ of noised images, [n, draws, 1, H, W]: what a critic meets during synthesis, at t uniform in 1…⌊0.95 T⌋.

    `images` [n, 1, H, W] in [−1, 1]; `denoise_without(rows)` is the denoiser for the images of these rows, x̂₀ already
    clipped: it must not remember them, since it will not know the pictures that it edits.
    """
    limit = max_edit_index(len(alphas) - 1)
    pool = torch.empty(len(images), draws, *images.shape[1:])
    rows = torch.arange(len(images), device=images.device)
    for draw in range(draws):
        for part in rows.split(batch):
            t = randomness.integers(seed, "pool-time", draw, part, 1, limit)
            noise = randomness.normal(seed, "pool-noise", draw, part, tuple(images.shape[1:]))
            noisy = add_noise(images[part], noise, t, alphas)
            pool[part.cpu(), draw] = predict_clean(noisy, denoise_without(part)(noisy, t), alphas[t][:, None, None, None]).cpu()
    return pool
