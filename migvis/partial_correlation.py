"""The partial correlation between latent groups (the last term of A Eq. 2), with its gradient in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from migvis.errors import InputError


def partial_correlation(z: Tensor, mean: Tensor, log_var: Tensor, group_count: int, dataset_size: int) -> Tensor:
    """PC = E_q(z)[log q(z) − Σ_g log q(z_g)] in nats (the last term of A Eq. 2), a scalar.

    z [b, D] is one sample of each posterior N(mean, exp(log_var)) [b, D], a batch of a data set of N =
    `dataset_size` samples. log q(z_i) ≈ logsumexp_j(log q(z_i|x_j) + log w_ij) with w_ii = 1/N and
    w_ij = (N − 1)/(N(b − 1)), and the same within each group of D / group_count columns; b = N is the exact
    mixture. Narrow posteriors saturate it at (G − 1)·log N. It has a first derivative only. Those of K models at
    once are [K] of [K, b, D]. The tensors are float32 or float64.

    Raises InputError for b = 1, b > N, and a D that the groups do not divide.
    """
    batch, latent_count = z.shape[-2:]
    if batch < 2:
        raise InputError(f"partial_correlation: the batch needs at least 2 samples, got {batch}")
    if batch > dataset_size:
        raise InputError(f"partial_correlation: dataset_size {dataset_size} is smaller than the batch of {batch}")
    if group_count < 1 or latent_count % group_count:
        raise InputError(f"partial_correlation: {latent_count} latent dimensions do not divide into {group_count} groups")
    of_models = (tensor.reshape(-1, batch, latent_count) for tensor in (z, mean, log_var))
    values: Tensor = _PartialCorrelation.apply(*of_models, group_count, dataset_size)
    return values.view(z.shape[:-2])


CHUNK_NUMBERS = 4 * 4 * 128**2
"""Numbers of the groups' b×b matrices that are worked on at a time: they should stay in the processor's cache."""


class _PartialCorrelation(torch.autograd.Function):
    """z, mean, log_var [K, b, D] of K models -> PC [K]. The gradients are found with it, and backward only scales them."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, mean: Tensor, log_var: Tensor, group_count: int, dataset_size: int) -> Tensor:
        values, *gradients = _value_and_gradients(z, mean, log_var, group_count, dataset_size)
        ctx.save_for_backward(*gradients)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, value: Tensor) -> tuple[Tensor | None, ...]:
        return *(value[:, None, None] * gradient for gradient in ctx.saved_tensors), None, None


def _value_and_gradients(
    z: Tensor, mean: Tensor, log_var: Tensor, group_count: int, dataset_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """PC [K] and its gradients in z, mean and log_var, [K, b, D] each."""
    models, batch, _ = z.shape

    # log q(z_i|x_j) as a quadratic form, Σ_d −½τ_j z_i² + τ_j μ_j z_i − ½(τ_j μ_j² + log σ_j²) with τ = 1/σ²: its
    # terms are of size τ and nearly cancel, in the gradient as well, so the products (b²·D, no b×b×D tensor) are in
    # float64. The constant log 2π is the same in the joint and in the sum of the groups, and left out.
    samples, means, log_vars = (
        tensor.double().mT.unflatten(1, (group_count, -1)).contiguous() for tensor in (z, mean, log_var)
    )  # [K, G, D_g, b]
    precision = (-log_vars).exp()
    weighted = precision * means
    constant = -0.5 * (weighted * means + log_vars).sum(dim=2, keepdim=True)
    features = torch.cat([samples.square(), samples, torch.ones_like(constant)], dim=2)
    coefficients = torch.cat([-0.5 * precision, weighted, constant], dim=2)

    # With c_i = logsumexp_j(M_ij + log w_ij) − (M_ii + log w_ii), a cross-entropy whose target is the sample's own
    # posterior, the M_ii of the joint and of its groups cancel: PC = mean(c_joint − Σ_g c_g) + (G − 1)·log N, of
    # which only log w_ii − log w_ij matters to c. So ∂PC/∂M_g = (softmax(joint) − softmax(M_g))/b.
    own = math.log((batch - 1) / (dataset_size - 1))
    saturation = (group_count - 1) * math.log(dataset_size)
    left, right = features.flatten(0, 1), coefficients.flatten(0, 1)  # [K G, 2 D_g + 1, b]
    rank = samples.shape[2]
    of_left, of_right = torch.empty_like(left[:, : 2 * rank]), torch.empty_like(right)
    values = z.new_empty(models)
    chunk = min(models, max(1, CHUNK_NUMBERS // (group_count * batch**2)))
    # Memory that is allocated anew for each chunk would cost more than what is computed in it.
    all_groups = left.new_empty(chunk, group_count, batch, batch)
    all_logits, all_weights = (z.new_empty(chunk, 1 + group_count, batch, batch) for _ in range(2))
    for start in range(0, models, chunk):
        count = min(chunk, models - start)
        rows = slice(start * group_count, (start + count) * group_count)
        groups, logits, weights = (whole[:count] for whole in (all_groups, all_logits, all_weights))
        torch.bmm(left[rows].mT, right[rows], out=groups.flatten(0, 1))
        # From here float32 is enough: a density has an upper bound, so what is of a large size is too small to count.
        logits[:, 1:] = groups
        torch.sum(logits[:, 1:], dim=1, out=logits[:, 0])
        logits.diagonal(dim1=2, dim2=3).add_(own)
        torch.softmax(logits, dim=3, out=weights)
        # logsumexp by the largest term, as far from underflow as softmax is
        total = logits.amax(dim=3) - weights.amax(dim=3).log()
        entropies = total - logits.diagonal(dim1=2, dim2=3)
        values[start : start + count] = (entropies[:, 0] - entropies[:, 1:].sum(dim=1)).mean(dim=1) + saturation
        slope = groups.copy_(torch.sub(weights[:, :1], weights[:, 1:], out=logits[:, 1:])).flatten(0, 1)
        torch.bmm(right[rows, : 2 * rank], slope.mT, out=of_left[rows])
        torch.bmm(left[rows], slope, out=of_right[rows])

    of_features, of_coefficients = (part.div_(batch).unflatten(0, (models, group_count)) for part in (of_left, of_right))
    in_square, in_sample = of_features.split(rank, dim=2)
    in_precision, in_weighted, in_constant = of_coefficients.tensor_split((rank, 2 * rank), dim=2)
    in_z = 2 * samples * in_square + in_sample
    in_mean = precision * in_weighted - in_constant * weighted
    in_log_var = precision * (0.5 * in_precision - means * in_weighted + 0.5 * in_constant * means.square()) - 0.5 * in_constant
    gradients = (gradient.flatten(1, 2).mT.to(z.dtype) for gradient in (in_z, in_mean, in_log_var))
    return values, *gradients
