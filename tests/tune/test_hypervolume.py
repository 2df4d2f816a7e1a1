from __future__ import annotations

import numpy as np
import pytest

from tune.hypervolume import REFERENCE, expected_improvement, hypervolume, nondominated


def share_by_sampling(points: np.ndarray, draws: int = 400_000) -> float:
    """The same share, counted over random places in the box."""
    places = np.random.default_rng(1).uniform(REFERENCE, 1, (draws, points.shape[1]))
    clipped = np.clip(points, 0, 1)
    return float((places[:, None] <= clipped[None]).all(-1).any(1).mean())


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_it_is_the_dominated_share_of_the_box(objectives: int) -> None:
    points = np.random.default_rng(objectives).uniform(-0.3, 0.9, (8, objectives))
    assert hypervolume(points) == pytest.approx(share_by_sampling(points), abs=3e-3)


def test_nothing_dominates_nothing_and_the_ideal_dominates_all() -> None:
    assert hypervolume(np.empty((0, 3))) == 0
    assert hypervolume([[1, 1, 1]]) == pytest.approx(1)
    assert hypervolume([[0, 0, 0]]) == pytest.approx((0.1 / 1.1) ** 3)
    assert hypervolume([[-0.4, -1, 0]]) == hypervolume([[0, 0, 0]])
    assert hypervolume([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.4, 0.5, 0.1]]) == pytest.approx((0.6 / 1.1) ** 3)


def test_four_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 3"):
        hypervolume(np.ones((2, 4)))


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_a_certain_trial_improves_by_what_it_adds(objectives: int) -> None:
    generator = np.random.default_rng(objectives)
    points, more = generator.uniform(0, 0.8, (6, objectives)), generator.uniform(-0.2, 1.1, (20, objectives))
    expected = [hypervolume(np.vstack([points, one])) - hypervolume(points) for one in more]
    assert max(expected) > 0.01
    np.testing.assert_allclose(expected_improvement(more, np.zeros_like(more), points), expected, atol=1e-9)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_an_uncertain_trial_improves_by_the_mean_over_its_values(objectives: int) -> None:
    generator = np.random.default_rng(10 + objectives)
    points = generator.uniform(0, 0.7, (4, objectives))
    mean, sd = generator.uniform(-0.1, 0.9, (4, objectives)), generator.uniform(0.05, 0.4, (4, objectives))
    draws = mean[:, None] + sd[:, None] * generator.standard_normal((4, 2500, objectives))
    before = hypervolume(points)
    gains = np.array([[hypervolume(np.vstack([points, one])) - before for one in of_one] for of_one in draws])
    error = gains.std(axis=1) / 50
    assert np.all(np.abs(expected_improvement(mean, sd, points) - gains.mean(axis=1)) < 4 * error + 1e-9)


def test_the_first_trial_is_expected_to_add_its_own_volume() -> None:
    assert expected_improvement([[0.5, 0.5, 0.5]], [[0, 0, 0]], np.empty((0, 3)))[0] == pytest.approx((0.6 / 1.1) ** 3)


def test_what_is_dominated_adds_nothing() -> None:
    points = np.random.default_rng(5).uniform(-0.2, 0.9, (60, 3))
    front = nondominated(points)
    assert len(front) < 30
    assert hypervolume(front) == pytest.approx(hypervolume(points))
    for number in range(len(front)):
        assert hypervolume(np.delete(front, number, axis=0)) < hypervolume(front)
    np.testing.assert_allclose(nondominated([[0.2, 0.3], [0.2, 0.3], [0.1, 0.3]]), [[0.2, 0.3]])
