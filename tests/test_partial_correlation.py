"""The partial correlation against closed forms and a naive estimator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from migvis import randomness
from migvis.errors import InputError
from migvis.partial_correlation import partial_correlation


def normal(stream: str, count: int, *shape: int) -> Tensor:
    return randomness.normal(0, stream, 0, torch.arange(count), shape).double()


def posteriors(count: int, latent_count: int, log_variance: float, spread: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    mean = normal("mean", count, latent_count) @ (torch.eye(latent_count).double() + 0.5)
    log_var = log_variance + spread * normal("log_var", count, latent_count)
    return mean + (0.5 * log_var).exp() * normal("noise", count, latent_count), mean, log_var


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * ((z - mean).square() / log_var.exp() + log_var + math.log(2 * math.pi))


def naive_partial_correlation(z: Tensor, mean: Tensor, log_var: Tensor, group_count: int, dataset_size: int) -> Tensor:
    """Sample by sample and dimension by dimension, in float64."""
    z, mean, log_var = z.double(), mean.double(), log_var.double()
    batch, latent_count = z.shape
    rank = latent_count // group_count
    total = torch.zeros((), dtype=torch.float64)
    for i in range(batch):
        joint, groups = [], [[] for _ in range(group_count)]
        for j in range(batch):
            weight = 1 / dataset_size if i == j else (dataset_size - 1) / (dataset_size * (batch - 1))
            density = log_normal(z[i], mean[j], log_var[j])
            joint.append(density.sum() + math.log(weight))
            for g in range(group_count):
                groups[g].append(density[g * rank : (g + 1) * rank].sum() + math.log(weight))
        total += torch.stack(joint).logsumexp(0) - sum(torch.stack(group).logsumexp(0) for group in groups)
    return total / batch


@pytest.mark.parametrize("log_variance", [1.0, -2.0, -8.0])
@pytest.mark.parametrize(("group_count", "dataset_size"), [(2, 24), (3, 24), (6, 24), (3, 500)])
def test_partial_correlation_equals_the_naive_one(log_variance: float, group_count: int, dataset_size: int) -> None:
    z, mean, log_var = posteriors(24, 6, log_variance)
    expected = naive_partial_correlation(z, mean, log_var, group_count, dataset_size)
    torch.testing.assert_close(partial_correlation(z, mean, log_var, group_count, dataset_size), expected, rtol=1e-9, atol=1e-9)
    single = partial_correlation(z.float(), mean.float(), log_var.float(), group_count, dataset_size)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(float(expected), abs=1e-4 * max(1, abs(float(expected))))


def test_float32_is_exact_where_narrow_posteriors_overlap() -> None:
    """Pairs of near-equal means far from the origin: the quadratic form's terms are 1e6 and their sum is of order 1."""
    mean = normal("mean", 12, 4).repeat_interleave(2, dim=0) * 3 + 5
    log_var = torch.full((24, 4), -11.0, dtype=torch.float64)
    mean = (mean + 1e-3 * normal("offset", 24, 4)).float().double()
    z = (mean + (0.5 * log_var).exp() * normal("noise", 24, 4)).float().double()
    expected = naive_partial_correlation(z, mean, log_var, 2, 24)
    single = partial_correlation(z.float(), mean.float(), log_var.float(), 2, 24)
    assert float(expected) < 0.95 * math.log(24)  # the pairs do overlap
    assert float(single) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(("deviation", "tolerance"), [(0.3, 1e-5), (0.03, 1e-5), (0.003, 1e-4)])
def test_float32_gradient_of_overlapping_posteriors(deviation: float, tolerance: float) -> None:
    mean = normal("mean", 32, 6).repeat_interleave(2, dim=0)
    mean[1::2] += deviation * normal("offset", 32, 6)
    log_var = 2 * math.log(deviation) + 0.2 * normal("log_var", 64, 6)
    z = mean + (0.5 * log_var).exp() * normal("noise", 64, 6)
    arguments = [tensor.float().requires_grad_() for tensor in (z, mean, log_var)]
    exact = [tensor.detach().double().requires_grad_() for tensor in arguments]
    single = torch.autograd.grad(partial_correlation(*arguments, 2, 1000), arguments)
    double = torch.autograd.grad(partial_correlation(*exact, 2, 1000), exact)
    for ours, expected in zip(single, double, strict=True):
        assert expected.abs().max() > 1e-3
        assert (ours - expected).abs().max() < tolerance * expected.abs().max()


def test_gradient_equals_the_naive_one() -> None:
    arguments = [tensor.requires_grad_() for tensor in posteriors(10, 4, -1.0)]
    fast = torch.autograd.grad(partial_correlation(*arguments, 2, 40), arguments)
    naive = torch.autograd.grad(naive_partial_correlation(*arguments, 2, 40), arguments)
    for a, b in zip(fast, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_one_group_has_no_partial_correlation() -> None:
    for log_variance in (1.0, -3.0, -11.0):
        z, mean, log_var = posteriors(32, 6, log_variance)
        assert float(partial_correlation(z.float(), mean.float(), log_var.float(), 1, 100)) == 0.0


def test_rank_one_is_total_correlation() -> None:
    """TC = E[log q(z) − Σ_d log q(z_d)], every density an even mixture over the whole data set."""
    z, mean, log_var = posteriors(64, 3, -1.0)
    densities = log_normal(z[:, None], mean[None], log_var[None])  # [sample, posterior, dimension]
    joint = densities.sum(dim=2).exp().mean(dim=1).log()
    marginals = densities.exp().mean(dim=1).log().sum(dim=1)
    expected = (joint - marginals).mean()
    assert expected > 0.3
    torch.testing.assert_close(partial_correlation(z, mean, log_var, 3, 64), expected, rtol=1e-10, atol=1e-10)


def test_wide_posteriors_match_the_closed_form_of_the_aggregated_gaussian() -> None:
    count, variance = 2048, 0.5
    mixing = torch.tensor([[1.0, 0.3, 0.9, 0.0], [0.0, 1.0, 0.2, 0.9], [0.0, 0.0, 0.7, 0.1], [0.0, 0.0, 0.0, 0.7]]).double()
    mean = normal("mean", count, 4) @ mixing
    log_var = torch.full((count, 4), math.log(variance), dtype=torch.float64)
    z = mean + math.sqrt(variance) * normal("noise", count, 4)
    covariance = torch.cov(mean.T) + variance * torch.eye(4, dtype=torch.float64)
    blocks = torch.logdet(covariance[:2, :2]) + torch.logdet(covariance[2:, 2:])
    expected = 0.5 * (blocks - torch.logdet(covariance))
    assert expected > 0.35
    assert float(partial_correlation(z, mean, log_var, 2, count)) == pytest.approx(float(expected), abs=0.05)


def test_narrow_posteriors_saturate_and_lose_their_gradient() -> None:
    for group_count, dataset_size in ((2, 64), (4, 1000)):
        z, mean, log_var = (tensor.float() for tensor in posteriors(64, 12, -11.0, spread=0.0))
        mean.requires_grad_()
        value = partial_correlation(z, mean, log_var, group_count, dataset_size)
        assert value.item() == pytest.approx((group_count - 1) * math.log(dataset_size), rel=1e-5)
        assert torch.autograd.grad(value, mean)[0].abs().max() < 1e-3


def test_small_batches_agree_with_the_exact_mixture() -> None:
    count = 512
    z, mean, log_var = posteriors(count, 4, -0.7, spread=0.0)
    exact = float(partial_correlation(z, mean, log_var, 2, count))
    estimates = []
    for step in range(40):
        rows = randomness.epoch_batch(0, "batch", step, count, 256)
        estimates.append(float(partial_correlation(z[rows], mean[rows], log_var[rows], 2, count)))
    assert exact > 0.4
    # Weights as if the batch were the data set (N = b) miss by 0.04.
    assert sum(estimates) / len(estimates) == pytest.approx(exact, abs=0.03)


def test_partial_correlation_refuses_what_it_cannot_estimate() -> None:
    z, mean, log_var = posteriors(8, 6, 0.0)
    with pytest.raises(InputError, match="at least 2 samples, got 1"):
        partial_correlation(z[:1], mean[:1], log_var[:1], 2, 8)
    with pytest.raises(InputError, match="dataset_size 7 is smaller than the batch of 8"):
        partial_correlation(z, mean, log_var, 2, 7)
    with pytest.raises(InputError, match="6 latent dimensions do not divide into 4 groups"):
        partial_correlation(z, mean, log_var, 4, 8)
