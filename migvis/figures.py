"""Pictures for people: the selectivity matrix, training curves. Files are PNG, dark text on white.

matplotlib is imported where a picture is drawn, and without pyplot, so that nothing global is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from migvis.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
LABEL_POINTS, TITLE_POINTS = 8.5, 11


def selectivity_matrix(
    values: np.ndarray | Tensor,
    group_names: Sequence[str],
    attribute_names: Sequence[str],
    path: Path,
    title: str = "How far edits of a group move an attribute towards the target",
) -> Path:
    """Draws values [groups, attributes] in [−1, 1] as an annotated heatmap (NaN: "–", not measured); returns its path.

    Raises InputError if the names do not fit the matrix.
    """
    matrix = np.asarray(values, dtype=float)
    if matrix.shape != (len(group_names), len(attribute_names)):
        raise InputError(f"selectivity matrix: shape {matrix.shape}, names {len(group_names)} × {len(attribute_names)}")
    figure, measure = _figure_and_ruler()
    label_width = max(measure(name, LABEL_POINTS) for name in group_names) / DPI
    columns = len(attribute_names) * max(0.9, max(measure(name, LABEL_POINTS) for name in attribute_names) / DPI + 0.15)
    title_width = measure(title, TITLE_POINTS) / DPI
    width, height = max(label_width + columns + 1.2, title_width + 0.4), 0.5 * len(group_names) + 1.1
    figure.set_size_inches(width, height)
    left, across = (label_width + 0.25) / width, min(columns / width, 1 - (label_width + 1.1) / width)
    axes = figure.add_axes((left, 0.45 / height, across, 0.5 * len(group_names) / height))
    picture = axes.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        text = "–" if math.isnan(value) else f"{value:+.2f}"
        axes.text(column, row, text, ha="center", va="center", color="white" if abs(value) > 0.6 else "black", fontsize=10)
    axes.set_xticks(range(len(attribute_names)), list(attribute_names), fontsize=LABEL_POINTS)
    axes.set_yticks(range(len(group_names)), list(group_names), fontsize=LABEL_POINTS)
    axes.tick_params(length=0)
    figure.text(0.2 / width, 1 - 0.12 / height, title, fontsize=TITLE_POINTS, va="top", weight="bold", parse_math=False)
    figure.colorbar(picture, ax=axes, ticks=[-1, 0, 1])
    return _save(figure, path)


def curves(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path, title: str = "") -> Path:
    """Draws small multiples of training curves, one per name, each a list of (step, value); returns the picture's path.

    A curve that is positive and spans two decades has a logarithmic axis. Raises InputError without any curve.
    """
    named = {name: points for name, points in curves.items() if len(points)}
    if not named:
        raise InputError("curves: there is none to draw")
    figure, _ = _figure_and_ruler()
    columns = min(4, len(named))
    rows = math.ceil(len(named) / columns)
    figure.set_size_inches(2.7 * columns, 2.0 * rows + (0.4 if title else 0.1))
    figure.set_layout_engine("constrained")
    for place, (name, points) in enumerate(named.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        steps, values = np.asarray([step for step, _ in points]), np.asarray([value for _, value in points], dtype=float)
        axes.plot(steps, values, color="black", linewidth=1, marker="." if len(points) < 3 else None)
        finite = values[np.isfinite(values)]
        if len(finite) and finite.min() > 0 and finite.max() > 100 * finite.min():
            axes.set_yscale("log")
        axes.set_title(name, fontsize=9, parse_math=False)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("step", fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=TITLE_POINTS, weight="bold", parse_math=False)
    return _save(figure, path)


class _Ruler:
    """Width in pixels of a text (its longest line) of a size in points."""

    def __init__(self, figure: Figure) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self._renderer = FigureCanvasAgg(figure).get_renderer()

    def __call__(self, text: str, points: float) -> float:
        from matplotlib.font_manager import FontProperties

        font = FontProperties(size=points, weight="bold")
        return max(self._renderer.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n"))


def _figure_and_ruler() -> tuple[Figure, _Ruler]:
    from matplotlib.figure import Figure

    figure = Figure(dpi=DPI, facecolor="white")
    return figure, _Ruler(figure)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)
    return path
