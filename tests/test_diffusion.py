from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from migvis.config import DenoiserConfig
from migvis.diffusion import (
    Denoise,
    add_noise,
    clip_clean,
    ddim_invert,
    ddim_sample,
    denoised_pool,
    denoising_loss,
    edit_step_index,
    max_edit_index,
    noise_levels,
    noise_schedule,
    predict_clean,
)
from migvis.errors import InputError
from migvis.unet import UNet

TINY = DenoiserConfig(
    base_width=8, width_multipliers=(1, 2), stem_patch=2, diffusion_steps=10, batch_size=8, training_steps=12, learning_rate=3e-3
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_noise_schedule_is_the_sigmoid_one() -> None:
    alphas = noise_schedule(150)
    assert alphas.dtype == torch.float32
    assert alphas.shape == (151,)
    assert alphas[0] == 1
    assert alphas[75] == pytest.approx(0.5, abs=1e-6)
    low, high = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
    assert alphas[30] == pytest.approx((high - 1 / (1 + math.exp(1.8))) / (high - low), rel=1e-5)
    assert bool((alphas.diff() < 0).all())
    assert alphas[150] == pytest.approx(1e-5)
    assert torch.allclose(noise_levels(alphas)[[0, 75]], torch.tensor([0.0, 1.0]), atol=1e-5)


@pytest.mark.parametrize(("steps", "kind"), [(1, "sigmoid"), (0, "sigmoid"), (150, "linear")])
def test_noise_schedule_refuses(steps: int, kind: Any) -> None:
    with pytest.raises(InputError):
        noise_schedule(steps, kind)


def gaussian_noise(alphas: Tensor, variance: float) -> Denoise:
    """The exact ε of images ~ N(0, variance)."""

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        alpha = alphas[t][:, None, None, None]
        return (1 - alpha).sqrt() * noisy / (alpha * variance + 1 - alpha)

    return denoise


def inversion_error(steps: int, variance: float, fraction: float) -> float:
    """Relative error of the inverted state against the exact flow y·√((v + σ²)/v)·√α."""
    alphas = noise_schedule(steps).double()
    step = edit_step_index(fraction, steps)
    images = normal(4, 1, 8, 8).double() * math.sqrt(variance)
    state = ddim_invert(gaussian_noise(alphas, variance), images, alphas, step)
    exact = images * ((variance + noise_levels(alphas)[step] ** 2) / variance).sqrt() * alphas[step].sqrt()
    return float((state - exact).norm() / exact.norm())


@pytest.mark.parametrize("variance", [0.1, 0.3, 1.0])
def test_inversion_follows_the_exact_flow_of_gaussian_images(variance: float) -> None:
    assert max(inversion_error(150, variance, fraction) for fraction in (0.3, 0.6, 0.9, 0.95)) < 0.02
    # The error is of order 1/T; at larger steps errors of both signs cancel in part where the variance is small.
    assert inversion_error(1200, variance, 0.3) == pytest.approx(inversion_error(600, variance, 0.3) / 2, rel=0.15)


def test_the_error_of_inversion_halves_with_twice_the_steps() -> None:
    for fraction in (0.3, 0.6, 0.9, 0.95):
        assert inversion_error(600, 1.0, fraction) == pytest.approx(inversion_error(300, 1.0, fraction) / 2, rel=0.08)


@pytest.mark.parametrize("variance", [0.1, 1.0])
def test_sampling_follows_the_exact_flow_back(variance: float) -> None:
    alphas = noise_schedule(300)
    images = normal(4, 1, 8, 8) * math.sqrt(variance)
    step = 270
    state = images * ((variance + noise_levels(alphas)[step] ** 2) / variance).sqrt() * alphas[step].sqrt()
    back = ddim_sample(gaussian_noise(alphas, variance), state, alphas, step)
    assert float((back - images).norm() / images.norm()) < 0.02


def test_a_noise_that_does_not_depend_on_the_image_is_inverted_and_sampled_exactly() -> None:
    alphas, images, field = noise_schedule(20).double(), normal(3, 1, 8, 8).double(), normal(1, 1, 8, 8, seed=1).double()

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        return field * t[:, None, None, None]

    state = ddim_invert(denoise, images, alphas, 19)
    assert not torch.allclose(state, images)
    assert torch.allclose(ddim_sample(denoise, state, alphas, 19), images, atol=1e-10)


def test_the_trajectory_holds_every_state() -> None:
    alphas, images = noise_schedule(10), normal(3, 1, 8, 8) * 0.5
    denoise = clip_clean(gaussian_noise(alphas, 0.3), alphas)
    states = ddim_invert(denoise, images, alphas, 9, trajectory=True)
    assert states.shape == (10, 3, 1, 8, 8)
    assert torch.equal(states[0], images)
    for step in range(1, 10):
        assert torch.equal(states[step], ddim_invert(denoise, images, alphas, step))


def test_inversion_calls_the_denoiser_at_the_earlier_state_and_the_later_time() -> None:
    alphas, images = noise_schedule(10), normal(2, 1, 8, 8)
    calls: list[tuple[Tensor, Tensor]] = []

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        calls.append((noisy, t))
        return torch.ones_like(noisy)

    states = ddim_invert(denoise, images, alphas, 3, trajectory=True)
    assert [call[1].tolist() for call in calls] == [[1, 1], [2, 2], [3, 3]]
    assert all(torch.equal(noisy, states[step]) for step, (noisy, _) in enumerate(calls))
    calls.clear()
    ddim_sample(denoise, states[3], alphas, 3)
    assert [call[1].tolist() for call in calls] == [[3, 3], [2, 2], [1, 1]]


@pytest.mark.parametrize("step", [0, -1, 10, 11])
def test_edit_steps_outside_the_range_are_refused(step: int) -> None:
    alphas, images = noise_schedule(10), torch.zeros(1, 1, 8, 8)
    for run in (ddim_invert, ddim_sample):
        with pytest.raises(InputError, match="edit_step: an integer in 1…9"):
            run(gaussian_noise(alphas, 1.0), images, alphas, step)


def test_edit_step_as_a_fraction() -> None:
    assert [edit_step_index(fraction, 150) for fraction in (0.9, 0.5, 0.95, 1e-6)] == [135, 75, 142, 1]
    assert max_edit_index(150) == 142
    assert max_edit_index(20) == 19  # 0.95 · 20 is 19, whatever the rounding of floating point
    for fraction in (0, -0.1, 0.951, float("nan")):
        with pytest.raises(InputError, match="edit_step"):
            edit_step_index(fraction, 150)


def test_add_noise_and_predict_clean_are_inverse() -> None:
    alphas, images, noise, t = noise_schedule(20), normal(4, 1, 8, 8), normal(4, 1, 8, 8, seed=1), torch.tensor([1, 5, 12, 19])
    noisy = add_noise(images, noise, t, alphas)
    assert torch.allclose(predict_clean(noisy, noise, alphas[t][:, None, None, None]), images, atol=1e-4)
    assert torch.allclose(predict_clean(noisy[:1], noise[:1], float(alphas[1])), images[:1], atol=1e-4)
    assert torch.allclose(noisy[0], alphas[1].sqrt() * images[0] + (1 - alphas[1]).sqrt() * noise[0])


def test_clipping_rederives_the_noise_at_the_time_it_is_called_with() -> None:
    alphas, noisy = noise_schedule(20), normal(3, 1, 8, 8) * 3
    t = torch.tensor([3, 9, 18])
    alpha = alphas[t][:, None, None, None]
    denoise = gaussian_noise(alphas, 4.0)
    clean = predict_clean(noisy, denoise(noisy, t), alpha)
    clipped = predict_clean(noisy, clip_clean(denoise, alphas)(noisy, t), alpha)
    assert clean.abs().max() > 1.5
    assert torch.allclose(clipped, clean.clamp(-1, 1), atol=1e-4)
    inside = denoise(noisy * 0.01, t)
    assert torch.allclose(clip_clean(denoise, alphas)(noisy * 0.01, t), inside, atol=1e-5)


def tiny_unet() -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = UNet(TINY, 16, noise_schedule(10))
        for weight in unet.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    return unet.eval().requires_grad_(False)


def test_the_loss_weighs_the_noise_error_by_contrast() -> None:
    unet, images, noise, t = tiny_unet(), normal(4, 1, 16, 16), normal(4, 1, 16, 16, seed=1), torch.tensor([1, 4, 7, 9])
    unet.normalise_to(images * 0.3)
    variance = unet.pixel_variance
    weight = (variance + noise_levels(unet.alphas)[t].square()) / variance
    error = (unet(add_noise(images, noise, t, unet.alphas), t) - noise).square() * weight[:, None, None, None]
    assert float(denoising_loss(unet, images, noise, t)) == pytest.approx(float(error.mean()), rel=1e-4)


def test_a_new_denoiser_is_exact_for_gaussian_images_of_the_same_mean_and_variance() -> None:
    """Its raw output is 0, so x̂₀ is the posterior mean of Gaussian images, and its loss 1 at every t."""
    unet = UNet(TINY, 16, noise_schedule(10)).requires_grad_(False)
    mean = normal(1, 1, 16, 16, seed=2)
    mean = (mean + mean.flip(-1)) / 2
    images = mean + 0.5 * normal(2000, 1, 16, 16)
    unet.normalise_to(images)
    assert float(unet.pixel_variance) == pytest.approx(0.25, rel=0.02)
    t = torch.tensor([1, 5, 9])
    noisy = normal(3, 1, 16, 16, seed=3)
    alpha = unet.alphas[t][:, None, None, None]
    shrink = 0.25 / (0.25 + 1 / alpha - 1)
    expected = mean + shrink * (noisy / alpha.sqrt() - mean)
    assert torch.allclose(predict_clean(noisy, unet(noisy, t), alpha), expected, atol=0.1)
    for step in (1, 5, 9):
        times, noise = torch.full((2000,), step), normal(2000, 1, 16, 16, seed=4)
        assert float(denoising_loss(unet, images, noise, times)) == pytest.approx(1.0, rel=0.02)


def test_the_pool_does_not_depend_on_the_batch_size() -> None:
    unet, images = tiny_unet(), normal(7, 1, 16, 16).clamp(-1, 1)

    def denoise(rows: Tensor) -> Denoise:
        return clip_clean(unet, unet.alphas)

    pools = [denoised_pool(denoise, images, unet.alphas, 3, seed=5, batch=batch) for batch in (2, 7)]
    assert pools[0].shape == (7, 3, 1, 16, 16)
    assert torch.allclose(*pools, atol=1e-5)
    assert pools[0].abs().max() <= 1 + 1e-4
    assert not torch.allclose(pools[0][:, 0], pools[0][:, 1], atol=1e-2)
    assert not torch.allclose(pools[0], denoised_pool(denoise, images, unet.alphas, 3, seed=6), atol=1e-2)


def test_the_pool_has_times_up_to_the_last_edit_step() -> None:
    alphas, seen = noise_schedule(10), []

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        seen.extend(t.tolist())
        return torch.zeros_like(noisy)

    denoised_pool(lambda rows: denoise, torch.zeros(100, 1, 4, 4), alphas, 3, seed=0)
    assert set(seen) == set(range(1, 10))


def test_the_pool_leaves_each_picture_out_of_the_memory() -> None:
    left_out: list[list[int]] = []

    def denoise_without(rows: Tensor) -> Denoise:
        left_out.append(rows.tolist())
        return lambda noisy, t: torch.zeros_like(noisy)

    denoised_pool(denoise_without, torch.zeros(5, 1, 4, 4), noise_schedule(10), 2, seed=0, batch=3)
    assert left_out == [[0, 1, 2], [3, 4]] * 2


def test_corrections_make_the_inversion_return() -> None:
    """On a curved field plain inversion misses the image; each correction brings the return nearer, down to rounding."""
    alphas, image = noise_schedule(30), 0.8 * normal(4, 1, 4, 4).clamp(-1, 1)

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(1.5 * noisy)

    first = alphas[1].sqrt() * (image + noise_levels(alphas)[1] * denoise(image, torch.tensor([1])))
    missed = []
    for corrections in (0, 1, 2, 12):
        states = ddim_invert(denoise, image, alphas, 25, True, corrections)
        assert torch.allclose(states[1], first), "the first step is plain"
        # judged at t = 1, where the return begins to differ from the image for another reason
        scaled, sigma = states[25] / alphas[25].sqrt(), noise_levels(alphas)
        for t in range(25, 1, -1):
            scaled = scaled + (sigma[t - 1] - sigma[t]) * denoise(alphas[t].sqrt() * scaled, torch.tensor([t]))
        missed.append(float((alphas[1].sqrt() * scaled - states[1]).square().mean()))
    assert missed[0] > 1e-4
    assert missed[0] > 3 * missed[1] > 9 * missed[2]
    assert missed[3] < 1e-9


def test_the_inversion_extrapolates_the_noise_before_it_corrects_it() -> None:
    """Where ε is linear in t and the same everywhere, the first state asked about is already the solution."""
    alphas, image = noise_schedule(30), normal(2, 1, 4, 4)
    sigma, direction = noise_levels(alphas), normal(2, 1, 4, 4, seed=1)
    asked: dict[int, list[Tensor]] = {}

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        asked.setdefault(int(t[0]), []).append(noisy / alphas[t][:, None, None, None].sqrt())
        return (1 + 0.1 * t[:, None, None, None]) * direction

    ddim_invert(denoise, image, alphas, 25, corrections=2)
    assert [len(asked[t]) for t in range(1, 26)] == [1] + [2] * 24
    exact = image.clone()
    for t in range(1, 26):
        exact = exact + (sigma[t] - sigma[t - 1]) * (1 + 0.1 * t) * direction
        if t >= 3:
            assert torch.allclose(asked[t][0], exact, atol=1e-3), t
    assert not torch.allclose(asked[2][0], asked[2][1], atol=1e-3), "two steps are needed to extrapolate"
