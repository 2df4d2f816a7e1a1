from __future__ import annotations

import numpy as np
import pytest

from migvis.data import grouped_split, picture_ids
from migvis.errors import InputError

FRACTIONS = (0.7, 0.1, 0.2)


def test_picture_ids_tell_pictures_apart_by_their_bytes() -> None:
    image = np.zeros((5, 8, 8), dtype=np.uint8)
    image[1, 0, 0] = image[3, 0, 0] = 1
    image[4, 7, 7] = 1
    assert picture_ids(image).tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("seed", range(25))
def test_no_picture_straddles_and_every_stimulus_has_one_split(seed: int) -> None:
    generator = np.random.default_rng(seed)
    picture = generator.integers(0, generator.integers(4, 120), 300)
    strata = generator.integers(0, 6, 300) if seed % 2 else None
    split = grouped_split(picture, (0.5, 0.2, 0.3), seed, strata)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(300))
    pictures = [set(picture[indices]) for indices in split.values()]
    assert pictures[0].isdisjoint(pictures[1] | pictures[2])
    assert pictures[1].isdisjoint(pictures[2])
    assert all(pictures)


@pytest.mark.parametrize("seed", range(10))
def test_fractions_are_met_to_within_one_picture_per_stratum(seed: int) -> None:
    generator = np.random.default_rng(seed)
    strata_of_pictures = generator.integers(0, 9, 400)
    picture = np.repeat(np.arange(400), generator.integers(1, 4, 400))
    split = grouped_split(picture, FRACTIONS, seed, strata_of_pictures[picture])
    for name, fraction in zip(("train", "validation", "test"), FRACTIONS, strict=True):
        chosen = np.unique(picture[split[name]])
        assert abs(len(chosen) - fraction * 400) < 3
        for stratum in range(9):
            wanted = fraction * (strata_of_pictures == stratum).sum()
            assert abs((strata_of_pictures[chosen] == stratum).sum() - wanted) < 1


def test_strata_of_one_picture_are_shared_out() -> None:
    """HvM's 64 objects have one picture each at variation 0: not all of them may be training pictures."""
    split = grouped_split(np.arange(64), FRACTIONS, 0, np.arange(64))
    assert [len(indices) for indices in split.values()] == pytest.approx([44.8, 6.4, 12.8], abs=1)


def test_the_seed_alone_decides() -> None:
    picture = np.arange(200) // 2
    first, again, other = (grouped_split(picture, FRACTIONS, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["test"], other["test"])


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_small_sets_have_no_empty_split(count: int) -> None:
    assert all(len(indices) for indices in grouped_split(np.arange(count), FRACTIONS, 0).values())


@pytest.mark.parametrize(
    ("picture", "fractions", "strata", "message"),
    [
        ([0, 1, 2], (0.5, 0.5), None, "three positive fractions"),
        ([0, 1, 2], (0.5, 0.6, 0.2), None, r"got \(0.5, 0.6, 0.2\)"),
        ([0, 1, 2], (1.0, 0.0, 0.0), None, "three positive fractions"),
        ([0, 1, 1, 0], FRACTIONS, None, "at least 3 distinct pictures .* got 2"),
        ([0, 1, 2], FRACTIONS, np.zeros(2), "strata have length 2, the stimuli 3"),
    ],
)
def test_bad_requests(picture: list[int], fractions: tuple[float, ...], strata: np.ndarray | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        grouped_split(np.array(picture), fractions, 0, strata)
