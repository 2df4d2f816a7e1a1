"""What a study says of itself while it runs."""

from __future__ import annotations

import io
import re

import pytest

from tune import progress
from tune.progress import Display, Reporter

EXPECTED = {"prepare": 100.0, "trial": 10.0, "final": 40.0}


class Clock:
    """Stands in for the clock that the display reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_time_left_goes_down_within_a_trial_and_through_the_final_stage(clock, tmp_path) -> None:
    display = Display(tmp_path, EXPECTED, io.StringIO())
    display.trials(0, 4)
    assert display.seconds_left([]) == 100 + 4 * 10 + 40
    display.phase("search")
    assert display.seconds_left([]) == 80
    clock.now += 6
    assert display.seconds_left([]) == 74
    clock.now += 30
    assert display.seconds_left([]) == 70, "a trial that takes longer than usual may end at any moment"
    display.trial_took(36)
    display.trials(1, 4)
    assert display.seconds_left([]) == 3 * 36 + 40
    display.phase("final")
    clock.now += 15
    assert display.seconds_left([{"seconds_left": 2.0}]) == 25, "a fit that is done soon is not all that is left"
    assert display.seconds_left([{"seconds_left": 60.0}]) == 60
    clock.now += 30
    assert display.seconds_left([]) is None


def test_a_log_is_never_silent_for_long(tmp_path, monkeypatch) -> None:
    """A stage without steps says the same all the time; here a minute is 0.3 s."""
    monkeypatch.setattr(progress, "_EVERY", 0.02)
    monkeypatch.setattr(progress, "_SILENT_AT_MOST", 0.3)
    stream = io.StringIO()
    with Display(tmp_path, None, stream, plain_every=0.05) as display:
        display.phase("prepare")
        Reporter(tmp_path, "prepare").update("instruments")
        progress.time.sleep(1.0)
    lines = re.findall(r"^\[.*\] prepare · instruments$", stream.getvalue(), re.MULTILINE)
    assert 2 <= len(lines) <= 4, stream.getvalue()
