"""Counter-based random numbers: a pure function of (seed, stream, step, sample index).

Noise, diffusion times, flips and reparameterisation are drawn here, so neither the number of workers nor
a resume changes them, and no generator state is stored. The hash is SplitMix64's finaliser (Steele, Lea
and Flood 2014), computed in wrapping 64-bit integer arithmetic on the tensor's own device.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _signed(_MIX_1)
    value = (value ^ _shift_right(value, 27)) * _signed(_MIX_2)
    return value ^ _shift_right(value, 31)


def derive_seed(seed: int, *parts: int | str) -> int:
    """A seed in 0…2^63 − 1 that depends on every part; strings by their CRC-32."""
    state = _mix_int((seed + _GOLDEN) & _MASK)
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        state = _mix_int((state ^ ((number * _GOLDEN) & _MASK)) + _GOLDEN & _MASK)
    return state >> 1


def _uniform(key: int | Tensor, sample: Tensor, count: int) -> Tensor:
    """Uniform float32 [*sample.shape, count] by `key`, a number or a tensor that broadcasts with `sample`."""
    rows = _mix(_mix(sample.to(torch.int64) * _signed(_GOLDEN) + key) ^ key)
    columns = torch.arange(1, count + 1, device=sample.device, dtype=torch.int64) * _signed(_GOLDEN)
    return (_shift_right(_mix(rows[..., None] + columns), 40).to(torch.float32) + 0.5) * 2.0**-24


def _normal(key: int | Tensor, sample: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    half = (count + 1) // 2
    draws = _uniform(key, sample, 2 * half)
    radius = (-2 * draws[..., :half].log()).sqrt()
    angle = 2 * math.pi * draws[..., half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :count].reshape(*sample.shape, *shape)


def _key(seed: int, stream: str, step: int) -> int:
    return _signed(derive_seed(seed, stream, step))


def uniform(seed: int, stream: str, step: int, sample: Tensor, count: int = 1) -> Tensor:
    """Uniform float32 [len(sample), count] in (0, 1], one row per sample index (int tensor [n]); 1 itself by rounding only."""
    return _uniform(_key(seed, stream, step), sample, count)


def normal(seed: int, stream: str, step: int, sample: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 [len(sample), *shape] by the Box–Muller transform."""
    return _normal(_key(seed, stream, step), sample, shape)


def normal_of_each(seeds: Sequence[int], stream: str, step: int, samples: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 [K, n, *shape]: for each of K seeds what `normal` draws for its row of `samples` [K, n]."""
    keys = torch.tensor([_key(seed, stream, step) for seed in seeds], device=samples.device)
    return _normal(keys[:, None], samples, shape)


def integers(seed: int, stream: str, step: int, sample: Tensor, low: int, high: int) -> Tensor:
    """Uniform int64 [len(sample)] in low…high, both included."""
    return low + (uniform(seed, stream, step, sample)[:, 0].double() * (high - low + 1)).long().clamp_(max=high - low)


def picture_key(images: Tensor) -> Tensor:
    """An int64 key [n] of each image [n, …] in [−1, 1] by its 8-bit pixels, to draw by in place of a sample index.

    So that what is drawn for a picture does not depend on where it stands among others.
    """
    pixels = ((images + 1) * 127.5).round().long().flatten(1)
    places = torch.arange(1, pixels.shape[1] + 1, device=images.device, dtype=torch.int64) * _signed(_GOLDEN)
    return (_mix(places) * (pixels + 1)).sum(1)


@lru_cache(maxsize=64)
def permutation(seed: int, stream: str, step: int, count: int) -> Tensor:
    """A permutation of 0…count − 1 (int64, on the CPU) that depends on (seed, stream, step) alone; not to be changed."""
    generator = torch.Generator().manual_seed(derive_seed(seed, stream, step))
    return torch.randperm(count, generator=generator)


def epoch_batch(seed: int, stream: str, step: int, count: int, batch: int) -> Tensor:
    """Sample indices of training step `step` (from 0): consecutive slices of one permutation per epoch.

    Returns int64 [min(batch, count)]; the remainder of an epoch is dropped, so that batches have one size.
    """
    batch = min(batch, count)
    per_epoch = count // batch
    order = permutation(seed, stream, step // per_epoch, count)
    start = (step % per_epoch) * batch
    return order[start : start + batch]
