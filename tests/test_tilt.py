from __future__ import annotations

import pytest
import torch
from torch import Tensor

from migvis import randomness
from migvis.diffusion import ddim_sample, noise_levels, noise_schedule
from migvis.errors import InputError
from migvis.memory import StimulusMemory
from migvis.tilt import Tilt, tilted_sample

SIZE, COUNT = 8, 60
ALPHAS = noise_schedule(20)
SIGMA = noise_levels(ALPHAS)
ROWS = torch.arange(3)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory_of(copies: int = 2, bandwidth: float = 0.3, rank: int = SIZE**2) -> StimulusMemory:
    made = StimulusMemory(copies, rank, bandwidth, SIZE)
    made.remember(normal(COUNT, 1, SIZE, SIZE, seed=1).mul(0.4).clamp(-1, 1))
    return made


STIMULI = normal(3, 1, SIZE, SIZE, seed=2).mul(0.4).clamp(-1, 1)
CLEAN = normal(3, 1, SIZE, SIZE, seed=3).mul(0.4).clamp(-1, 1)


def tilt_of(memory: StimulusMemory, objective: Tensor, scale: float | list[float]) -> Tilt:
    scales = torch.tensor(scale if isinstance(scale, list) else [scale] * 3)
    return Tilt(memory, STIMULI, objective, scales)


@pytest.mark.parametrize("rank", [SIZE**2, 5])
def test_the_tilted_estimate_is_that_of_a_naive_loop(rank: int) -> None:
    """w, w* and what moves, picture by picture, for three edits with different scales: weighed by Π, mixed in pixels."""
    memory, sigma = memory_of(rank=rank), torch.tensor(1.3)
    objective, scales = -normal(3, COUNT + 1, seed=4).abs(), [0.5, 2.0, 7.0]
    scaled = STIMULI + sigma * normal(3, 1, SIZE, SIZE, seed=5)
    estimate, moved = tilt_of(memory, objective, scales)(scaled, sigma, CLEAN)
    for edit in range(3):
        known = [*memory.images, STIMULI[edit]]
        seen = [((scaled[edit] - x).flatten() @ memory.basis).square().sum() for x in known]
        plain = torch.tensor([-float(distance) / (2 * (1.3**2 + 0.09)) for distance in seen])
        before, after = plain.softmax(0), (plain + scales[edit] * objective[edit]).softmax(0)
        gains = [max(float(b - a), 0.0) for a, b in zip(before, after, strict=True)]
        expected = (1 - sum(gains)) * CLEAN[edit] + sum(gain * x for gain, x in zip(gains, known, strict=True))
        assert float(moved[edit]) == pytest.approx(sum(gains), abs=1e-4)
        assert torch.allclose(estimate[edit], expected, atol=2e-3)
    assert float(moved.min()) > 0.05


def test_a_posterior_that_is_the_memory_is_tilted_exactly() -> None:
    """If the denoiser's estimate is the mean of what stays, the result is E[x·exp(γ·o)]/E[exp(γ·o)]."""
    memory, sigma = memory_of(copies=1), torch.tensor(2.0)
    objective = -normal(3, COUNT + 1, seed=4).abs()
    codes = torch.cat([memory.plain_codes.expand(3, -1, -1), memory.code(STIMULI)[:, None]], dim=1)
    state = memory.code(STIMULI + sigma * normal(3, 1, SIZE, SIZE, seed=5))
    logits = -(state[:, None] - codes).square().sum(2) / (2 * (4.0 + 0.09))
    before, after = logits.softmax(1), (logits + 3.0 * objective).softmax(1)
    stays = torch.minimum(before, after)

    def picture(weights: Tensor) -> Tensor:
        return ((weights[:, None] @ codes)[:, 0] @ memory.basis.T + weights.sum(1, keepdim=True) * memory.mean).view_as(CLEAN)

    remains = picture(stays) / stays.sum(1)[:, None, None, None]
    scaled = (state @ memory.basis.T + memory.mean).view_as(CLEAN)
    estimate, _ = tilt_of(memory, objective, 3.0)(scaled, sigma, remains)
    assert torch.allclose(estimate, picture(after), atol=1e-3)
    assert not torch.allclose(estimate, picture(before), atol=1e-2)


@pytest.mark.parametrize(("scale", "spread"), [(0.0, 1.0), (9.0, 0.0)])
def test_without_scale_or_preference_nothing_moves(scale: float, spread: float) -> None:
    memory = memory_of()
    objective = -2.0 - spread * normal(3, COUNT + 1, seed=4).abs()
    estimate, moved = tilt_of(memory, objective, scale)(STIMULI, torch.tensor(1.0), CLEAN)
    assert torch.allclose(estimate, CLEAN, atol=1e-5)
    assert float(moved.max()) < 1e-5


def test_a_strong_tilt_goes_to_the_best_picture_and_then_stays_there() -> None:
    memory, sigma = memory_of(), torch.tensor(1.0)
    objective = torch.full((3, COUNT + 1), -5.0)
    objective[ROWS, torch.tensor([4, 17, 59])] = 0.0
    tilt = tilt_of(memory, objective, 1000.0)
    best = memory.images[[4, 17, 59]]
    estimate, moved = tilt(STIMULI, sigma, CLEAN)
    assert torch.allclose(estimate, best, atol=1e-3)
    assert torch.allclose(moved, torch.ones(3), atol=2e-3)
    there, settled = tilt(best, torch.tensor(0.1), CLEAN)
    assert float(settled.max()) < 1e-3
    assert torch.allclose(there, CLEAN, atol=1e-2), "what is settled is the denoiser's"


def knows(picture: Tensor):
    """The denoiser that takes every state for a noisy `picture`."""

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        alpha = ALPHAS[t][:, None, None, None]
        return (noisy - alpha.sqrt() * picture) / (1 - alpha).sqrt()

    return denoise


def test_an_edit_without_guidance_is_the_deterministic_sample() -> None:
    memory, start = memory_of(), normal(3, 1, SIZE, SIZE, seed=6)
    still = tilt_of(memory, -normal(3, COUNT + 1, seed=4).abs(), 0.0)

    def half(noisy: Tensor, t: Tensor) -> Tensor:
        return noisy / 2

    expected = ddim_sample(half, start, ALPHAS, 15)
    # the clamp of x̂₀ to [−1, 1] belongs to the tilt; a denoiser of pictures is clipped anyway
    sampled = tilted_sample(half, 0.1 * start, ALPHAS, 15, still)
    assert torch.allclose(sampled, 0.1 * expected, atol=1e-4)


def test_a_full_move_has_fresh_noise_at_once_and_what_stays_keeps_its_own() -> None:
    memory = memory_of()
    objective = torch.full((3, COUNT + 1), -5.0)
    objective[:, 7] = 0.0
    noise = normal(3, 1, SIZE, SIZE, seed=6)
    start = (STIMULI + SIGMA[18] * noise) * ALPHAS[18].sqrt()
    tilt = tilt_of(memory, objective, [1000.0, 1000.0, 0.0])
    seen: list[Tensor] = []

    def watching(noisy: Tensor, t: Tensor) -> Tensor:
        seen.append(noisy / ALPHAS[int(t[0])].sqrt())
        return knows(STIMULI)(noisy, t)

    edited = tilted_sample(watching, start, ALPHAS, 18, tilt)
    fresh = randomness.normal(0, "edit-noise", 18, randomness.picture_key(STIMULI), (1, SIZE, SIZE))
    _, moved = tilt(seen[0], SIGMA[18], STIMULI)
    share = moved[:, None, None, None]
    assert float(moved[:2].min()) > 0.95
    arrived = (1 - share) * STIMULI + share * memory.images[[7, 7, 7]]
    kept = (seen[0] - arrived) / SIGMA[18]
    expected = arrived + SIGMA[17] * ((1 - share.square()).sqrt() * kept + share * fresh)
    assert torch.allclose(seen[1][:2], expected[:2], atol=1e-2)
    assert torch.allclose(seen[1][2], STIMULI[2] + SIGMA[17] * noise[2], atol=1e-3)
    assert torch.allclose(seen[12][2], STIMULI[2] + SIGMA[6] * noise[2], atol=1e-3)
    assert torch.allclose(edited[2], STIMULI[2], atol=1e-3)
    alone = Tilt(memory, STIMULI[1:2], objective[1:2], torch.tensor([1000.0]))
    again = tilted_sample(knows(STIMULI[1:2]), start[1:2], ALPHAS, 18, alone)
    assert torch.allclose(again[0], edited[1], atol=1e-4), "its noise is fixed by the stimulus, wherever it stands"


def test_an_edit_step_beyond_the_last_is_refused() -> None:
    still = tilt_of(memory_of(), -normal(3, COUNT + 1, seed=4).abs(), 1.0)
    with pytest.raises(InputError, match=r"edit_step: an integer in 1…19"):
        tilted_sample(knows(STIMULI), STIMULI, ALPHAS, 20, still)
