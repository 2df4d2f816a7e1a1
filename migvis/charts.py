"""Charts of results over seeds: intervals by case, curves, trade-offs, responses. Files are PNG, dark text on white.

Colours are those of Okabe and Ito, which people with any colour vision tell apart, then a grey and a brown; markers differ too.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from migvis.errors import InputError
from migvis.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888", "#7F3C00")
MARKERS = "osD^vPX*<"
PANELS = 4
"""Panels in a row of a chart."""
TITLE_LETTERS = 26
"""Letters in a line of such a panel's title: as many as the panel is wide."""

TICKS = 4
"""At most so many numbers, less one, along such a panel, which has room for no more."""

Point = tuple[float, Interval]


def interval_chart(
    cases: Sequence[str], panels: Mapping[str, Sequence[Interval | None]], path: Path, base: str | None = None
) -> Path:
    """Draws, for each metric of `panels`, the mean and the interval of every case (top to bottom), `base` in black.

    The first panel of a row names the cases; a mean without an interval is a dot alone, a case that was not measured is left out.
    Raises InputError without a case or a panel, or for a panel with another number of values.
    """
    if not cases or not panels:
        raise InputError("interval chart: no case or no metric to draw")
    for name, intervals in panels.items():
        if len(intervals) != len(cases):
            raise InputError(f"interval chart: {name} has {len(intervals)} values for {len(cases)} cases")
    across = min(PANELS, len(panels))
    down = math.ceil(len(panels) / across)
    titles = {name: textwrap.fill(name, TITLE_LETTERS) for name in panels}
    lines = 1 + max(title.count("\n") for title in titles.values())
    figure = _figure(2.2 + 2.1 * across, (0.5 + 0.17 * lines + 0.28 * len(cases)) * down + 0.2)
    first: Any = None
    for place, (name, intervals) in enumerate(panels.items()):
        axes = first = figure.add_subplot(down, across, place + 1, sharey=first)
        for row, interval in enumerate(intervals):
            if interval is not None:
                _whisker(axes, interval, row, horizontal=True, colour="black" if cases[row] == base else COLOURS[0])
        axes.set_title(titles[name], fontsize=9, parse_math=False)
        _plain(axes)
        axes.grid(axis="x", color="0.9")
        axes.locator_params(axis="x", nbins=TICKS)
        axes.tick_params(labelleft=place % across == 0)
    first.set_yticks(range(len(cases)), list(cases), fontsize=8)
    first.set_ylim(len(cases) - 0.5, -0.5)
    return _save(figure, path)


def curve_chart(
    panels: Mapping[str, Mapping[str, Sequence[Point]]], path: Path, across: str, lines: Mapping[str, float] | None = None
) -> Path:
    """Draws panels of curves, {panel: {curve: [(x, interval of y)]}}, over a common logarithmic x axis named `across`.

    lines: a level to mark, by panel.

    Raises InputError without a point.
    """
    if not any(points for curves in panels.values() for points in curves.values()):
        raise InputError("curve chart: no point to draw")
    columns = min(PANELS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = _figure(2.8 * columns + 0.6, 2.9 * rows)
    for place, (name, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for index, (label, points) in enumerate(curves.items()):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            axes.plot([x for x, _ in points], [y.mean for _, y in points], color=colour, linewidth=1, label=label)
            for x, y in points:
                _whisker(axes, y, x, horizontal=False, colour=colour, marker=marker)
        if lines is not None and name in lines:
            axes.axhline(lines[name], color="0.5", linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.set_xlabel(across, fontsize=8, parse_math=False)
        axes.set_title(name, fontsize=9, parse_math=False)
        _plain(axes)
        if place == 1:
            axes.legend(fontsize=7, frameon=False)
    return _save(figure, path)


def trade_off_chart(
    curves: Mapping[str, Sequence[tuple[str, Interval, Interval]]], path: Path, across: str, up: str
) -> Path:
    """Draws each method as a line through its settings, [(setting, interval of x, interval of y)], each named beside its dot.

    Raises InputError without a point.
    """
    if not any(curves.values()):
        raise InputError("trade-off chart: no point to draw")
    figure = _figure(6.6, 4.2)
    axes = figure.add_subplot(1, 1, 1)
    for index, (label, points) in enumerate(curves.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot([x.mean for _, x, _ in points], [y.mean for *_, y in points], color=colour, linewidth=1, alpha=0.6)
        for setting, x, y in points:
            _whisker(axes, x, y.mean, horizontal=True, colour=colour, marker=marker)
            _whisker(axes, y, x.mean, horizontal=False, colour=colour, marker=marker)
            at = (x.mean, y.mean)
            axes.annotate(setting, at, (4, 3), textcoords="offset points", fontsize=6, color=colour, parse_math=False)
        axes.plot([], [], color=colour, marker=marker, linewidth=1, label=label)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.grid(color="0.93")
    _plain(axes)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _save(figure, path)


def response_chart(
    stimuli: np.ndarray, names: Sequence[str], responses: np.ndarray, reconstructions: np.ndarray, path: Path
) -> Path:
    """Draws stimuli [k, H, W] beside their z-scored responses and reconstructions, both [k, units].

    Raises InputError for lengths that disagree.
    """
    if responses.shape != reconstructions.shape or len(responses) != len(stimuli) or len(names) != len(stimuli):
        raise InputError(f"response chart: shapes {stimuli.shape}, {responses.shape}, {reconstructions.shape} disagree")
    figure = _figure(8.5, 1.35 * len(stimuli) + 0.4)
    grid = figure.add_gridspec(len(stimuli), 2, width_ratios=[1, 6])
    limit = float(np.abs(np.concatenate([responses, reconstructions])).max()) * 1.05
    for row, name in enumerate(names):
        picture, axes = figure.add_subplot(grid[row, 0]), figure.add_subplot(grid[row, 1])
        picture.imshow(stimuli[row], cmap="gray", vmin=-1, vmax=1)
        picture.set_axis_off()
        units = np.arange(1, responses.shape[1] + 1)
        axes.plot(units, responses[row], color="black", linewidth=1, label="response (average over repetitions)")
        axes.plot(units, reconstructions[row], color=COLOURS[1], linewidth=1, label="reconstruction")
        axes.set_ylim(-limit, limit)
        axes.set_ylabel(name, fontsize=8, parse_math=False)
        _plain(axes)
        if row == 0:
            axes.legend(fontsize=7, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.92))
    axes.set_xlabel("unit", fontsize=8)
    return _save(figure, path)


def scatter_chart(
    x: np.ndarray, y: np.ndarray, path: Path, across: str, up: str, chance: tuple[float, float] | None = None
) -> Path:
    """Draws one dot per unit, x [n] against y [n]; `chance` marks a level of each. Raises InputError for unequal lengths."""
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"scatter chart: shapes {x.shape} and {y.shape}, expected [n] twice")
    figure = _figure(4.4, 3.8)
    axes = figure.add_subplot(1, 1, 1)
    if chance is not None:
        axes.axvline(chance[0], color="0.6", linewidth=1, linestyle=":")
        axes.axhline(chance[1], color="0.6", linewidth=1, linestyle=":")
    axes.plot(x, y, linestyle="", marker="o", markersize=4, color=COLOURS[0], alpha=0.7)
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    _plain(axes)
    return _save(figure, path)


def _whisker(axes: Axes, interval: Interval, at: float, *, horizontal: bool, colour: str, marker: str = "o") -> None:
    span = (interval.low, interval.high)
    if np.isfinite(span).all():
        lines = (span, (at, at)) if horizontal else ((at, at), span)
        axes.plot(*lines, color=colour, linewidth=1.2, solid_capstyle="butt")
    dot = (interval.mean, at) if horizontal else (at, interval.mean)
    axes.plot(*dot, marker=marker, markersize=4.5, color=colour, linestyle="")


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)
    return path
