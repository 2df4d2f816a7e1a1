"""Single units: planted tuning is found, chance is chance, and both decoders are those of a library."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from migvis.errors import InputError
from migvis.metrics.single_units import single_units

COUNT = 1200


def planted(seed: int):
    """Units tuned to an angle, to the category, to both, and to nothing."""
    random = np.random.default_rng(seed)
    pose, category = random.uniform(-90, 90, (COUNT, 3)), random.integers(0, 4, COUNT)
    noise = random.normal(size=(COUNT, 4))
    tuned = np.stack([pose[:, 0] / 20, category * 3.0, pose[:, 1] / 30 + category * 2.0, np.zeros(COUNT)], axis=1)
    return tuned + 0.3 * noise, pose, category


TRAINING, TEST = planted(0), planted(1)
UNITS = single_units(*TRAINING, *TEST)


def test_planted_selectivity_is_found_and_no_other() -> None:
    assert UNITS.counts == {"both": 1, "pose only": 1, "category only": 1, "neither": 1}
    assert UNITS.pose[0] == pytest.approx(1 / 3, abs=0.02)  # one of three angles, nearly perfectly
    assert UNITS.category[1] > 0.95
    assert abs(UNITS.pose[3]) < 0.01
    assert UNITS.category[3] == pytest.approx(0.25, abs=0.04)


def test_both_decoders_are_a_library_s() -> None:
    (x, pose, category), (held, true_pose, true_category) = TRAINING, TEST
    for unit in range(4):
        column, test = x[:, [unit]], held[:, [unit]]
        regression = LinearRegression().fit(column, pose)
        assert UNITS.pose[unit] == pytest.approx(r2_score(true_pose, regression.predict(test)), abs=1e-9)
        discriminant = LinearDiscriminantAnalysis(solver="lsqr").fit(column, category)
        assert UNITS.category[unit] == pytest.approx(discriminant.score(test, true_category), abs=1e-9)


def test_a_silent_unit_tells_nothing() -> None:
    silent = single_units(np.zeros((COUNT, 1)), *TRAINING[1:], np.zeros((COUNT, 1)), *TEST[1:])
    assert abs(silent.pose[0]) < 0.01
    assert silent.category[0] == pytest.approx(0.25, abs=0.05)


def test_one_in_a_hundred_of_many_untuned_units_is_called_selective() -> None:
    """Also among units that are mostly tuned, whose own chance is below that of the others."""
    random = np.random.default_rng(2)
    shares = []
    for _ in range(5):
        (pose, other_pose), (category, other_category) = (
            (random.uniform(-90, 90, (600, 3)) for _ in range(2)),
            (random.integers(0, 4, 600) for _ in range(2)),
        )

        def responses(angles, labels):
            tuned = angles[:, :1] / 20 + labels[:, None] + 0.3 * random.normal(size=(600, 60))
            return np.concatenate([tuned, random.normal(size=(600, 60))], axis=1)

        units = single_units(
            responses(pose, category), pose, category, responses(other_pose, other_category), other_pose, other_category
        )
        shares.append([(units.pose > units.pose_chance)[60:].mean(), (units.category > units.category_chance)[60:].mean()])
        assert (units.pose > units.pose_chance)[:60].all()
    assert np.mean(shares, axis=0).max() < 0.03


def test_lengths_that_disagree_are_refused() -> None:
    with pytest.raises(InputError, match="disagree"):
        single_units(*TRAINING[:2], TRAINING[2][:-1], *TEST)
