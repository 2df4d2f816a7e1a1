"""Guidance: wrappers of the denoiser that pull x̂₀ towards a target (A Eq. 1, 4, 6; Algorithm 1, line 5).

The sampler knows nothing of guidance: it calls ε̂(y_t, t), which is ε_θ here or ε_θ bent by a gradient. What scores
an edit is a `Criterion`, mutual information or a rival of it (migvis.criteria); objectives are summed over a batch,
so no edit depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from migvis.critic import Critic
from migvis.diffusion import Denoise, predict_clean
from migvis.edits import Edits
from migvis.errors import InputError

Objective = Callable[[Tensor], Tensor]
"""x̂₀ [n, 1, H, W] -> one value per edit [n], larger where the edit expresses its target better; in nats where it is a
log-probability."""

IMAGES_AT_ONCE = 2048
"""Images that are embedded at once where there are many."""

Form = Literal["score", "algorithm1"]
Jacobian = Literal["identity", "bounded", "unet"]


class Criterion(Protocol):
    """What scores edits: mutual information, or a rival of it."""

    def objective(self, edits: Edits) -> Objective:
        """The score of each edit as a differentiable function of its x̂₀."""

    def at(self, edits: Edits, images: Tensor) -> Tensor:
        """The scores [n, P] of n edits at each of the training pictures images [P, 1, H, W]."""


@dataclass(frozen=True)
class LatentBank:
    """Latents [K, D] of training stimuli that stand in the denominator.

    rows [K] says which stimuli they are, pictures [K] which training picture each of them shows (0…P − 1, in the order in
    which a denoiser remembers them; −1 where that is not known).
    """

    latents: Tensor
    rows: Tensor
    pictures: Tensor

    def to(self, device: torch.device) -> LatentBank:
        """The same bank on a device."""
        return LatentBank(self.latents.to(device), self.rows.to(device), self.pictures.to(device))

    def allowed(self, source_rows: Tensor, target_rows: Tensor) -> Tensor:
        """Which bank entries [n, K] an edit may use: neither its own stimulus nor its target (−1 where unknown)."""
        return (self.rows[None] != source_rows[:, None]) & (self.rows[None] != target_rows[:, None])


def mutual_information(critic: Critic, group: Tensor, target: Tensor, bank: LatentBank, allowed: Tensor) -> Objective:
    """−L_N of every edit (A Eq. 5, 6): log of exp s(z*, y) over itself plus the sum over the allowed bank latents.

    group [n] in 1…G and target [n, D_g]: the latent group that each edit is guided to; allowed [n, K].
    The keys of targets and bank are computed here once, whatever the number of steps.
    """
    rank = critic.group_rank
    plan = []
    with torch.no_grad():
        for g in group.unique().tolist():
            rows = (group == g).nonzero()[:, 0]
            bank_keys = critic.latent_keys(bank.latents[:, (g - 1) * rank : g * rank], g)
            plan.append((g, rows, critic.latent_keys(target[rows], g), bank_keys, ~allowed[rows]))

    def objective(clean: Tensor) -> Tensor:
        embeddings = critic.embed(clean)
        values = torch.zeros(len(clean), device=clean.device, dtype=clean.dtype)
        for g, rows, target_keys, bank_keys, forbidden in plan:
            keys = critic.image_keys(embeddings[rows], g)
            positive = (keys * target_keys).sum(1) / keys.shape[1] ** 0.5
            negatives = critic.scores(keys, bank_keys).masked_fill(forbidden, float("-inf"))
            values = values.index_add(0, rows, positive - torch.logaddexp(positive, negatives.logsumexp(1)))
        return values

    return objective


@torch.no_grad()
def information_at(critic: Critic, group: Tensor, target: Tensor, bank: LatentBank, allowed: Tensor, images: Tensor) -> Tensor:
    """The objective of `mutual_information` for every edit at every training picture [P, 1, H, W]: [n, P].

    A picture's own latents in the bank are left out of its denominator: they are its positives, not its negatives.
    """
    rank = critic.group_rank
    own = bank.pictures == torch.arange(len(images), device=images.device)[:, None]
    embeddings = torch.cat([critic.embed(part) for part in images.split(IMAGES_AT_ONCE)])
    values = torch.empty(len(group), len(images), device=images.device)
    for g in group.unique().tolist():
        keys = critic.image_keys(embeddings, g)
        negatives = critic.scores(keys, critic.latent_keys(bank.latents[:, (g - 1) * rank : g * rank], g))
        negatives = negatives.masked_fill(own, float("-inf"))
        of_all = negatives.logsumexp(1)
        rows = (group == g).nonzero()[:, 0]
        positives = critic.scores(keys, critic.latent_keys(target[rows], g)).T
        for row, positive in zip(rows.tolist(), positives, strict=True):
            whole = bool(allowed[row].all())
            others = of_all if whole else negatives.masked_fill(~allowed[row], float("-inf")).logsumexp(1)
            values[row] = positive - torch.logaddexp(positive, others)
    return values


@dataclass(frozen=True)
class Information:
    """The criterion of the method: −L_N under a critic, with a bank in the denominator that spares source and target."""

    critic: Critic
    bank: LatentBank

    def objective(self, edits: Edits) -> Objective:
        """`mutual_information` of the edits."""
        bank, allowed = self._bank(edits)
        return mutual_information(self.critic, edits.group, edits.target, bank, allowed)

    def at(self, edits: Edits, images: Tensor) -> Tensor:
        """`information_at` of the edits."""
        bank, allowed = self._bank(edits)
        return information_at(self.critic, edits.group, edits.target, bank, allowed, images)

    def _bank(self, edits: Edits) -> tuple[LatentBank, Tensor]:
        bank = self.bank.to(edits.target.device)
        return bank, bank.allowed(edits.source_row, edits.target_row)


def guide(
    denoise: Denoise,
    objective: Objective,
    scale: Tensor,
    alphas: Tensor,
    *,
    form: Form = "score",
    jacobian: Jacobian = "identity",
    pixel_variance: float | None = None,
) -> Denoise:
    """ε̂(y_t, t) = ε_θ − γ·√(1 − α_t)·∇_{y_t} objective(x̂₀), with γ = scale [n] per edit.

    `form="algorithm1"` leaves out √(1 − α_t), as Algorithm 1 is printed. The gradient passes
    x̂₀ = (y_t − √(1 − α_t)·ε)/√α_t with ε constant (`jacobian="identity"`: ∂x̂₀/∂y_t = 1/√α_t), with the shrinkage of
    Gaussian images of variance v (`"bounded"`: v/(√α_t·(σ_t² + v))), or through the U-Net (`"unet"`). A clipped x̂₀ is
    passed straight through by all but "unet". Raises InputError when "bounded" lacks a positive pixel variance.
    """
    if jacobian == "bounded" and not (pixel_variance and pixel_variance > 0):
        raise InputError(
            f"pixel_variance: jacobian=bounded needs a positive variance of the training images, got {pixel_variance}"
        )

    def guided(noisy: Tensor, t: Tensor) -> Tensor:
        alpha = alphas[t][:, None, None, None]
        with torch.enable_grad():
            if jacobian == "unet":
                variable = noisy.detach().requires_grad_(True)
                noise = denoise(variable, t)
                clean = predict_clean(variable, noise, alpha)
            else:
                with torch.no_grad():
                    noise = denoise(noisy, t)
                    clean = predict_clean(noisy, noise, alpha)
                variable = clean.requires_grad_(True)
            (gradient,) = torch.autograd.grad(objective(clean).sum(), variable)
        if jacobian == "identity":
            gradient = gradient / alpha.sqrt()
        elif jacobian == "bounded":
            assert pixel_variance is not None
            gradient = gradient * pixel_variance / (alpha.sqrt() * (1 / alpha - 1 + pixel_variance))
        strength = scale[:, None, None, None] * ((1 - alpha).sqrt() if form == "score" else 1.0)
        return noise.detach() - strength * gradient

    return guided
