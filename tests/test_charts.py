"""Charts are drawn as PNG files that hold what they were given, and refuse what cannot be drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from migvis.charts import COLOURS, curve_chart, interval_chart, response_chart, scatter_chart, trade_off_chart
from migvis.errors import InputError
from migvis.statistics import Interval

ONE = Interval(0.5, 0.4, 0.6, 0.1, 5)
ALONE = Interval(0.2, np.nan, np.nan, np.nan, 1)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def has(path, colour: str) -> bool:
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return bool((np.abs(pixels(path) - wanted).sum(axis=2) < 30).any())


def test_every_case_has_a_row_and_the_base_its_colour(tmp_path) -> None:
    panels = {"R²": [ONE, ALONE, None], "MIG": [ONE, ONE, ONE]}
    path = interval_chart(["full", "without PC", "x"], panels, tmp_path / "a" / "i.png", base="full")
    assert has(path, COLOURS[0])
    taller = interval_chart(["full"] * 9, {"R²": [ONE] * 9}, tmp_path / "t.png", base="full")
    assert not has(taller, COLOURS[0])
    assert pixels(taller).shape[0] > pixels(path).shape[0]


def test_curves_and_trade_offs_give_each_method_a_colour(tmp_path) -> None:
    path = curve_chart({"p": {"a": [(1.0, ONE), (10.0, ALONE)], "b": [(1.0, ALONE)]}}, tmp_path / "c.png", "γ")
    assert has(path, COLOURS[0])
    assert has(path, COLOURS[1])
    assert not has(path, COLOURS[2])
    path = trade_off_chart({"a": [("γ = 1", ONE, ALONE)], "b": [("γ = 2", ALONE, ONE)]}, tmp_path / "t.png", "x", "y")
    assert has(path, COLOURS[0])
    assert has(path, COLOURS[1])


def test_responses_and_units_are_drawn(tmp_path) -> None:
    stimuli, values = np.zeros((2, 8, 8)), np.random.default_rng(0).normal(size=(2, 20))
    assert has(response_chart(stimuli, ["a", "b"], values, values * 0.5, tmp_path / "r.png"), COLOURS[1])
    assert has(scatter_chart(values[0], values[1], tmp_path / "s.png", "x", "y", chance=(0.0, 0.0)), COLOURS[0])


def test_what_cannot_be_drawn_is_refused(tmp_path) -> None:
    path = tmp_path / "x.png"
    with pytest.raises(InputError, match="no case"):
        interval_chart([], {}, path)
    with pytest.raises(InputError, match="1 values for 2 cases"):
        interval_chart(["a", "b"], {"R²": [ONE]}, path)
    with pytest.raises(InputError, match="no point"):
        curve_chart({"p": {}}, path, "γ")
    with pytest.raises(InputError, match="no point"):
        trade_off_chart({"a": []}, path, "x", "y")
    with pytest.raises(InputError, match="disagree"):
        response_chart(np.zeros((2, 8, 8)), ["a"], np.zeros((2, 3)), np.zeros((2, 3)), path)
    with pytest.raises(InputError, match="shapes"):
        scatter_chart(np.zeros(2), np.zeros(3), path, "x", "y")
    assert not path.exists()
