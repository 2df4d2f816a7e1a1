"""Guidance that keeps the other groups, against the sum written out, and in a world where each pixel is one group's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from migvis.config import CriticConfig
from migvis.criteria import Likelihood
from migvis.critic import Critic
from migvis.edits import Edits
from migvis.errors import InputError
from migvis.guidance import Criterion, Information, LatentBank
from migvis.keeping import KeepingOthers, own_latents
from migvis.latent_encoder import LatentEncoder

SIZE, GROUPS, RANK, WEIGHT = 16, 3, 2, 0.3
CONFIG = CriticConfig(encoder="cnn", infonce_batch=16, training_images="clean")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LATENTS = normal(9, GROUPS * RANK, seed=1)
EDITS = Edits(
    torch.arange(5), torch.tensor([1, 2, 3, 3, 1]), normal(5, RANK, seed=2), torch.ones(5), torch.tensor([4, 0, 8, 3, 3]),
    torch.tensor([1, 2, 5, 6, 7]),
)  # fmt: skip


def criterion(name: str) -> Criterion:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if name == "likelihood":
            return Likelihood(LatentEncoder(CONFIG, GROUPS, RANK, SIZE).eval().requires_grad_(False))
        critic = Critic(CONFIG, GROUPS, RANK, SIZE).eval().requires_grad_(False)
    return Information(critic, LatentBank(normal(20, GROUPS * RANK, seed=4), torch.arange(20) % 9, torch.arange(20) % 6))


def written_out(inner: Criterion, edit: int, images: Tensor) -> Tensor:
    """The sum of one edit at each image [n, 1, H, W], term by term."""
    one = EDITS.rows(torch.tensor([edit])).rows(torch.zeros(len(images), dtype=torch.long))
    total = inner.objective(one)(images)
    for group in range(1, GROUPS + 1):
        if group != int(one.group[0]):
            own = LATENTS[one.source_row][:, (group - 1) * RANK : group * RANK]
            to_own = Edits(one.source, torch.full_like(one.group, group), own, one.scale, one.source_row, one.source_row)
            total = total + WEIGHT * inner.objective(to_own)(images)
    return total


@pytest.mark.parametrize("name", ["information", "likelihood"])
def test_it_is_the_sum_over_the_other_groups(name: str) -> None:
    inner, images = criterion(name), normal(5, 1, SIZE, SIZE, seed=5).clamp(-1, 1)
    keeping = KeepingOthers(inner, WEIGHT, RANK, own_latents(LATENTS))
    values = keeping.objective(EDITS)(images)
    expected = torch.cat([written_out(inner, edit, images[edit : edit + 1]) for edit in range(5)])
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(values, inner.objective(EDITS)(images), atol=1e-2)
    alone = keeping.objective(EDITS.rows(torch.tensor([2])))(images[2:3])
    torch.testing.assert_close(alone, values[2:3], rtol=0, atol=1e-4)


def test_its_gradient_is_that_of_the_sum() -> None:
    inner, images = criterion("information"), normal(5, 1, SIZE, SIZE, seed=5).clamp(-1, 1).requires_grad_(True)
    keeping = KeepingOthers(inner, WEIGHT, RANK, own_latents(LATENTS))
    (own,) = torch.autograd.grad(keeping.objective(EDITS)(images).sum(), images)
    total = sum(written_out(inner, edit, images[edit : edit + 1]).sum() for edit in range(5))
    (expected,) = torch.autograd.grad(total, images)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-4)


def test_at_pictures_it_is_the_sum_there() -> None:
    """With likelihoods, which know no denominator, so that the pictures' own latents need not be left out of one."""
    inner, pictures = criterion("likelihood"), normal(7, 1, SIZE, SIZE, seed=6).clamp(-1, 1)
    values = KeepingOthers(inner, WEIGHT, RANK, own_latents(LATENTS)).at(EDITS, pictures)
    expected = torch.stack([written_out(inner, edit, pictures) for edit in range(5)])
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-4)


def test_without_weight_nothing_is_kept() -> None:
    inner, images = criterion("information"), normal(5, 1, SIZE, SIZE, seed=5)
    keeping = KeepingOthers(inner, 0.0, RANK, own_latents(LATENTS))
    assert torch.equal(keeping.objective(EDITS)(images), inner.objective(EDITS)(images))
    torch.testing.assert_close(keeping.at(EDITS, images), inner.at(EDITS, images), rtol=0, atol=1e-5)


def test_an_edit_from_nowhere_is_refused() -> None:
    unknown = Edits(EDITS.source, EDITS.group, EDITS.target, EDITS.scale, torch.full((5,), -1), EDITS.target_row)
    with pytest.raises(InputError, match="source_row"):
        KeepingOthers(criterion("likelihood"), WEIGHT, RANK, own_latents(LATENTS)).objective(unknown)
