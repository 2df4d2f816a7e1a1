"""Counter-based draws: their distribution, their independence, and that nothing but their arguments matters."""

from __future__ import annotations

import pytest
import torch

from migvis import randomness
from migvis.training import Shard

SAMPLE = torch.arange(20_000)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


def test_normal_has_the_moments_of_a_standard_normal() -> None:
    draws = randomness.normal(0, "noise", 3, SAMPLE, (2, 5)).double()
    assert draws.shape == (20_000, 2, 5)
    assert draws.mean().abs() < 0.01
    assert draws.var().sub(1).abs() < 0.02
    assert draws.pow(3).mean().abs() < 0.03
    assert draws.pow(4).mean().sub(3).abs() < 0.1
    assert draws.isfinite().all()
    assert (draws.abs() > 3.5).double().mean() == pytest.approx(4.65e-4, rel=0.5)
    # Box–Muller pairs share a radius: each column, and each pair of columns, must still be uncorrelated.
    columns = draws.flatten(1).T
    assert (torch.corrcoef(columns) - torch.eye(10, dtype=torch.float64)).abs().max() < 0.04
    assert (torch.corrcoef(columns.square()) - torch.eye(10, dtype=torch.float64)).abs().max() < 0.04


def test_uniform_fills_the_open_unit_interval_evenly() -> None:
    draws = randomness.uniform(0, "u", 0, SAMPLE, 5)
    assert draws.min() > 0
    assert draws.max() < 1
    counts = torch.histc(draws, bins=50, min=0, max=1).double()
    chi_square = ((counts - 2000).square() / 2000).sum()
    assert 20 < chi_square < 90  # 49 degrees of freedom: mean 49, sd 9.9


def test_neighbouring_steps_samples_streams_and_seeds_are_uncorrelated() -> None:
    base = randomness.normal(0, "noise", 3, SAMPLE, (4,))
    others = {
        "step": randomness.normal(0, "noise", 4, SAMPLE, (4,)),
        "stream": randomness.normal(0, "other", 3, SAMPLE, (4,)),
        "seed": randomness.normal(1, "noise", 3, SAMPLE, (4,)),
        "sample": randomness.normal(0, "noise", 3, SAMPLE + 1, (4,)),
        "sample and step": randomness.normal(0, "noise", 4, SAMPLE + 1, (4,)),
    }
    for name, other in others.items():
        assert abs(correlation(base, other)) < 0.015, name
        assert not torch.equal(base, other), name
    assert abs(correlation(base[:, :-1], base[:, 1:])) < 0.015


def test_draws_depend_on_their_arguments_alone() -> None:
    torch.manual_seed(1)
    first = randomness.normal(7, "noise", 2, torch.tensor([5, 900, 31]), (3,))
    batch = randomness.epoch_batch(7, "batch", 11, 100, 32)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(randomness.normal(7, "noise", 2, torch.tensor([31, 5, 4, 900]), (3,))[[1, 3, 0]], first)
    assert torch.equal(randomness.epoch_batch(7, "batch", 11, 100, 32), batch)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_draws_are_the_same_ones_next_year() -> None:
    """Fixed values: stored stages are keyed by their seed, so the hash must not change silently."""
    assert randomness.derive_seed(0, "vae", 1) == 5537766759927111952
    assert randomness.integers(0, "t", 5, torch.arange(6), 1, 1000).tolist() == [497, 39, 786, 841, 841, 484]


def test_sharding_does_not_change_draws() -> None:
    indices = randomness.epoch_batch(0, "batch", 4, 50, 15)
    whole = randomness.normal(0, "noise", 4, indices, (2,))
    for rank in range(4):
        shard = Shard(rank, 4)
        assert torch.equal(randomness.normal(0, "noise", 4, shard.take(indices), (2,)), shard.take(whole))
    assert sorted(torch.cat([Shard(rank, 4).take(indices) for rank in range(4)]).tolist()) == sorted(indices.tolist())


def test_integers_cover_their_range_evenly() -> None:
    draws = randomness.integers(0, "t", 1, SAMPLE, 3, 12)
    assert draws.dtype == torch.int64
    counts = torch.bincount(draws, minlength=14)
    assert counts[:3].sum() == 0
    assert counts[13:].sum() == 0
    assert ((counts[3:13].double() - 2000).square() / 2000).sum() < 28  # 9 degrees of freedom, p = 0.001
    assert randomness.integers(0, "t", 1, SAMPLE[:9], 4, 4).tolist() == [4] * 9


@pytest.mark.parametrize(("count", "batch", "per_epoch"), [(64, 16, 4), (50, 16, 3), (10, 16, 1)])
def test_an_epoch_takes_every_sample_at_most_once(count: int, batch: int, per_epoch: int) -> None:
    epochs = []
    for epoch in range(2):
        steps = [randomness.epoch_batch(3, "batch", epoch * per_epoch + step, count, batch) for step in range(per_epoch)]
        taken = torch.cat(steps)
        assert all(len(step) == min(batch, count) for step in steps)
        assert len(taken.unique()) == len(taken) == per_epoch * min(batch, count)
        assert taken.min() >= 0
        assert taken.max() < count
        epochs.append(taken)
    assert not torch.equal(epochs[0], epochs[1])
    if count % batch == 0:
        assert sorted(epochs[0].tolist()) == list(range(count))


def test_permutations_are_permutations_and_differ_by_step_and_stream() -> None:
    orders = [randomness.permutation(0, *key, 40) for key in (("a", 0), ("a", 1), ("b", 0))]
    assert all(sorted(order.tolist()) == list(range(40)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_derived_seeds_differ_and_are_valid_seeds() -> None:
    seeds = {randomness.derive_seed(seed, part, number) for seed in range(20) for part in ("a", "b") for number in range(20)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert randomness.derive_seed(0, "a", "b") != randomness.derive_seed(0, "b", "a")
