"""What a benchmark is given and what it returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Options:
    """small: the tiniest variant, which shows that a benchmark runs and nothing about speed; threads: of torch.

    out: the folder for pictures.
    """

    small: bool
    threads: int
    out: Path = Path()


@dataclass(frozen=True)
class Row:
    """Seconds of one way of doing something, and of a named baseline that does the same in the same run."""

    name: str
    seconds: float
    baseline_seconds: float

    @property
    def ratio(self) -> float:
        """How many times faster than the baseline."""
        return self.baseline_seconds / self.seconds


@dataclass(frozen=True)
class Result:
    """The rows, any further figures by name, and the pictures drawn. ratio: the benchmark's own (none: that of the first row)."""

    rows: Sequence[Row]
    figures: Mapping[str, float] = field(default_factory=dict)
    ratio: float | None = None
    pictures: Sequence[Path] = ()


def interleaved(ways: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way over `rounds`, in which the ways take turns, so that a busy machine slows all of them.

    Each way is called with the number of the round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way(number)
            seconds[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in seconds.items()}
