from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from migvis.config import CriticConfig, DenoiserConfig, SynthesisConfig
from migvis.critic import Critic
from migvis.diffusion import clip_clean, ddim_invert, ddim_sample, dequantise, noise_levels, noise_schedule
from migvis.errors import InputError
from migvis.guidance import Information, information_at
from migvis.memory import StimulusMemory
from migvis.synthesis import Editor, Edits, GuidedEditor, group_columns, make_bank, shift_edits, target_edits
from migvis.unet import UNet

LATENTS = torch.arange(24.0).view(4, 6) / 10
SOURCE, ROWS, TARGET_ROWS = torch.tensor([0, 1, 2, 2]), torch.tensor([7, 8, 9, 9]), torch.tensor([1, 2, 3, 4])
SPREAD = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made_editor(**synthesis: Any) -> GuidedEditor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = DenoiserConfig(base_width=8, width_multipliers=(1, 2), stem_patch=2, diffusion_steps=10)
        unet = UNet(config, 16, noise_schedule(10))
        for weight in unet.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        critic = Critic(CriticConfig(encoder="cnn"), 3, 2, 16).eval().requires_grad_(False)
        for weight in critic.parameters():
            weight *= 2  # so that guidance shows
    bank = make_bank(normal(30, 6, seed=2), torch.arange(30), torch.full((30,), -1), 16, seed=3)
    information = Information(critic, bank)
    return GuidedEditor(unet.eval().requires_grad_(False), unet.alphas, SynthesisConfig(**synthesis), information, 0.2)


@pytest.fixture(scope="module")
def editor() -> Editor:
    return made_editor(edit_step=0.9)


def test_groups_are_consecutive_columns() -> None:
    assert torch.equal(group_columns(LATENTS, 1, 2), LATENTS[:, :2])
    assert torch.equal(group_columns(LATENTS, 3, 2), LATENTS[:, 4:])
    for group in (0, 4, -1):
        with pytest.raises(InputError, match="group: expected 1…3"):
            group_columns(LATENTS, group, 2)


def test_target_edits_go_to_the_group_of_another_stimulus() -> None:
    edits = target_edits(SOURCE, 2, 5.0, LATENTS, 2, ROWS, TARGET_ROWS)
    assert len(edits) == 4
    assert torch.equal(edits.target, LATENTS[:, 2:4])
    assert edits.group.tolist() == [2] * 4
    assert edits.scale.tolist() == [5.0] * 4
    assert torch.equal(edits.source_row, ROWS)
    assert torch.equal(edits.target_row, TARGET_ROWS)
    with pytest.raises(InputError, match="group"):
        target_edits(SOURCE, 4, 5.0, LATENTS, 2, ROWS, TARGET_ROWS)


def test_shift_edits_move_the_own_group_by_standard_deviations() -> None:
    edits = shift_edits(SOURCE, 3, 5.0, LATENTS, -2.0, SPREAD, ROWS)
    assert torch.allclose(edits.target, LATENTS[:, 4:] - 2 * torch.tensor([5.0, 6.0]))
    assert edits.target_row.tolist() == [-1] * 4
    assert torch.equal(edits.source_row, ROWS)
    each = shift_edits(SOURCE, 1, 5.0, LATENTS, torch.tensor([1.0, -1.0]), SPREAD, ROWS)
    assert torch.allclose(each.target, LATENTS[:, :2] + torch.tensor([1.0, -2.0]))


def test_shift_edits_of_chosen_dimensions_leave_the_others() -> None:
    for dimensions, moved in (([2], [0.0, 6.0]), ([1], [4.5, 0.0]), ([1, 2], [4.5, 6.0]), ((2, 2), [0.0, 6.0])):
        edits = shift_edits(SOURCE, 2, 1.0, LATENTS, 1.5, SPREAD, ROWS, dimensions)
        assert torch.allclose(edits.target, LATENTS[:, 2:4] + torch.tensor(moved))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": 0}, "group: expected 1…3, got 0"),
        ({"group": 4}, "group: expected 1…3, got 4"),
        ({"shift": torch.zeros(3)}, "shift: expected a number or 2 values"),
        ({"shift": torch.zeros(4, 2)}, "shift: expected a number or 2 values"),
        ({"dimensions": [0]}, "dimensions: expected numbers in 1…2"),
        ({"dimensions": [1, 3]}, "dimensions: expected numbers in 1…2"),
        ({"own_latents": LATENTS[:, :4]}, r"latents: expected shape \[n, 6\]"),
    ],
)
def test_shift_edits_refuse(change: dict, message: str) -> None:
    arguments = {"source": SOURCE, "group": 1, "scale": 1.0, "own_latents": LATENTS, "shift": 1.0, "latent_scale": SPREAD,
                 "source_row": ROWS, **change}  # fmt: skip
    with pytest.raises(InputError, match=message):
        shift_edits(**arguments)


def mixed_edits() -> Edits:
    """Edits of all groups, protocols and scales that start from three stimuli."""
    scales = {1: 3.0, 2: 0.0, 3: 30.0}
    parts = [target_edits(SOURCE, group, scale, LATENTS, 2, ROWS, TARGET_ROWS) for group, scale in scales.items()]
    return Edits.join([*parts, shift_edits(SOURCE, 2, 8.0, LATENTS, 1.0, SPREAD, ROWS, [1])])


def test_joined_edits_keep_their_rows() -> None:
    edits = mixed_edits()
    assert len(edits) == 16
    assert edits.rows(torch.tensor([0, 15])).group.tolist() == [1, 2]
    assert edits.rows(torch.tensor([5, 9])).scale.tolist() == [0.0, 30.0]
    assert edits.target_row.tolist() == TARGET_ROWS.tolist() * 3 + [-1] * 4


def test_a_batch_of_edits_is_that_of_one_at_a_time(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    images = normal(3, 1, 16, 16).clamp(-1, 1)
    states, edits = editor.invert(images), mixed_edits()
    together = editor.edit(images, states, edits)
    assert together.shape == (16, 1, 16, 16)
    assert together.abs().max() <= 1
    for row in range(16):
        assert torch.allclose(editor.edit(images, states, edits.rows(torch.tensor([row]))), together[row : row + 1], atol=1e-4), (
            row
        )
    steps: list[tuple[int, int]] = []
    monkeypatch.setattr("migvis.synthesis.CHUNK", 5)
    in_chunks = editor.edit(images, states, edits, progress=lambda done, total: steps.append((done, total)))
    assert torch.allclose(in_chunks, together, atol=1e-4)
    assert steps == [(5, 16), (10, 16), (15, 16), (16, 16)]


def test_edits_differ_by_group_scale_and_source(editor: Editor) -> None:
    images = normal(3, 1, 16, 16).clamp(-1, 1)
    edited = editor.edit(images, editor.invert(images), mixed_edits())
    assert torch.equal(edited[6], edited[7])  # γ = 0, of the same stimulus, to different targets
    for first, second in ((0, 4), (0, 8), (10, 11), (4, 12), (0, 1)):
        assert not torch.allclose(edited[first], edited[second], atol=1e-3), (first, second)


def test_without_guidance_an_edit_is_the_unguided_sample(editor: Editor) -> None:
    images = normal(3, 1, 16, 16).clamp(-1, 1)
    clipped = clip_clean(editor.denoise, editor.alphas)
    state = ddim_invert(clipped, dequantise(images, editor.alphas, 0.25), editor.alphas, 6, corrections=2)
    assert torch.equal(editor.invert(images, edit_step=0.6), state)
    sample = ddim_sample(clipped, state, editor.alphas, 6).clamp(-1, 1)
    rows = torch.arange(3)
    edits = target_edits(rows, 1, 0.0, LATENTS[:3], 2, rows, rows)
    assert torch.equal(editor.edit(images, state, edits, edit_step=0.6), sample)


def test_the_trajectory_serves_every_edit_step(editor: Editor) -> None:
    images = normal(2, 1, 16, 16).clamp(-1, 1)
    states = editor.invert(images, trajectory=True)
    assert states.shape == (10, 2, 1, 16, 16)
    for fraction in (0.1, 0.5, 0.9):
        assert torch.equal(states[editor.step(fraction)], editor.invert(images, edit_step=fraction))


def test_the_edit_step_is_a_fraction_of_all_steps(editor: Editor) -> None:
    assert editor.step() == 9
    assert [editor.step(fraction) for fraction in (0.95, 0.5, 0.32, 0.01)] == [9, 5, 3, 1]
    for fraction in (0.0, 0.96, -0.5, float("nan")):
        with pytest.raises(InputError, match="edit_step"):
            editor.step(fraction)


def test_form_and_jacobian_of_the_configuration_are_used() -> None:
    images, rows = normal(2, 1, 16, 16).clamp(-1, 1), torch.arange(2)
    edits = target_edits(rows, 1, 20.0, LATENTS[:2], 2, rows, rows + 5)
    variants = [{}, {"form": "algorithm1"}, {"jacobian": "bounded"}, {"jacobian": "unet"}]
    results = []
    for variant in variants:
        editor = made_editor(**variant)
        results.append(editor.edit(images, editor.invert(images), edits))
    for first in range(4):
        for second in range(first):
            assert not torch.allclose(results[first], results[second], atol=1e-3), (variants[first], variants[second])


def test_the_memory_of_the_denoiser_is_used_and_asked_for() -> None:
    images, rows = normal(2, 1, 16, 16).clamp(-1, 1), torch.arange(2)
    edits = target_edits(rows, 1, 20.0, LATENTS[:2], 2, rows, rows + 5)
    editor = made_editor(guidance="memory")
    with pytest.raises(InputError, match="memory_copies"):
        editor.edit(images, editor.invert(images), edits)
    memory = StimulusMemory(1, 16, 1.0, 16)
    memory.remember(normal(40, 1, 16, 16, seed=6).clamp(-1, 1))
    remembering = replace(editor, memory=memory)
    plain = made_editor()
    states = plain.invert(images)
    edited = remembering.edit(images, states, edits)
    assert not torch.allclose(edited, plain.edit(images, states, edits), atol=1e-3)
    mixed = Edits.join([edits, target_edits(rows, 1, 0.0, LATENTS[:2], 2, rows, rows + 5)])
    beside = remembering.edit(images, states, mixed)
    assert torch.allclose(beside[:2], edited, atol=1e-4), "an edit does not depend on its neighbours"
    returned = plain.edit(images, states, mixed.rows(torch.tensor([2, 3])))
    assert torch.allclose(beside[2:], returned, atol=1e-4), "γ = 0 returns the stimulus beside guided edits, too"


def test_a_strong_edit_by_memory_ends_at_the_picture_that_tells_most_of_its_target() -> None:
    """With a denoiser that is the memory itself; two groups, two targets each, sources that are bank entries."""
    memory = StimulusMemory(1, 16**2, 0.05, 16)
    memory.remember(normal(40, 1, 16, 16, seed=6).mul(0.4).clamp(-1, 1))
    editor = made_editor(guidance="memory", edit_step=0.9)
    sigma = noise_levels(editor.alphas)

    def remembers(noisy: Tensor, t: Tensor) -> Tensor:
        scaled = noisy / editor.alphas[t][:, None, None, None].sqrt()
        return (scaled - memory(scaled, sigma[t])) / sigma[t][:, None, None, None]

    editor = replace(editor, denoise=remembers, memory=memory)
    images, rows = memory.images[[3, 8]], torch.arange(2)
    source_rows, target_rows = editor.criterion.bank.rows[[0, 4]], editor.criterion.bank.rows[[7, 9]]
    edits = Edits.join(
        [target_edits(rows, group, 1e6, normal(2, 6, seed=group), 2, source_rows, target_rows) for group in (1, 3)]
    )
    allowed = editor.criterion.bank.allowed(edits.source_row, edits.target_row)
    best = information_at(editor.criterion.critic, edits.group, edits.target, editor.criterion.bank, allowed, memory.images)
    best = best.argmax(1)
    assert len(set(best.tolist())) > 2, "edits that go different ways"
    edited = editor.edit(images, editor.invert(images), edits)
    assert torch.allclose(edited, memory.images[best], atol=0.05)


def test_the_bank_is_drawn_once_by_seed() -> None:
    latents, rows = normal(30, 6), torch.arange(100, 130)
    bank = make_bank(latents, rows, rows - 60, 12, seed=4)
    assert bank.latents.shape == (12, 6)
    assert torch.equal(bank.latents, latents[bank.rows - 100])
    assert torch.equal(bank.pictures, bank.rows - 60)
    assert bank.rows.unique().tolist() == bank.rows.tolist()
    again = make_bank(latents, rows, rows - 60, 12, seed=4)
    assert torch.equal(again.rows, bank.rows)
    assert make_bank(latents, rows, rows - 60, 12, seed=5).rows.tolist() != bank.rows.tolist()
    assert make_bank(latents, rows, rows - 60, 99, seed=4).rows.tolist() == rows.tolist()


def test_the_bank_leaves_out_source_and_target_alone() -> None:
    bank = make_bank(normal(30, 6), torch.arange(30), torch.arange(30), 30, seed=4)
    permitted = bank.allowed(torch.tensor([3, -1]), torch.tensor([11, -1]))
    assert (~permitted[0]).nonzero().flatten().tolist() == [3, 11]
    assert bool(permitted[1].all())


def test_the_edited_stimulus_is_not_its_own_negative(editor: Editor) -> None:
    """Two edits alike but for the stimuli that they say they are: the bank of one is smaller."""
    inside, outside = editor.criterion.bank.rows[:1], torch.tensor([1000])
    image, start, unknown = normal(1, 1, 16, 16).clamp(-1, 1), torch.tensor([0]), torch.tensor([-1])
    state = editor.invert(image)
    pair = [target_edits(start, 1, 30.0, LATENTS[:1], 2, row, unknown) for row in (inside, outside)]
    assert not torch.equal(editor.edit(image, state, pair[0]), editor.edit(image, state, pair[1]))
