from __future__ import annotations

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tune.unit_cube import Axis


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(1e-6, 1e-1, log=True),
        FloatDistribution(-1.0, 3.0),
        FloatDistribution(0.5, 0.95, step=0.05),
        IntDistribution(2, 8),
        CategoricalDistribution((16, 32, 64, 128)),
    ],
)
def test_values_and_places_in_a_range_are_inverse(distribution: BaseDistribution) -> None:
    values = [Axis(distribution).value(position) for position in np.linspace(0, 1, 41)]
    places = [Axis(distribution).place(value) for value in values]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, 1)
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in values)
    assert [Axis(distribution).place(Axis(distribution).value(place)) for place in places] == pytest.approx(places)


def test_discrete_values_have_equal_shares() -> None:
    values = [Axis(IntDistribution(2, 5)).value(position) for position in (np.arange(1000) + 0.5) / 1000]
    assert [values.count(value) for value in (2, 3, 4, 5)] == [250] * 4


def test_a_single_value_is_in_the_middle() -> None:
    assert Axis(IntDistribution(3, 3)).place(3) == 0.5
    assert Axis(IntDistribution(3, 3)).value(0.9) == 3


def test_a_value_that_is_no_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="48 is none of"):
        Axis(CategoricalDistribution((16, 32, 64))).place(48)
