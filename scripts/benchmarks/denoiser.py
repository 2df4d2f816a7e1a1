"""A training step of the denoiser: as it is fitted, against plain eager fp32, contiguous.

The first row is the step of a short fit, such as the quick preset's, the second that of a long one, which is compiled; the minute
that this takes once is a figure beside it. Both compute in bfloat16 what gains by it, where the machine has that; the third row
is the first without. The baseline computes the same step with NCHW tensors, torch's default Adam and an average by a loop over
the weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Literal

import torch

from benchmarks._frame import Options, Result, Row, interleaved
from benchmarks._material import configuration, synthetic
from migvis.config import DenoiserConfig
from migvis.diffusion import denoiser_step, noise_schedule, train_denoiser
from migvis.training import StepLoss, averaging_decay, learning_rate_factor
from migvis.unet import UNet, compiled
from tune.fits import denoiser_precision
from tune.stage_data import clean_pictures, device


def run(options: Options) -> Result:
    """Steps of the quick preset's denoiser, in turns of a few steps from the same weights."""
    config = configuration(options.small)
    rounds, steps = (2, 2) if options.small else (11, 4)
    place = device()
    images = clean_pictures(synthetic(config)).to(place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = UNet(config.denoiser, images.shape[-1], noise_schedule(config.denoiser.diffusion_steps)).to(place)
    start.normalise_to(images)
    fitted, single, faster = (copy.deepcopy(start) for _ in range(3))
    plain = copy.deepcopy(start).to(memory_format=torch.contiguous_format)
    # the network makes its input channels-last, and convolutions then keep that
    plain.stem.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    few_steps = config.denoiser.model_copy(update={"training_steps": steps})

    def trained(unet: UNet, precision: Literal["fp32", "bf16"]) -> Callable[[int], None]:
        def few(number: int) -> None:
            train_denoiser(unet, images, few_steps, seed=number, precision=precision)
            _wait(place)

        return few

    def plainly(number: int) -> None:
        _plain_fit(plain, denoiser_step(plain, images, config.denoiser, number), config.denoiser, steps)
        _wait(place)

    as_fitted, in_float32 = trained(fitted, denoiser_precision()), trained(single, "fp32")
    as_compiled = trained(faster, denoiser_precision())
    for way in (as_fitted, in_float32, plainly):
        way(0)
    with compiled(faster):
        began = time.perf_counter()
        as_compiled(0)
        first = time.perf_counter() - began
        differing = {"": (fitted, plain), "_compiled": (faster, fitted), "_in_float32": (single, plain)}
        differences = {
            f"largest_weight_difference_after_{steps}_steps{suffix}": _difference(*pair) for suffix, pair in differing.items()
        }
        ways = {"fitted": as_fitted, "compiled": as_compiled, "float32": in_float32, "plain": plainly}
        seconds = {name: median / steps for name, median in interleaved(ways, rounds).items()}
    name = f"one step of {config.denoiser.batch_size} images"
    rows = [
        Row(f"{name}{suffix}", seconds[way], seconds["plain"])
        for way, suffix in (("fitted", ""), ("compiled", ", compiled"), ("float32", ", all of it in float32"))
    ]
    return Result(rows, differences | {"seconds_to_compile": first})


def _difference(first: UNet, second: UNet) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def _plain_fit(unet: UNet, step_loss: StepLoss, config: DenoiserConfig, steps: int) -> None:
    weights = list(unet.parameters())
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, config.learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = config.learning_rate * learning_rate_factor(step, steps, "cosine")
        optimizer.zero_grad()
        loss, _ = step_loss(step)
        loss.backward()
        optimizer.step()
        decay = averaging_decay(step + 1, config.ema_decay)
        with torch.no_grad():
            for average, weight in zip(averages, weights, strict=True):
                average.mul_(decay).add_(weight, alpha=1 - decay)
    with torch.no_grad():
        for average, weight in zip(averages, weights, strict=True):
            weight.copy_(average)


def _wait(place: str) -> None:
    if place == "cuda":
        torch.cuda.synchronize()
