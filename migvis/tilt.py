"""Guidance by the remembered pictures: the posterior of what a state may become, tilted towards a target.

A gradient at x̂₀ says little while x̂₀ is still a blur: a critic that reads the pose off clean pictures finds none there.
The pictures that a denoiser remembers are clean. What each of them tells about the target is known beforehand, and so
is, in closed form, how likely a state is to become it.

This guidance does not wrap the denoiser, as the gradients of migvis.guidance do: what moves also needs noise of its own,
which only a sampler can give it. So `tilted_sample` is one, DDIM but for that noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from migvis import randomness
from migvis.diffusion import Denoise, check_edit_step, noise_levels
from migvis.memory import StimulusMemory


@dataclass(frozen=True)
class Tilt:
    """The pull on n edits, for ȳ = y_t/√α_t [n, 1, H, W] at the noise level σ and the denoiser's own x̂₀.

    An edit knows P + 1 pictures x_i: those remembered, as they are, and the stimulus it starts from (`stimuli` [n, 1, H, W]).
    w_i ∝ exp(−‖Π(ȳ − x_i)‖²/(2·(σ² + h²))), Π and h as in StimulusMemory, is how likely the state is to become each. With o_i
    the objective there (`objective` [n, P + 1] in nats, the stimulus last) and γ = scale [n], the tilted posterior

        w*_i ∝ w_i·exp(γ·o_i)

    is that of p(x)·exp(γ·o(x)), the density that guidance is to sample (A Eq. 4), with no gradient and no Jacobian. The two
    posteriors are coupled as closely as can be: a share 1 − τ of their mass, τ = Σ_i (w*_i − w_i)₊, stays where it is, and
    there the denoiser knows best; the rest moves to Σ_i (w*_i − w_i)₊·x_i:

        x̂₀* = (1 − τ)·x̂₀ + Σ_i (w*_i − w_i)₊·x_i

    So nothing is done at γ = 0, and nothing more once a state has settled on a picture.
    """

    memory: StimulusMemory
    stimuli: Tensor
    objective: Tensor
    scale: Tensor

    def __call__(self, scaled: Tensor, sigma: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """x̂₀* [n, 1, H, W] in [−1, 1] and τ [n], for ȳ [n, 1, H, W], σ (a scalar) and x̂₀ [n, 1, H, W]."""
        state, stimulus, known = self.memory.code(scaled), self._stimulus_codes, self._known_codes
        own = (state * stimulus).sum(1) - stimulus.square().sum(1) / 2
        logits = torch.cat([state @ known.T - known.square().sum(1) / 2, own[:, None]], dim=1)
        logits = logits / (sigma.square() + self.memory.bandwidth**2)
        tilted = (logits + self.scale[:, None] * self.objective).softmax(dim=1)
        gain = (tilted - logits.softmax(dim=1)).clamp(min=0)
        moved = gain.sum(1)
        share = moved[:, None, None, None]
        arrived = (gain[:, :-1] @ self._pictures).view_as(clean) + gain[:, -1].view_as(share) * self.stimuli
        return ((1 - share) * clean + arrived).clamp(-1, 1), moved

    # What is the same at every step: for a few edits it would be more work than the denoiser's.

    @cached_property
    def _pictures(self) -> Tensor:
        return self.memory.images.flatten(1)

    @cached_property
    def _known_codes(self) -> Tensor:
        return self.memory.plain_codes.contiguous()

    @cached_property
    def _stimulus_codes(self) -> Tensor:
        return self.memory.code(self.stimuli)


def tilted_sample(denoise: Denoise, noisy: Tensor, alphas: Tensor, edit_step: int, tilt: Tilt) -> Tensor:
    """Edits [n, 1, H, W] from states at t′ = edit_step: DDIM sampling (Algorithm 1, lines 4–6) towards tilted estimates.

        ȳ_{t−1} = x̂₀* + σ_{t−1}·(√(1 − τ²)·ε + τ·z)

    with ε = (ȳ_t − x̂₀*)/σ_t: Song et al. 2021, Eq. 12, with noise of variance τ²·(1 − α_{t−1}) renewed. An inverted state's
    noise spells the stimulus, which would shine through what the edit turns into. So the mass that stays keeps its noise; the
    mass that moves becomes a picture with fresh noise z, fixed by (t, stimulus), as if it had been noised to t − 1. Where
    nothing moves (τ = 0) this is the deterministic DDIM. Raises InputError for an edit step outside 1…⌊0.95 T⌋.
    """
    check_edit_step(edit_step, alphas)
    keys = randomness.picture_key(tilt.stimuli)
    sigma = noise_levels(alphas)
    scaled = noisy / alphas[edit_step].sqrt()
    for t in range(edit_step, 0, -1):
        noise = denoise(alphas[t].sqrt() * scaled, torch.full((len(noisy),), t, device=noisy.device))
        clean, moved = tilt(scaled, sigma[t], scaled - sigma[t] * noise)
        noise = (scaled - clean) / sigma[t]
        renewed = moved.clamp(max=1)[:, None, None, None]
        fresh = randomness.normal(0, "edit-noise", t, keys, tuple(noisy.shape[1:]))
        scaled = clean + sigma[t - 1] * ((1 - renewed.square()).sqrt() * noise + renewed * fresh)
    return scaled
