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
    mixture. Narrow posteriors saturate it at (G − 1)·log N. It can be differentiated once, and goes through
    torch.func.vmap.

    Raises InputError for b = 1, b > N, and a D that the groups do not divide.
    """
    batch, latent_count = z.shape
    if batch < 2:
        raise InputError(f"partial_correlation: the batch needs at least 2 samples, got {batch}")
    if batch > dataset_size:
        raise InputError(f"partial_correlation: dataset_size {dataset_size} is smaller than the batch of {batch}")
    if group_count < 1 or latent_count % group_count:
        raise InputError(f"partial_correlation: {latent_count} latent dimensions do not divide into {group_count} groups")
    value, *_ = _PartialCorrelation.apply(z[None], mean[None], log_var[None], group_count, dataset_size)
    return value[0]  # type: ignore[no-any-return]


class _PartialCorrelation(torch.autograd.Function):
    """z, mean, log_var [K, b, D] of K models -> PC [K] and its three gradients, by which backward only scales."""

    @staticmethod
    def forward(z: Tensor, mean: Tensor, log_var: Tensor, group_count: int, dataset_size: int) -> tuple[Tensor, ...]:
        return _value_and_gradients(z, mean, log_var, group_count, dataset_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, value: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *(value[:, None, None] * gradient for gradient in ctx.saved_tensors), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], z: Tensor, mean: Tensor, log_var: Tensor, group_count: int, dataset_size: int
    ) -> tuple[tuple[Tensor, ...], int]:
        models = info.batch_size
        whole = (
            tensor.expand(models, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip((z, mean, log_var), in_dims, strict=False)
        )
        outputs = _PartialCorrelation.apply(*(tensor.flatten(0, 1) for tensor in whole), group_count, dataset_size)
        return tuple(output.unflatten(0, (models, -1)) for output in outputs), 0


def _value_and_gradients(
    z: Tensor, mean: Tensor, log_var: Tensor, group_count: int, dataset_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """PC [K] and its gradients in z, mean and log_var, [K, b, D] each."""
    models, batch, _ = z.shape

    # log q(z_i|x_j) as a quadratic form, Σ_d −½τ_j z_i² + τ_j μ_j z_i − ½(τ_j μ_j² + log σ_j²) with τ = 1/σ²: its
    # terms are of size τ and nearly cancel, so the products (b²·D, no b×b×D tensor) are in float64. The
    # constant log 2π is the same in the joint and in the sum of the groups, and left out.
    samples, means, log_vars = (
        tensor.double().unflatten(2, (group_count, -1)).transpose(1, 2) for tensor in (z, mean, log_var)
    )  # [K, G, b, D_g]
    precision = (-log_vars).exp()
    weighted = precision * means
    constant = -0.5 * (weighted * means + log_vars).sum(dim=3, keepdim=True)
    features = torch.cat([samples.square(), samples, torch.ones_like(constant)], dim=3)
    coefficients = torch.cat([-0.5 * precision, weighted, constant], dim=3)

    # With c_i = logsumexp_j(M_ij + log w_ij) − (M_ii + log w_ii), a cross-entropy whose target is the sample's own
    # posterior, the M_ii of the joint and of its groups cancel: PC = mean(c_joint − Σ_g c_g) + (G − 1)·log N, of
    # which only log w_ii − log w_ij matters to c. So ∂PC/∂M_g = (softmax(joint) − softmax(M_g))/b.
    own = math.log((batch - 1) / (dataset_size - 1))
    values = z.new_empty(models)
    of_features, of_coefficients = torch.empty_like(features), torch.empty_like(coefficients)
    logits = z.new_empty(1 + group_count, batch, batch)
    for model in range(models):  # one at a time: its b×b matrices then stay in the processor's cache
        groups = torch.bmm(features[model], coefficients[model].mT)
        logits[0] = groups.sum(dim=0)
        logits[1:] = groups
        logits.diagonal(dim1=1, dim2=2).add_(own)
        log_weights = logits.log_softmax(dim=2)
        entropies = -log_weights.diagonal(dim1=1, dim2=2)
        values[model] = (entropies[0] - entropies[1:].sum(dim=0)).mean() + (group_count - 1) * math.log(dataset_size)
        weights = log_weights.exp_()
        slope = torch.sub(weights[:1], weights[1:], out=weights[1:]).double()
        of_features[model] = slope @ coefficients[model]
        of_coefficients[model] = slope.mT @ features[model]

    in_square, in_sample, _ = (of_features / batch).tensor_split((samples.shape[3], 2 * samples.shape[3]), dim=3)
    in_precision, in_weighted, in_constant = (of_coefficients / batch).tensor_split(
        (samples.shape[3], 2 * samples.shape[3]), dim=3
    )
    in_z = 2 * samples * in_square + in_sample
    in_mean = precision * in_weighted - in_constant * weighted
    in_log_var = precision * (0.5 * in_precision - means * in_weighted + 0.5 * in_constant * means.square()) - 0.5 * in_constant
    gradients = (gradient.transpose(1, 2).flatten(2).to(z.dtype) for gradient in (in_z, in_mean, in_log_var))
    return values, *gradients
