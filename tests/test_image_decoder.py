from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from migvis.config import CriticConfig, SynthesisConfig
from migvis.diffusion import noise_schedule
from migvis.edits import Edits
from migvis.errors import InputError
from migvis.image_decoder import DecodingEditor, ImageDecoder, fit_image_decoder, image_decoder_state, load_image_decoder

LATENTS = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
SOURCE_ROW = torch.tensor([4, 7, 4])


def edits_at(scale: float) -> Edits:
    target = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    return Edits(torch.arange(3), torch.tensor([1, 3, 2]), target, torch.full((3,), scale), SOURCE_ROW, SOURCE_ROW)


@pytest.fixture(scope="module")
def decoder() -> ImageDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return ImageDecoder(6, 32).eval().requires_grad_(False)


def edited(decoder: torch.nn.Module, edits: Edits) -> Tensor:
    editor = DecodingEditor(lambda noisy, t: noisy, noise_schedule(10), SynthesisConfig(), decoder, LATENTS)
    images = torch.zeros(3, 1, 32, 32)
    return editor.edit(images, images, edits)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_an_edit_decodes_the_latents_with_one_group_moved(decoder: ImageDecoder, scale: float) -> None:
    edits = edits_at(scale)
    moved = LATENTS[SOURCE_ROW].clone()
    for edit in range(3):
        columns = slice(2 * int(edits.group[edit]) - 2, 2 * int(edits.group[edit]))
        moved[edit, columns] = (1 - scale) * moved[edit, columns] + scale * edits.target[edit]
    assert torch.allclose(edited(decoder, edits), decoder(moved).clamp(-1, 1), atol=1e-6)


def test_what_depends_on_other_groups_stays() -> None:
    """A decoder whose three rows of pixels show a group each."""

    class Rows(torch.nn.Module):
        def forward(self, latents: Tensor) -> Tensor:
            return latents.view(-1, 1, 3, 2).tanh()

    plain, moved = edited_rows(Rows(), 0.0), edited_rows(Rows(), 1.0)
    changed = (plain != moved).any(3)[:, 0]
    assert changed.tolist() == [[True, False, False], [False, False, True], [False, True, False]]


def edited_rows(decoder: torch.nn.Module, scale: float) -> Tensor:
    editor = DecodingEditor(lambda noisy, t: noisy, noise_schedule(10), SynthesisConfig(), decoder, LATENTS)
    images = torch.zeros(3, 1, 3, 2)
    return editor.edit(images, images, edits_at(scale))


def test_an_unknown_stimulus_is_refused(decoder: ImageDecoder) -> None:
    edits = edits_at(1.0)
    with pytest.raises(InputError, match="source_row"):
        edited(decoder, replace(edits, source_row=torch.tensor([4, -1, 4])))


@pytest.mark.parametrize("size", [32, 40, 128])
def test_it_makes_images_of_any_size_and_goes_through_its_state(size: int) -> None:
    decoder = ImageDecoder(6, size)
    assert decoder(LATENTS).shape == (9, 1, size, size)
    assert sum(weight.numel() for weight in decoder.parameters()) < 400_000
    assert torch.equal(load_image_decoder(*image_decoder_state(decoder))(LATENTS), decoder(LATENTS))


def test_the_fit_learns_what_the_latents_tell() -> None:
    u = torch.randn(300, 2, generator=torch.Generator().manual_seed(3))
    grid = torch.arange(16.0)
    column = torch.exp(-((grid - 8 - 2 * u[:, :1]) ** 2) / 6)
    line = torch.exp(-((grid - 8 - 2 * u[:, 1:]) ** 2) / 6)
    images = (2 * line[:, :, None] * column[:, None, :] - 1)[:, None]
    config = CriticConfig(encoder="cnn", infonce_batch=32, images_seen=32 * 80, minimum_steps=1, learning_rate=4e-3)
    decoder, _ = fit_image_decoder(images[:200], u[:200], torch.full((200, 2), -6.0), torch.arange(200), config, seed=0)
    error = (decoder(u[200:]).detach() - images[200:]).square().mean()
    marginal = (images[:200].mean(0) - images[200:]).square().mean()
    assert float(error) < 0.4 * float(marginal)
