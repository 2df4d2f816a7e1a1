"""Adam (Kingma and Ba 2015) on torch's fused kernel, with all of its state as named tensors.

`torch.optim` would do, but making one imports torch's compiler: seconds of start-up in every process
that fits anything, for a kernel that is one call.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Adam:
    """Adam without weight decay. `first` and `second` moments and the step `count` are its whole state.

    A weight without a gradient is left as it is, and so are its moments.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights
        self.first = [torch.zeros_like(weight, memory_format=torch.preserve_format) for weight in weights]
        self.second = [torch.zeros_like(weight, memory_format=torch.preserve_format) for weight in weights]
        self.count = torch.zeros((), dtype=torch.float32, device=weights[0].device)

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor) -> None:
        """One update of every weight that has a gradient.

        learning_rate: a number, or a rate for each of K models whose weights are stacked along their first axis [K].
        """
        if not isinstance(learning_rate, Tensor):
            self._update(learning_rate)
            return
        # An update is proportional to its rate: the largest one's, of which each model then takes its share.
        before = [weight.clone() for weight in self.weights]
        self._update(float(learning_rate.max()))
        share = learning_rate / learning_rate.max()
        for weight, old in zip(self.weights, before, strict=True):
            weight.copy_(old.lerp(weight, share.view(-1, *[1] * (weight.ndim - 1))))

    def _update(self, learning_rate: float) -> None:
        self.count += 1
        present = [index for index, weight in enumerate(self.weights) if weight.grad is not None]
        torch._fused_adam_(
            [self.weights[index] for index in present],
            [gradient for weight in self.weights if (gradient := weight.grad) is not None],
            [self.first[index] for index in present],
            [self.second[index] for index in present],
            [],
            [self.count] * len(present),
            lr=learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )
