"""The 64 parametric objects of the synthetic set: 8 categories × 8 objects built from ellipsoids and boxes.

Object frame (each category's canonical frame): x points at the viewer at zero rotation, y right, z up; an
object fits into a ball of radius about 0.5. An object is a list of primitives with a centre, three half
sizes, an albedo and an optional tilt about y (degrees); its rotational symmetries are declared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

CATEGORIES = ("Animals", "Boats", "Cars", "Chairs", "Faces", "Fruits", "Planes", "Tables")
OBJECTS_PER_CATEGORY = 8

Triple = tuple[float, float, float]
Symmetry = Literal["none", "half_turn", "quarter_turn", "continuous"]


@dataclass(frozen=True)
class Primitive:
    """One ellipsoid (half sizes = semi-axes) or box (half sizes = half edges)."""

    shape: Literal["ellipsoid", "box"]
    center: Triple
    half_size: Triple
    albedo: float
    tilt: float = 0.0


@dataclass(frozen=True)
class ObjectModel:
    """An object: primitives, category, and its rotational symmetry about the vertical axis."""

    category: int
    primitives: tuple[Primitive, ...]
    symmetry: Symmetry = "none"

    @property
    def symmetry_rotations(self) -> np.ndarray:
        """Rotations [k, 3, 3] of the object frame that leave the object as it is (the identity included)."""
        turns = {"none": 1, "half_turn": 2, "quarter_turn": 4, "continuous": 1}[self.symmetry]
        angles = [2 * math.pi * turn / turns for turn in range(turns)]
        return np.array([[[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]] for a in angles])


def _ball(x: float, y: float, z: float, a: float, b: float, c: float, albedo: float, tilt: float = 0.0) -> Primitive:
    return Primitive("ellipsoid", (x, y, z), (a, b, c), albedo, tilt)


def _box(x: float, y: float, z: float, a: float, b: float, c: float, albedo: float, tilt: float = 0.0) -> Primitive:
    return Primitive("box", (x, y, z), (a, b, c), albedo, tilt)


def _animal(k: int) -> ObjectModel:
    length = (0.30, 0.34, 0.26, 0.36, 0.24, 0.32, 0.28, 0.34)[k]
    girth = (0.13, 0.17, 0.20, 0.12, 0.15, 0.20, 0.11, 0.15)[k]
    leg = (0.16, 0.12, 0.08, 0.20, 0.10, 0.14, 0.22, 0.16)[k]
    head = (0.11, 0.13, 0.12, 0.09, 0.14, 0.12, 0.08, 0.11)[k]
    lift = (0.14, 0.06, 0.10, 0.24, 0.12, 0.02, 0.28, 0.16)[k]
    ear = (0.06, 0.10, 0.04, 0.05, 0.18, 0.08, 0.07, 0.12)[k]
    tone = (0.75, 0.55, 0.85, 0.65, 0.95, 0.45, 0.80, 0.60)[k]
    parts = [
        _ball(0, 0, 0, length, girth, girth, tone),
        _ball(length * 0.95, 0, lift, head * 1.1, head, head, tone * 0.9),
        _ball(length * 0.95 + head, 0, lift - 0.02, head * 0.6, head * 0.5, head * 0.45, 0.3),
        _ball(length * 0.85, head * 0.7, lift + head + ear * 0.5, 0.03, 0.04, ear, tone * 0.7),
        _ball(length * 0.85, -head * 0.7, lift + head + ear * 0.5, 0.03, 0.04, ear, tone * 0.7),
        _ball(-length - 0.06, 0, 0.06, 0.10, 0.03, 0.03, tone * 0.7, 35.0),
    ]
    for x in (length * 0.6, -length * 0.6):
        for y in (girth * 0.6, -girth * 0.6):
            parts.append(_box(x, y, -girth * 0.6 - leg * 0.8, 0.045, 0.04, leg, tone * 0.8))
    return ObjectModel(0, tuple(parts))


def _boat(k: int) -> ObjectModel:
    length = (0.42, 0.46, 0.38, 0.44, 0.36, 0.46, 0.40, 0.42)[k]
    beam = (0.13, 0.10, 0.16, 0.12, 0.15, 0.14, 0.11, 0.17)[k]
    depth = (0.09, 0.07, 0.11, 0.08, 0.12, 0.10, 0.06, 0.09)[k]
    tone = (0.5, 0.8, 0.6, 0.9, 0.45, 0.7, 0.95, 0.55)[k]
    sail = (0.0, 0.40, 0.0, 0.34, 0.0, 0.0, 0.30, 0.0)[k]
    cabin = (0.16, 0.0, 0.12, 0.08, 0.10, 0.24, 0.0, 0.20)[k]
    parts = [
        _box(-0.05, 0, -0.15, length * 0.7, beam, depth, tone),
        _ball(length * 0.6, 0, -0.15 + depth * 0.3, length * 0.45, beam * 0.95, depth * 0.7, tone * 0.85),
        _box(-length * 0.72, 0, -0.12, 0.05, beam * 0.9, depth * 1.3, tone * 0.7),
    ]
    if cabin:
        parts.append(_box(-0.08, 0, -0.15 + depth + 0.08, cabin, beam * 0.7, 0.09, 0.95))
        parts.append(_box(-0.02, 0, -0.15 + depth + 0.20, cabin * 0.5, beam * 0.5, 0.05, 0.6))
    if k in (2, 5, 7):
        parts.append(_ball(-0.16, 0, 0.22, 0.05, 0.05, 0.13, 0.35))
    if sail:
        parts.append(_box(0.02, 0, 0.12, 0.02, 0.02, sail * 0.85, 0.4))
        parts.append(_box(-0.12, 0, 0.14, 0.12, 0.012, sail * 0.6, 1.0, 12.0))
        parts.append(_ball(0.12, 0.0, 0.06, 0.09, 0.012, sail * 0.5, 0.8, -14.0))
    return ObjectModel(1, tuple(parts))


def _car(k: int) -> ObjectModel:
    length = (0.42, 0.38, 0.46, 0.44, 0.40, 0.46, 0.36, 0.44)[k]
    width = (0.19, 0.18, 0.20, 0.21, 0.19, 0.20, 0.20, 0.18)[k]
    height = (0.09, 0.10, 0.08, 0.12, 0.10, 0.16, 0.12, 0.07)[k]
    roof = (0.20, 0.22, 0.18, 0.12, 0.28, 0.0, 0.24, 0.14)[k]
    roof_at = (-0.06, -0.04, -0.10, 0.16, -0.08, 0.0, -0.02, -0.08)[k]
    tone = (0.60, 0.90, 0.45, 0.75, 0.55, 0.85, 0.70, 1.0)[k]
    parts = [_box(0, 0, -0.05, length, width, height, tone)]
    if roof:
        parts.append(_box(roof_at, 0, -0.05 + height + 0.07, roof, width * 0.85, 0.08, tone * 0.55))
        parts.append(_box(roof_at, 0, -0.05 + height + 0.15, roof * 0.9, width * 0.8, 0.015, tone))
    else:
        parts.append(_box(-0.02, 0, -0.05 + height + 0.10, length * 0.92, width * 0.95, 0.11, tone * 0.9))
        parts.append(_box(0.02, 0, -0.05 + height + 0.12, length * 0.93, width * 0.97, 0.04, 0.3))
    if k == 3:
        parts.append(_box(-0.22, 0, 0.14, 0.2, width * 0.9, 0.07, 0.95))
    parts.append(_box(length, 0, -0.08, 0.02, width * 0.7, 0.03, 0.3))
    for side in (1, -1):
        parts.append(_ball(length * 0.97, side * width * 0.7, -0.02, 0.03, 0.04, 0.04, 1.0))
        for x in (length * 0.58, -length * 0.58):
            parts.append(_ball(x, side * width, -0.06 - height, 0.10, 0.045, 0.10, 0.28))
    return ObjectModel(2, tuple(parts))


def _chair(k: int) -> ObjectModel:
    width = (0.20, 0.22, 0.18, 0.26, 0.20, 0.24, 0.17, 0.22)[k]
    back = (0.24, 0.18, 0.30, 0.16, 0.26, 0.20, 0.32, 0.22)[k]
    leg = (0.16, 0.18, 0.15, 0.10, 0.20, 0.14, 0.18, 0.12)[k]
    thick = (0.03, 0.04, 0.03, 0.08, 0.025, 0.06, 0.03, 0.05)[k]
    tone = (0.65, 0.85, 0.5, 0.75, 0.95, 0.55, 0.8, 0.6)[k]
    lean = (0, -6, -4, -8, -2, -10, 0, -5)[k]
    parts = [
        _box(0, 0, -0.06, 0.19, width, thick, tone),
        _box(-0.18, 0, back - 0.04, 0.025 + thick * 0.3, width, back, tone * 0.8, float(lean)),
    ]
    if k == 5:
        parts.append(_box(0, 0, -0.08 - leg, 0.04, 0.04, leg, 0.4))
        parts.append(_ball(0, 0, -0.10 - 2 * leg, 0.18, 0.18, 0.03, 0.4))
    else:
        for x in (0.15, -0.15):
            for y in (width * 0.85, -width * 0.85):
                parts.append(_box(x, y, -0.07 - leg, 0.028, 0.028, leg, tone * 0.6))
    if k in (1, 3, 7):
        for side in (1, -1):
            parts.append(_box(0, side * width, 0.08, 0.16, 0.03, 0.03 + thick * 0.6, tone * 0.7))
    return ObjectModel(3, tuple(parts))


def _face(k: int) -> ObjectModel:
    width = (0.26, 0.24, 0.30, 0.27, 0.23, 0.28, 0.25, 0.29)[k]
    height = (0.38, 0.40, 0.36, 0.34, 0.42, 0.39, 0.36, 0.41)[k]
    tone = (0.85, 0.65, 0.95, 0.75, 0.9, 0.55, 0.8, 0.7)[k]
    hair = (0.3, 0.9, 0.4, 0.3, 0.6, 0.28, 0.95, 0.35)[k]
    nose = (0.06, 0.08, 0.05, 0.07, 0.09, 0.06, 0.05, 0.08)[k]
    parts = [
        _ball(0, 0, 0, 0.29, width, height, tone),
        _ball(-0.09, 0, 0.12, 0.28, width * 1.07, height * 0.86, hair),
        _ball(0.29, 0, -0.03, nose, 0.045, 0.09, tone * 0.9),
        _ball(0.22, 0, -0.2, 0.06, 0.11, 0.028, 0.28),
    ]
    for side in (1, -1):
        parts.append(_ball(0.245, side * width * 0.42, 0.07, 0.045, 0.06, 0.04, 0.25))
        parts.append(_ball(0.0, side * width, -0.02, 0.06, 0.04, 0.09, tone * 0.8))
    if k in (2, 5):
        parts.append(_ball(0.12, 0, -0.29, 0.17, width * 0.62, 0.12, hair))
    if k in (3, 7):
        parts.append(_box(0.02, 0, 0.28, 0.27, width * 1.15, 0.035, 0.5))
        parts.append(_ball(-0.02, 0, 0.34, 0.22, width * 0.9, 0.14, 0.5))
    return ObjectModel(4, tuple(parts))


def _fruit(k: int) -> ObjectModel:
    stem = _box(0, 0, 0.38, 0.025, 0.025, 0.08, 0.35)
    leaf = _ball(0.02, 0.13, 0.40, 0.06, 0.13, 0.03, 0.5)
    if k == 0:  # apple
        return ObjectModel(5, (_ball(0, 0, 0, 0.33, 0.33, 0.30, 0.75), stem, leaf))
    if k == 1:  # pear
        return ObjectModel(5, (_ball(0, 0, -0.10, 0.27, 0.27, 0.26, 0.9), _ball(0, 0, 0.18, 0.16, 0.16, 0.20, 0.9), stem, leaf))
    if k == 2:  # banana
        arc = [
            _ball(0.06 * math.cos(2.2 * a), 0.42 * a, 0.34 * a * a - 0.12, 0.09, 0.16, 0.09, 1.0)
            for a in (-0.75, -0.3, 0.3, 0.75)
        ]
        return ObjectModel(5, (*arc, _box(0, 0.42, 0.18, 0.03, 0.05, 0.03, 0.35)))
    if k == 3:  # strawberry
        leaves = (_box(0, 0, 0.24, 0.16, 0.05, 0.02, 0.4), _box(0, 0.05, 0.25, 0.05, 0.18, 0.02, 0.4))
        return ObjectModel(5, (_ball(0, 0, 0.06, 0.25, 0.25, 0.18, 0.6), _ball(0, 0, -0.08, 0.17, 0.17, 0.26, 0.6), *leaves))
    if k == 4:  # melon: a plain body of revolution
        return ObjectModel(5, (_ball(0, 0, 0, 0.30, 0.30, 0.42, 0.5),), "continuous")
    if k == 5:  # cherries
        return ObjectModel(
            5,
            (
                _ball(0, -0.18, -0.16, 0.17, 0.17, 0.17, 0.55),
                _ball(0, 0.20, -0.08, 0.16, 0.16, 0.16, 0.8),
                _box(0, -0.08, 0.16, 0.02, 0.02, 0.20, 0.4),
                _box(0, 0.10, 0.18, 0.02, 0.02, 0.18, 0.4),
                _ball(0.02, 0.0, 0.38, 0.06, 0.16, 0.04, 0.6),
            ),
        )
    if k == 6:  # pineapple
        crown = [
            _box(0.07 * math.cos(a), 0.07 * math.sin(a), 0.34, 0.03, 0.05, 0.13, 0.45, 20 * math.cos(a)) for a in (0.3, 2.4, 4.4)
        ]
        return ObjectModel(5, (_ball(0, 0, -0.10, 0.21, 0.21, 0.32, 0.8), *crown))
    return ObjectModel(5, (_ball(0, 0, 0, 0.22, 0.34, 0.24, 1.0), _ball(0, 0.32, 0, 0.06, 0.09, 0.06, 0.85), leaf))  # lemon


def _plane(k: int) -> ObjectModel:
    length = (0.46, 0.44, 0.48, 0.40, 0.46, 0.42, 0.48, 0.44)[k]
    girth = (0.07, 0.09, 0.06, 0.10, 0.08, 0.11, 0.07, 0.08)[k]
    span = (0.44, 0.40, 0.30, 0.46, 0.48, 0.38, 0.34, 0.46)[k]
    chord = (0.08, 0.10, 0.16, 0.09, 0.07, 0.12, 0.13, 0.06)[k]
    wing_z = (0.0, -0.03, -0.02, 0.08, 0.0, -0.05, 0.03, 0.09)[k]
    tone = (0.9, 0.7, 0.5, 0.85, 1.0, 0.6, 0.45, 0.8)[k]
    parts = [
        _ball(0, 0, 0, length, girth, girth, tone),
        _box(0.03, 0, wing_z, chord, span, 0.018, tone * 0.75),
        _box(-length * 0.85, 0, 0.12, 0.07, 0.018, 0.12, tone * 0.6),
        _box(-length * 0.85, 0, 0.03, 0.055, span * 0.4, 0.015, tone * 0.75),
        _ball(length * 0.6, 0, girth * 0.6, 0.09, girth * 0.6, girth * 0.55, 0.3),
    ]
    if k in (0, 1, 4, 5):
        for side in (1, -1):
            parts.append(_ball(0.09, side * span * 0.45, wing_z - 0.05, 0.11, 0.045, 0.045, 0.45))
    if k in (3, 7):
        parts.append(_box(length * 1.0, 0, 0, 0.012, 0.03, 0.17, 0.35))
        if k == 3:
            parts.append(_box(0.03, 0, -0.12, 0.07, span * 0.9, 0.015, tone * 0.75))
    return ObjectModel(6, tuple(parts))


def _table(k: int) -> ObjectModel:
    tone = (0.7, 0.9, 0.55, 0.8, 0.6, 1.0, 0.5, 0.75)[k]
    length = (0.30, 0.42, 0.34, 0.32, 0.40, 0.36, 0.28, 0.44)[k]
    width = (0.30, 0.24, 0.34, 0.32, 0.20, 0.36, 0.28, 0.26)[k]
    leg = (0.18, 0.16, 0.12, 0.20, 0.14, 0.18, 0.22, 0.10)[k]
    if k == 5:  # round, on a pedestal
        base = (_ball(0, 0, -0.04, 0.06, 0.06, 0.26, 0.5), _ball(0, 0, -0.28, 0.22, 0.22, 0.035, 0.5))
        return ObjectModel(7, (_ball(0, 0, 0.2, 0.40, 0.40, 0.045, tone), *base), "continuous")
    parts = [_box(0, 0, 0.16, width, length, 0.03, tone)]
    if k == 2:
        parts.append(_box(0, 0, -0.04, 0.06, 0.06, 0.18, tone * 0.6))
        parts.append(_box(0, 0, -0.24, 0.2, 0.2, 0.03, tone * 0.6))
        return ObjectModel(7, tuple(parts), "quarter_turn")
    for x in (width * 0.85, -width * 0.85):
        for y in (length * 0.85, -length * 0.85):
            parts.append(_box(x, y, 0.14 - leg, 0.035, 0.035, leg, tone * 0.6))
    if k in (1, 4):
        parts.append(_box(width * 0.7, 0, 0.07, 0.03, length * 0.8, 0.06, tone * 0.45))
        return ObjectModel(7, tuple(parts))
    if k == 7:
        parts.append(_box(0, 0, -0.02, width * 0.8, length * 0.8, 0.02, tone * 0.8))
    return ObjectModel(7, tuple(parts), "quarter_turn" if width == length else "half_turn")


_BUILDERS: tuple[Callable[[int], ObjectModel], ...] = (_animal, _boat, _car, _chair, _face, _fruit, _plane, _table)


@lru_cache(maxsize=1)
def object_models() -> tuple[ObjectModel, ...]:
    """All 64 objects; object_id = 8 * category_id + index within the category."""
    return tuple(build(k) for build in _BUILDERS for k in range(OBJECTS_PER_CATEGORY))
