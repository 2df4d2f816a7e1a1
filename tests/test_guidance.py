from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from migvis.config import CriticConfig, DenoiserConfig
from migvis.critic import Critic
from migvis.diffusion import Denoise, clip_clean, ddim_sample, noise_levels, noise_schedule, predict_clean
from migvis.errors import InputError
from migvis.guidance import LatentBank, Objective, guide, information_at, mutual_information
from migvis.unet import UNet

SIZE, STEPS = 16, 10
ALPHAS = noise_schedule(STEPS).double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def critic() -> Critic:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = Critic(CriticConfig(encoder="cnn", embedding_width=5), 3, 2, SIZE).double().eval()
        for weight in made.parameters():
            torch.nn.init.normal_(weight, std=0.12)
    made.latent_mean.copy_(normal(3, 2, seed=2))
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> UNet:
    config = DenoiserConfig(base_width=8, width_multipliers=(1, 2), stem_patch=2, diffusion_steps=STEPS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made = UNet(config, SIZE, ALPHAS)
        for weight in made.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    made.time_mlp.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))  # times are embedded in float32
    return made.double().eval().requires_grad_(False)


BANK = LatentBank(normal(9, 6, seed=3), torch.arange(50, 59), torch.full((9,), -1))
GROUP = torch.tensor([2, 1, 3, 2])
TARGET = normal(4, 2, seed=4)
TIMES = torch.tensor([1, 4, 7, 9])
NOISY = normal(4, 1, SIZE, SIZE, seed=5)


def allowed(source: list[int] | None = None, target: list[int] | None = None) -> Tensor:
    return BANK.allowed(torch.tensor(source or [-1] * 4), torch.tensor(target or [-1] * 4))


def objective_of(
    critic: Critic, rows: slice = slice(None), permitted: Tensor | None = None, bank: LatentBank = BANK
) -> Objective:
    permitted = allowed() if permitted is None else permitted
    return mutual_information(critic, GROUP[rows], TARGET[rows], bank, permitted[rows])


def test_the_bank_leaves_out_source_and_target() -> None:
    permitted = allowed([50, -1, 99, 58], [52, 53, -1, 58])
    assert (~permitted).nonzero().tolist() == [[0, 0], [0, 2], [1, 3], [3, 8]]


def test_mutual_information_is_that_of_a_naive_loop(critic: Critic) -> None:
    permitted = allowed([50, -1, 99, 58], [52, 53, -1, 58])
    clean = normal(4, 1, SIZE, SIZE, seed=6)
    values = objective_of(critic, permitted=permitted)(clean)
    for edit in range(4):
        g = int(GROUP[edit])
        key = critic.image_keys(critic.embed(clean[edit : edit + 1]), g)

        def score(latent: Tensor, key: Tensor = key, g: int = g) -> float:
            return float((key * critic.latent_keys(latent[None], g)).sum()) / math.sqrt(5)

        own = score(TARGET[edit])
        scores = [own] + [score(BANK.latents[k, 2 * (g - 1) : 2 * g]) for k in range(9) if permitted[edit, k]]
        assert float(values[edit]) == pytest.approx(own - math.log(sum(math.exp(value) for value in scores)), abs=1e-10)
    assert bool((values < 0).all())


def test_information_at_many_images_is_the_objective_at_each(critic: Critic) -> None:
    permitted = allowed([50, -1, 99, 58], [52, -1, -1, 58])
    images = normal(7, 1, SIZE, SIZE, seed=6)
    table = information_at(critic, GROUP, TARGET, BANK, permitted, images)
    assert table.shape == (4, 7)
    for column in range(7):
        expected = objective_of(critic, permitted=permitted)(images[column].expand(4, 1, SIZE, SIZE))
        assert torch.allclose(table[:, column], expected.float(), atol=1e-5)


def test_a_pictures_own_latents_are_not_its_negatives(critic: Critic) -> None:
    """Bank entries 2 and 5 belong to picture 3: whatever they are, its value is that of the bank without them."""
    permitted, images = allowed([50, -1, 99, 58], [52, -1, -1, 58]), normal(7, 1, SIZE, SIZE, seed=6)
    pictures = torch.full((9,), -1)
    pictures[[2, 5]] = 3
    table = information_at(critic, GROUP, TARGET, LatentBank(BANK.latents, BANK.rows, pictures), permitted, images)
    plain = information_at(critic, GROUP, TARGET, BANK, permitted, images)
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(table[:, others], plain[:, others])
    without = permitted.clone()
    without[:, [2, 5]] = False
    expected = information_at(critic, GROUP, TARGET, BANK, without, images)[:, 3]
    assert torch.allclose(table[:, 3], expected, atol=1e-5)
    assert bool((table[:, 3] > plain[:, 3]).all())


def test_entries_that_an_edit_may_not_use_have_no_effect(critic: Critic) -> None:
    permitted = allowed([50, 50, 50, 50])
    changed = BANK.latents.clone()
    changed[0] += 10
    clean = normal(4, 1, SIZE, SIZE, seed=6)
    values = objective_of(critic, permitted=permitted)(clean)
    assert torch.equal(
        values, objective_of(critic, permitted=permitted, bank=LatentBank(changed, BANK.rows, BANK.pictures))(clean)
    )
    assert not torch.allclose(values, objective_of(critic)(clean))


def test_with_every_entry_left_out_there_is_nothing_to_gain(critic: Critic) -> None:
    """The target alone in the denominator: log 1, and a gradient of 0 rather than NaN."""
    nothing = torch.zeros(4, 9, dtype=torch.bool)
    clean = normal(4, 1, SIZE, SIZE, seed=6).requires_grad_(True)
    values = objective_of(critic, permitted=nothing)(clean)
    (gradient,) = torch.autograd.grad(values.sum(), clean)
    assert torch.allclose(values, torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def frozen_noise(noisy: Tensor, t: Tensor) -> Tensor:
    """A noise that does not depend on the image."""
    return normal(1, 1, SIZE, SIZE, seed=7).expand_as(noisy)


def finite_difference(value: Objective, point: Tensor, direction: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Central difference along one direction per edit, [n]."""
    return (value(point + epsilon * direction) - value(point - epsilon * direction)) / (2 * epsilon)


def guidance_term(denoise: Denoise, objective: Objective, scale: Tensor | None = None, **options: Any) -> Tensor:
    """(ε − ε̂)/(γ·√(1 − α_t)): the gradient ∇_{y_t} that guidance used."""
    scale = torch.full((4,), 2.0, dtype=torch.float64) if scale is None else scale
    guided = guide(denoise, objective, scale, ALPHAS, **options)(NOISY, TIMES)
    strength = (1 - ALPHAS[TIMES]).sqrt() * scale
    return (denoise(NOISY, TIMES) - guided) / strength[:, None, None, None]


def test_the_gradient_of_a_frozen_noise_is_the_finite_difference(critic: Critic) -> None:
    objective = objective_of(critic)
    alpha = ALPHAS[TIMES][:, None, None, None]
    gradient = guidance_term(frozen_noise, objective)
    for seed in range(3):
        direction = normal(4, 1, SIZE, SIZE, seed=20 + seed)
        expected = finite_difference(lambda y: objective(predict_clean(y, frozen_noise(y, TIMES), alpha)), NOISY, direction)
        assert torch.allclose((gradient * direction).sum((1, 2, 3)), expected, rtol=1e-5, atol=1e-9)


def test_the_gradient_through_the_unet_is_the_finite_difference(critic: Critic, unet: UNet) -> None:
    objective = objective_of(critic)
    alpha = ALPHAS[TIMES][:, None, None, None]
    gradient = guidance_term(unet, objective, jacobian="unet")
    for seed in range(3):
        direction = normal(4, 1, SIZE, SIZE, seed=20 + seed)
        expected = finite_difference(lambda y: objective(predict_clean(y, unet(y, TIMES), alpha)), NOISY, direction)
        assert torch.allclose((gradient * direction).sum((1, 2, 3)), expected, rtol=1e-4, atol=1e-8)
    assert not torch.allclose(gradient, guidance_term(unet, objective), rtol=1e-2)


def test_bounded_shrinks_as_gaussian_images_do(critic: Critic, unet: UNet) -> None:
    objective, variance = objective_of(critic), 0.2
    identity = guidance_term(unet, objective)
    bounded = guidance_term(unet, objective, jacobian="bounded", pixel_variance=variance)
    factor = variance / (variance + noise_levels(ALPHAS)[TIMES] ** 2)
    assert torch.allclose(bounded, identity * factor[:, None, None, None], rtol=1e-6)


def test_bounded_is_exact_for_gaussian_images(critic: Critic) -> None:
    """For images ~ N(0, v) the exact ε is linear in y_t, and the full Jacobian is the bounded one."""
    objective, variance = objective_of(critic), 0.2

    def gaussian(noisy: Tensor, t: Tensor) -> Tensor:
        alpha = ALPHAS[t][:, None, None, None]
        return (1 - alpha).sqrt() * noisy / (alpha * variance + 1 - alpha)

    full = guidance_term(gaussian, objective, jacobian="unet")
    assert torch.allclose(full, guidance_term(gaussian, objective, jacobian="bounded", pixel_variance=variance), rtol=1e-6)


@pytest.mark.parametrize("variance", [None, 0.0, -1.0, float("nan")])
def test_bounded_needs_a_variance(critic: Critic, variance: float | None) -> None:
    with pytest.raises(InputError, match="pixel_variance"):
        guide(frozen_noise, objective_of(critic), torch.ones(4), ALPHAS, jacobian="bounded", pixel_variance=variance)


def test_algorithm1_is_the_score_form_without_its_factor(critic: Critic, unet: UNet) -> None:
    objective = objective_of(critic)
    ratio = guidance_term(unet, objective, form="algorithm1") / guidance_term(unet, objective)
    expected = 1 / (1 - ALPHAS[TIMES]).sqrt()
    assert torch.allclose(ratio, expected[:, None, None, None].expand_as(ratio), rtol=1e-5)
    assert float(1 / (1 - noise_schedule(150)[1]).sqrt()) == pytest.approx(22, abs=0.5)  # as far apart as T = 150 makes them


def test_a_guided_step_raises_the_objective(critic: Critic, unet: UNet) -> None:
    objective, alpha = objective_of(critic), ALPHAS[TIMES][:, None, None, None]
    before = objective(predict_clean(NOISY, unet(NOISY, TIMES), alpha))
    scale = torch.full((4,), 1e-3, dtype=torch.float64)
    bounded: dict[str, Any] = {"jacobian": "bounded", "pixel_variance": 0.2}
    for options in ({}, {"form": "algorithm1"}, bounded, {"jacobian": "unet"}):
        guided = guide(unet, objective, scale, ALPHAS, **options)(NOISY, TIMES)
        after = objective(predict_clean(NOISY, guided, alpha))
        # Only the full Jacobian may point elsewhere in x̂₀; it still ascends along y_t, as the finite difference shows.
        if options.get("jacobian") != "unet":
            assert bool((after > before).all()), options
    step = guidance_term(unet, objective, jacobian="unet")
    moved = NOISY + 1e-4 * step / step.norm()
    assert bool((objective(predict_clean(moved, unet(moved, TIMES), alpha)) > before).all())


def test_a_scale_of_zero_leaves_the_noise_as_it_is(critic: Critic, unet: UNet) -> None:
    zero = torch.zeros(4, dtype=torch.float64)
    assert torch.equal(guide(unet, objective_of(critic), zero, ALPHAS)(NOISY, TIMES), unet(NOISY, TIMES))


@pytest.mark.parametrize("jacobian", ["identity", "bounded", "unet"])
def test_an_edit_does_not_depend_on_its_neighbours(critic: Critic, unet: UNet, jacobian: str) -> None:
    scale = torch.tensor([0.5, 50.0, 5.0, 0.0], dtype=torch.float64)
    clipped, options = clip_clean(unet, ALPHAS), dict[str, Any](jacobian=jacobian, pixel_variance=0.2)
    together = ddim_sample(guide(clipped, objective_of(critic), scale, ALPHAS, **options), NOISY, ALPHAS, 9)
    for edit in range(4):
        row = slice(edit, edit + 1)
        alone = guide(clipped, objective_of(critic, row), scale[row], ALPHAS, **options)
        assert torch.allclose(ddim_sample(alone, NOISY[row], ALPHAS, 9), together[row], rtol=1e-6, atol=1e-6)


def test_a_clipped_picture_still_passes_its_gradient(critic: Critic) -> None:
    """Straight through: pixels at the bound are guided as others are."""

    def extreme(noisy: Tensor, t: Tensor) -> Tensor:
        return -20 * torch.ones_like(noisy)

    clipped = clip_clean(extreme, ALPHAS)
    clean = predict_clean(NOISY, clipped(NOISY, TIMES), ALPHAS[TIMES][:, None, None, None])
    assert torch.allclose(clean[1:], torch.ones_like(clean[1:]), atol=1e-6)
    gradient = guidance_term(clipped, objective_of(critic))
    assert bool((gradient[1:].abs().flatten(1).mean(1) > 1e-8).all())


def test_no_gradient_is_left_behind(critic: Critic, unet: UNet) -> None:
    guided = guide(unet, objective_of(critic), torch.ones(4, dtype=torch.float64), ALPHAS)(NOISY, TIMES)
    assert not guided.requires_grad
    assert not NOISY.requires_grad
    assert all(weight.grad is None for weight in critic.parameters())
