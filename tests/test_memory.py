from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from migvis.config import DenoiserConfig
from migvis.diffusion import ddim_invert, dequantise, noise_levels, noise_schedule
from migvis.memory import StimulusMemory
from migvis.unet import UNet
from migvis.weights import load_denoiser, save_denoiser

SIZE = 8
SIGMA = torch.tensor([0.2, 1.0, 4.0])


def pictures(count: int = 100, seed: int = 0) -> Tensor:
    """Random pictures [n, 1, 8, 8] of 256 levels; enough of them to span all 64 dimensions."""
    levels = torch.randint(0, 256, (count, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 127.5 - 1


def made_memory(images: Tensor, copies: int = 1, rank: int = SIZE**2, bandwidth: float = 0.7) -> StimulusMemory:
    memory = StimulusMemory(copies, rank, bandwidth, SIZE)
    memory.remember(images)
    return memory


def states(images: Tensor) -> Tensor:
    return images[:3] + SIGMA[:, None, None, None] * torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("rank", [SIZE**2, 6])
def test_the_mean_is_that_of_a_naive_loop(rank: int) -> None:
    """Π by numpy's own decomposition: the mean picture and the leading principal components."""
    images = pictures()
    recalled = made_memory(images, rank=rank)(states(images), SIGMA)
    both = torch.cat([images, images.flip(-1)]).flatten(1).double().numpy()
    _, directions = np.linalg.eigh(np.cov(both.T))
    leading = torch.tensor(directions[:, -rank:]).float()
    mean = torch.tensor(both.mean(0)).float()

    def projected(image: Tensor) -> Tensor:
        return (mean + (image.flatten() - mean) @ leading @ leading.T).view_as(image)

    for row in range(3):
        known = [projected(one) for one in (*images, *images.flip(-1))]
        distance = torch.stack([(projected(states(images)[row]) - one).square().sum() for one in known])
        weight = (-distance / (2 * (SIGMA[row] ** 2 + 0.49))).softmax(0)
        expected = sum(w * one for w, one in zip(weight, known, strict=True))
        assert isinstance(expected, Tensor)
        assert torch.allclose(recalled[row], expected, atol=1e-3)


def test_much_noise_gives_the_mean_picture_and_little_the_picture_itself() -> None:
    images = pictures()
    memory = made_memory(images, bandwidth=0.01)
    sigma = torch.tensor([1e4, 0.01])
    far, near = memory(images[:2], sigma)
    assert torch.allclose(far, torch.cat([images, images.flip(-1)]).mean(0), atol=1e-3)
    assert torch.allclose(near, images[1], atol=1e-3)


def test_a_picture_left_out_is_as_if_it_had_never_been_seen() -> None:
    images = pictures()
    own = torch.tensor([0, 1, 2])
    without = made_memory(images)(states(images), SIGMA, own)
    for row in range(3):
        rest = torch.cat([images[:row], images[row + 1 :]])
        expected = made_memory(rest)(states(images)[row : row + 1], SIGMA[row : row + 1])
        assert torch.allclose(without[row : row + 1], expected, atol=1e-3)
    assert not torch.allclose(without[0], made_memory(images)(states(images), SIGMA)[0], atol=1e-2)


def test_all_copies_of_a_picture_are_left_out() -> None:
    images = pictures()
    memory = made_memory(images, copies=3)
    weights = memory.weights(states(images), SIGMA, torch.tensor([4, 0, 99])).unflatten(1, (100, 6))
    assert torch.allclose(weights.sum((1, 2)), torch.ones(3), atol=1e-5)
    mixed, all_in = (memory.weights(states(images), SIGMA, own) for own in (torch.tensor([-1, 0, -1]), None))
    assert torch.equal(mixed[0], all_in[0])
    assert torch.equal(mixed[1], weights[1].flatten())
    assert torch.equal(mixed[2], all_in[2])
    for row, own in enumerate((4, 0, 99)):
        assert bool((weights[row, own] == 0).all())


def test_copies_are_the_picture_its_mirror_image_and_warps_of_both() -> None:
    images = torch.full((20, 1, SIZE, SIZE), -1.0)
    images[:, :, 2:5, 3] = torch.linspace(0.2, 1, 20)[:, None, None]
    memory = made_memory(images, copies=4)
    shown = (memory.codes @ memory.basis.T + memory.mean).unflatten(0, (20, 8)).unflatten(2, (1, SIZE, SIZE))
    exact = (images + 1).mul(127.5).round() / 127.5 - 1
    assert torch.allclose(shown[:, 0], exact, atol=1e-3)
    assert torch.equal(memory.images, exact)
    assert torch.allclose(memory.plain_codes @ memory.basis.T + memory.mean, exact.flatten(1), atol=1e-3)
    assert torch.allclose(memory.code(images), memory.plain_codes, atol=0.05)
    assert torch.allclose(shown[:, 4], exact.flip(-1), atol=1e-3)
    assert torch.equal(made_memory(images, copies=4).codes, memory.codes)
    warped = shown[:, [1, 2, 3]]
    assert float((warped - exact[:, None]).abs().amax((1, 2, 3, 4)).min()) > 0.05
    assert float((warped[:, :, 0, -1, -1] + 1).abs().max()) < 0.05, "background comes in from outside"


@pytest.mark.parametrize(("amount", "corrections", "share"), [(0.0, 2, 0.0), (0.25, 2, 0.5), (0.25, 0, 0.4), (0.65, 0, 1.0)])
def test_a_dequantised_stimulus_arrives_with_noise(amount: float, corrections: int, share: float) -> None:
    """For a denoiser that knows the picture, all that a state holds beside it is noise, in units of σ_t."""
    alphas, images = noise_schedule(150), pictures(64)

    def known(noisy: Tensor, t: Tensor) -> Tensor:
        alpha = alphas[t][:, None, None, None]
        return (noisy - alpha.sqrt() * images) / (1 - alpha).sqrt()

    start = dequantise(images, alphas, amount)
    state = ddim_invert(known, start, alphas, 135, corrections=corrections)
    noise = (state / alphas[135].sqrt() - images) / noise_levels(alphas)[135]
    assert float(noise.std()) == pytest.approx(share, abs=0.05)


def test_the_noise_of_a_stimulus_is_its_own_wherever_it_stands() -> None:
    alphas, images = noise_schedule(10), pictures(5)
    start = dequantise(images, alphas, 0.5)
    assert torch.equal(dequantise(images.flip(0), alphas, 0.5).flip(0), start)
    assert torch.equal(dequantise(images[3:4], alphas, 0.5), start[3:4])
    noise = (start - images).flatten(1)
    assert float(torch.corrcoef(noise).fill_diagonal_(0).abs().max()) < 0.5, "and of no other"


def test_a_denoiser_with_a_memory_is_stored_with_what_it_remembers(tmp_path: Path) -> None:
    config = DenoiserConfig(
        base_width=8, width_multipliers=(1, 2), diffusion_steps=10, stem_patch=2, memory_copies=3, memory_rank=16
    )
    unet = UNet(config, SIZE, noise_schedule(10))
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    unet.normalise_to(pictures())
    unet.eval().requires_grad_(False)
    save_denoiser(tmp_path, unet)
    loaded = load_denoiser(tmp_path)
    noisy, t = states(pictures()), torch.tensor([2, 5, 9])
    assert torch.allclose(loaded(noisy, t), unet(noisy, t), atol=1e-5)
    own = torch.tensor([0, 1, 2])
    assert not torch.allclose(unet.without(own)(noisy, t), unet(noisy, t), atol=1e-3)
