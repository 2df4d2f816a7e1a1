"""A small algebra of configurations, in which a study is ten readable lines.

A case is a name and what it changes in a base configuration. Every function here gives a tuple of cases, and takes such
tuples: `product(sweep("vae.group_rank", (3, 6)), sweep("critic.infonce_batch", (32, 64)))` is four of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from migvis.errors import InputError
from tune.study_config import StudyConfig

Changes = Mapping[str, Any]
"""By "section.field"."""


@dataclass(frozen=True)
class Case:
    """A configuration by its difference from a base: its name in tables, and the values that it changes."""

    name: str
    changes: Changes = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.name)


Cases = tuple[Case, ...]
FULL = Case("full")
"""The base itself: the whole method."""


def case(name: str, changes: Changes) -> Cases:
    """A single case."""
    return (Case(name, dict(changes)),)


def sweep(key: str, values: Sequence[Any], label: str | None = None) -> Cases:
    """One case per value of the field "section.field", named `label` = value (default: the field's name)."""
    name = label or key.partition(".")[2]
    return tuple(Case(f"{name} = {_text(value)}", {key: value}) for value in values)


def product(*factors: Cases) -> Cases:
    """Every combination of a case of each factor, the last factor fastest. Raises InputError where two change one field."""
    combined: Cases = (Case(""),)
    for factor in factors:
        combined = tuple(_joined(left, right) for left in combined for right in factor)
    return combined


def zipped(*factors: Cases) -> Cases:
    """The first cases of all factors together, then the second ones, … Raises InputError for factors of unequal length."""
    if len({len(factor) for factor in factors}) > 1:
        raise InputError(f"zipped: factors of unequal length, {', '.join(str(len(factor)) for factor in factors)} cases")
    return tuple(product(*((one,) for one in row))[0] for row in zip(*factors, strict=True))


def leave_one_out(parts: Mapping[str, Changes]) -> Cases:
    """The full method, then without each of its parts: `parts` says what taking one out changes."""
    return (FULL, *(Case(f"without {name}", dict(changes)) for name, changes in parts.items()))


def one_at_a_time(fields: Mapping[str, Sequence[Any]]) -> Cases:
    """The full method, then each value of each field with all the others left as they are."""
    return (FULL, *(one for key, values in fields.items() for one in sweep(key, values)))


def configured(base: StudyConfig, one: Case) -> StudyConfig:
    """The base with a case's changes. Raises InputError, one line, for an unknown field or a value that is refused."""
    sections = base.model_dump()
    for key, value in one.changes.items():
        section, _, name = key.partition(".")
        if name not in sections.get(section, {}) or section in ("search", "data"):
            raise InputError(f"case {one.name!r}: no field {key!r} of the method; see migvis/config.py")
        sections[section][name] = value
    try:
        return StudyConfig.model_validate(sections)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"case {one.name!r}: {place + ': ' if place else ''}{message[:1].lower() + message[1:]}") from None


def check_distinct(cases: Cases) -> None:
    """Raises InputError where two cases have one name."""
    names = [one.name for one in cases]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"case {name!r}: there are {names.count(name)} cases of that name")


def _joined(left: Case, right: Case) -> Case:
    both = sorted(set(left.changes) & set(right.changes))
    if both:
        raise InputError(f"product: {both[0]} is changed by both {left.name!r} and {right.name!r}")
    return Case(", ".join(name for name in (left.name, right.name) if name), {**left.changes, **right.changes})


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
