"""Which stages of a store studies and ablations still need.

It is read from their own records, not worked out anew: keys change with the source, and the stages of an older study are no
less its own. A finished study keeps what its selected trial, the stages shared by all its trials and its final stage used,
with all inputs of these: with them it can be re-synthesized, exported and given more trials. Any other study keeps whatever it
used or was about to use, its checkpoints included, because it may be resumed. An ablation keeps all that its cases are read
from: it is resumed, given more seeds and drawn anew by the same command.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from migvis.errors import InputError
from tune.manifest import StageName
from tune.study_folder import ABLATIONS, write_json

_Value = TypeVar("_Value")
_NEEDED = "needed.json"
"""In an ablation's folder: the stages that its cases are read from."""


@dataclass(frozen=True)
class StudyNeeds:
    """The stages that a study or an ablation keeps, and why; inputs of theirs may not be among them."""

    study: str
    why: str
    stages: frozenset[StageName]


def _read(path: Path, take: Callable[[Any], _Value]) -> _Value:
    """`take` of a study's record. Raises InputError for one that is missing or damaged: what it needs is never guessed."""
    try:
        return take(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a study's record: {type(error).__name__}: {error}") from None


def _names(stages: Iterable[Any]) -> set[StageName]:
    return {(stage["kind"], stage["key"]) for stage in stages}


def _used(path: Path) -> set[StageName]:
    """What a study's prepare, trial or final stage used, and what it was about to use (tune.runner.Runner)."""
    return _read(path, lambda content: _names(content["uses"]) | {(kind, key) for kind, key in content.get("wanted", [])})


def study_needs(folder: Path, *, whole: bool = False) -> StudyNeeds:
    """What the study in `folder` keeps; whole: all that it has used, as if it were unfinished.

    Raises InputError where its records cannot be read.
    """
    summary = folder / "summary.json"
    why = "--keep" if whole else "unfinished"
    finished = _read(folder / "study.json", lambda content: bool(content["finished"]))
    if finished and not whole:
        trial = _read(summary, lambda content: int(content["selected"]["trial"]))
        files = [folder / "uses" / f"{name}.json" for name in ("prepare", f"trial-{trial:03d}", "final")]
        if all(path.is_file() for path in files):
            needed = frozenset[StageName]().union(*map(_used, files))
            return StudyNeeds(folder.name, f"finished; selected trial {trial}", needed)
        why = "finished; its selected trial left no record of its own"
    everything = set[StageName]().union(*map(_used, sorted((folder / "uses").glob("*.json"))))
    if finished or summary.exists():
        everything |= _read(summary, lambda content: _names(content["stages"]))
    return StudyNeeds(folder.name, f"{why}: keeps all that it used", frozenset(everything))


def needs_of(storage: Path, keep: Collection[str]) -> list[StudyNeeds]:
    """What each study and ablation of a storage folder keeps.

    Raises InputError where `keep` names no study, or where records cannot be read.
    """
    folders = [path.parent for path in sorted(storage.glob("*/study.json"))]
    for name in keep:
        if name not in {folder.name for folder in folders}:
            raise InputError(f"--keep {name}: there is no such study in {storage}")
    ablations = sorted(storage.glob(f"{ABLATIONS}/*/{_NEEDED}"))
    return [study_needs(folder, whole=folder.name in keep) for folder in folders] + [_ablation_needs(path) for path in ablations]


def write_ablation_needs(folder: Path, stages: Collection[StageName]) -> None:
    """Notes, before any of them is built, the stages that the ablation in `folder` is read from; inputs may be left out."""
    write_json(folder / _NEEDED, sorted(stages))


def _ablation_needs(path: Path) -> StudyNeeds:
    stages = _read(path, lambda content: frozenset((str(kind), str(key)) for kind, key in content))
    return StudyNeeds(f"{ABLATIONS}/{path.parent.name}", "keeps all that its cases are read from", stages)
