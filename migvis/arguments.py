"""Checks of arguments that people give: arrays of a shape, numbers in a range. Each failure is one clear line."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from migvis.errors import InputError


def array_argument(name: str, values: Any, shape: Sequence[int | None]) -> Tensor:
    """`values` as a float32 tensor on the CPU of this shape (None: any length of at least 1).

    Raises InputError for what is no array of real numbers, has another shape, or holds NaN or infinity.
    """
    try:
        tensor = (values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.array(values))).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name}: expected an array of numbers, got {type(values).__name__}") from None
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise InputError(f"{name}: expected real numbers, got {tensor.dtype}")
    fits = tensor.ndim == len(shape) and all(
        n >= 1 if wanted is None else n == wanted for n, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        expected = ", ".join("n" if wanted is None else str(wanted) for wanted in shape)
        raise InputError(f"{name}: expected shape [{expected}], got {list(tensor.shape)}")
    tensor = tensor.float()
    if not bool(tensor.isfinite().all()):
        raise InputError(f"{name}: it holds values that are not finite")
    return tensor


def number_argument(name: str, value: Any) -> float:
    """A finite number. Raises InputError for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name}: expected a number, got {value!r}") from None
    if not math.isfinite(number):
        raise InputError(f"{name}: expected a finite number, got {number}")
    return number


def whole_argument(name: str, value: Any, low: int, high: int) -> int:
    """A whole number in low…high. Raises InputError for anything else."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}: expected a whole number in {low}…{high}, got {value!r}") from None
    if not low <= number <= high:
        raise InputError(f"{name}: expected {low}…{high}, got {number}")
    return number


def shift_argument(value: Any, rank: int) -> float | Tensor:
    """A shift: one number, or one for each of the group's `rank` dimensions."""
    # np.ndim refuses lists of unequal lengths by an error of its own
    if not isinstance(value, (list, tuple)) and np.ndim(value) == 0:
        return number_argument("shift", value)
    return array_argument("shift", value, (rank,))
