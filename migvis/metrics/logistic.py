"""Many small multinomial logistic regressions at once, with cross-validation.

group_mig needs folds × groups × factors × penalties of them; one by one through scikit-learn that takes
tens of seconds. They share design matrices, so here they are columns of a few matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMOOTHING = 1e-3
"""Share of the uniform distribution in a held-out prediction, so that a class missing from a fold's training
rows costs a finite number of nats."""


def quadratic_features(values: Tensor, training: Tensor) -> Tensor:
    """Standardised values, squares and products, with a leading column of ones.

    values [..., n, k]; training [..., n] boolean, the rows whose statistics standardise (before and after
    the products are formed). Returns [..., n, 1 + k + k(k + 1)/2].
    """

    def standardise(x: Tensor) -> Tensor:
        weight = training.to(x.dtype)[..., None]
        count = weight.sum(-2, keepdim=True)
        mean = (x * weight).sum(-2, keepdim=True) / count
        deviation = (((x - mean) ** 2 * weight).sum(-2, keepdim=True) / count).sqrt()
        return (x - mean) / torch.where(deviation > 1e-12, deviation, torch.ones_like(deviation))

    x = standardise(values)
    first, second = torch.triu_indices(x.shape[-1], x.shape[-1])
    features = standardise(torch.cat([x, x[..., first] * x[..., second]], dim=-1))
    return torch.cat([torch.ones_like(features[..., :1]), features], dim=-1)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: Tensor,
    training: Tensor,
    strength: float,
    start: Tensor | None = None,
    tolerance: float = 1e-2,
    max_steps: int = 40,
) -> Tensor:
    """Weights of J multinomial logistic regressions on each of M design matrices.

    Minimises Σ_training cross-entropy + |W|² / (2 · strength), the first column (ones) unpenalised: the
    objective of scikit-learn's LogisticRegression(C=strength).

    features [M, n, p], labels [J, n] int64 in 0…classes[j] − 1, classes [J], training [M, n] boolean.
    Accelerated gradient steps with per-problem restarts (O'Donoghue and Candès 2015), preconditioned with
    Böhning's (1992) upper bound ½XᵀX of the Hessian, so no step size is searched; stops when no weight
    moves by more than `tolerance` (features being standardised), or after `max_steps`: held-out losses then
    agree with those of the exact optimum to about 1e-3. Returns [M, J, p, C], C = max(classes).
    """
    n, p = features.shape[1:]
    width, problems = int(classes.max()), len(labels)
    # Classes come before rows: over a last axis of a few entries PyTorch's softmax is twenty times slower.
    absent = torch.where(torch.arange(width)[:, None] < classes, 0.0, -torch.inf).to(features.dtype)[..., None]
    target = torch.nn.functional.one_hot(labels, width).to(features.dtype).permute(2, 0, 1)
    masked = features * training.to(features.dtype)[..., None]
    ridge = torch.full((p,), 1 / strength, dtype=features.dtype)
    ridge[0] = 0.0
    bound = 0.5 * masked.transpose(1, 2) @ features + torch.diag(ridge + 1e-9 * n)
    step_matrix = torch.linalg.inv(bound)
    columns, shape = features.transpose(1, 2), (len(features), width, problems, p)
    weights = torch.zeros(shape, dtype=features.dtype) if start is None else start.permute(0, 3, 1, 2).contiguous()
    ahead, momentum = weights, torch.ones(len(features), 1, problems, 1, dtype=features.dtype)
    for _ in range(max_steps):
        logits = (ahead.flatten(1, 2) @ columns).reshape(len(features), width, problems, n) + absent
        residual = (logits.softmax(1) - target).flatten(1, 2)
        gradient = residual @ masked + ridge * ahead.flatten(1, 2)
        stepped = (ahead.flatten(1, 2) - gradient @ step_matrix).reshape(shape)
        change = stepped - weights
        restart = ((ahead - stepped) * change).sum((1, 3), keepdim=True) > 0
        momentum = torch.where(restart, 1.0, momentum)
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = stepped + torch.where(restart, 0.0, (momentum - 1) / following) * change
        weights, momentum = stepped, following
        if float(change.abs().max()) < tolerance:
            break
    return weights.permute(0, 2, 3, 1)


def cross_validated_cross_entropy(
    values: Tensor, labels: Tensor, classes: Tensor, folds: Tensor, strengths: tuple[float, ...]
) -> Tensor:
    """Held-out cross-entropy in nats [strengths, groups, J] of quadratic logistic regressions.

    values [groups, n, k]; labels [J, n]; classes [J]; folds [n] int64, the fold in which a row is
    held out. Everything, standardisation too, is fitted on the other folds.
    """
    count = int(folds.max()) + 1
    training = (folds != torch.arange(count)[:, None]).repeat_interleave(len(values), 0)
    features = quadratic_features(values.repeat(count, 1, 1), training)
    rows = torch.arange(len(folds))
    own = folds[:, None] * len(values) + torch.arange(len(values))
    weights, losses = None, []
    for strength in sorted(strengths):
        weights = fit_logistic(features, labels, classes, training, strength, start=weights)
        held_out = torch.einsum("ngp,ngjpc->ngjc", features[own, rows[:, None]], weights[own])
        known = torch.arange(held_out.shape[-1]) < classes[:, None]
        probability = (held_out.masked_fill(~known, -torch.inf)).softmax(-1)
        probability = (1 - SMOOTHING) * probability + SMOOTHING / classes[:, None]
        chosen = probability.gather(-1, labels.T[:, None, :, None].expand(-1, len(values), -1, 1))[..., 0]
        losses.append(-chosen.log().mean(0))
    return torch.stack(losses)
