from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from migvis.conditional import ClassifierFreeEditor, ConditionalDenoiser, classifier_free, fit_conditional_denoiser
from migvis.config import DenoiserConfig, SynthesisConfig
from migvis.diffusion import clip_clean, noise_schedule
from migvis.edits import Edits
from migvis.rival_weights import load_conditional, save_conditional
from migvis.unet import UNet

SIZE, GROUPS, RANK = 16, 3, 2
CONFIG = DenoiserConfig(
    base_width=8, width_multipliers=(1, 2), stem_patch=2, diffusion_steps=10, batch_size=16, memory_copies=1, learning_rate=3e-3
)
IMAGES = torch.rand(24, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
T = torch.tensor([1, 4, 7, 9])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made_unet() -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        unet = UNet(CONFIG, SIZE, noise_schedule(10))
        for weight in unet.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    unet.normalise_to(IMAGES)
    return unet.eval().requires_grad_(False)


def edits_at(scale: float) -> Edits:
    rows = torch.arange(4)
    return Edits(rows, torch.tensor([1, 2, 3, 2]), normal(4, RANK, seed=1), torch.full((4,), scale), rows, rows)


@pytest.fixture(scope="module")
def fitted() -> ConditionalDenoiser:
    mean, row = normal(30, GROUPS * RANK, seed=3), torch.cat([torch.arange(24), torch.arange(6)])
    return fit_conditional_denoiser(made_unet(), IMAGES, mean, torch.full_like(mean, -2.0), row, GROUPS, steps=6, seed=0)[0]


def test_before_training_it_is_the_unconditional_denoiser_whatever_it_is_told() -> None:
    unet, noisy = made_unet(), normal(4, 1, SIZE, SIZE, seed=4)
    conditional = ConditionalDenoiser(unet, GROUPS, RANK)
    assert torch.equal(conditional.of(normal(4, GROUPS, RANK), torch.ones(4, GROUPS))(noisy, T), unet(noisy, T))
    clipped = clip_clean(unet, unet.alphas)(noisy, T)
    for scale in (0.0, 1.0, 7.0):
        assert torch.equal(classifier_free(conditional, edits_at(scale), unet.alphas)(noisy, T), clipped)


def test_guidance_goes_from_the_untold_denoiser_through_the_told_one(fitted: ConditionalDenoiser) -> None:
    noisy, alphas = normal(4, 1, SIZE, SIZE, seed=4), fitted.unet.alphas
    edits = edits_at(0.0)
    latents, given = torch.zeros(4, GROUPS, RANK), torch.zeros(4, GROUPS)
    untold = clip_clean(fitted.of(latents, given), alphas)(noisy, T)
    rows = torch.arange(4)
    latents[rows, edits.group - 1], given[rows, edits.group - 1] = edits.target, 1.0
    told = clip_clean(fitted.of(latents, given), alphas)(noisy, T)
    assert not torch.allclose(told, untold, atol=1e-4)
    assert torch.equal(classifier_free(fitted, edits, alphas)(noisy, T), untold)
    assert torch.equal(classifier_free(fitted, edits_at(1.0), alphas)(noisy, T), told)
    beyond = classifier_free(fitted, edits_at(3.0), alphas)(noisy, T)
    assert torch.allclose(beyond, untold + 3 * (told - untold), atol=1e-5)


def test_a_dropped_group_is_not_seen_and_is_not_one_at_its_mean(fitted: ConditionalDenoiser) -> None:
    first, other = normal(2, GROUPS, RANK, seed=5), normal(2, GROUPS, RANK, seed=6)
    given = torch.tensor([[1.0, 0.0, 0.0]]).expand(2, GROUPS)
    other[:, 0] = first[:, 0]
    assert torch.equal(fitted.embed(first, given), fitted.embed(other, given))
    means = fitted.latent_mean.expand(2, GROUPS, RANK)
    assert not torch.allclose(fitted.embed(means, given), fitted.embed(means, torch.zeros(2, GROUPS)), atol=1e-5)


def test_the_files_hold_it_and_edits_do_not_depend_on_their_neighbours(fitted: ConditionalDenoiser, tmp_path: Path) -> None:
    save_conditional(tmp_path, fitted)
    loaded, unet = load_conditional(tmp_path), made_unet()
    images = IMAGES[:4]
    editor = ClassifierFreeEditor(unet, unet.alphas, SynthesisConfig(edit_step=0.6), loaded)
    states = editor.invert(images)
    together = editor.edit(images, states, edits_at(2.0))
    original = ClassifierFreeEditor(unet, unet.alphas, editor.config, fitted)
    assert torch.allclose(original.edit(images, states, edits_at(2.0)), together, atol=1e-5)
    alone = editor.edit(images, states, edits_at(2.0).rows(torch.tensor([2])))
    assert torch.allclose(alone, together[2:3], atol=1e-4)


def test_the_fit_learns_whose_latents_a_picture_has() -> None:
    """Pictures whose brightness one group tells: told it, the loss falls below that of the untold; told another's, it rises."""
    level = torch.linspace(-0.9, 0.9, 24)
    images = (level[:, None, None, None] + 0.05 * normal(24, 1, SIZE, SIZE, seed=7)).clamp(-1, 1)
    mean = normal(24, GROUPS * RANK, seed=8)
    mean[:, 0] = 2 * level
    order = torch.arange(24).flip(0)  # stimuli stand in another order than their pictures
    config = CONFIG.model_copy(update={"memory_copies": 0, "learning_rate": 5e-3})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = UNet(config, SIZE, noise_schedule(10))
    unet.normalise_to(images)
    fitted, _ = fit_conditional_denoiser(unet, images, mean[order], torch.full_like(mean, -6.0), order, GROUPS, steps=250, seed=0)
    noise, t = normal(24, 1, SIZE, SIZE, seed=9), torch.full((24,), 8)
    alpha = fitted.unet.alphas[8]
    noisy = alpha.sqrt() * images + (1 - alpha).sqrt() * noise
    only_first = torch.tensor([[1.0, 0.0, 0.0]]).expand(24, GROUPS)

    def loss(latents: Tensor, given: Tensor) -> float:
        return float((fitted.of(latents.unflatten(1, (GROUPS, RANK)), given)(noisy, t) - noise).square().mean())

    told, untold = loss(mean, only_first), loss(mean, torch.zeros(24, GROUPS))
    swapped = loss(mean[order], only_first)
    assert told < 0.95 * untold
    assert swapped > 1.05 * untold
    other = torch.tensor([[0.0, 1.0, 0.0]]).expand(24, GROUPS)
    assert loss(mean, other) > told
