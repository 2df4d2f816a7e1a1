"""Which studies use a folder of stages that is not that of their own storage: noted in it, so that pruning spares their stages.

    <stages>/.studies/<id>     the folder of such a study
"""

from __future__ import annotations

from pathlib import Path

from migvis.errors import InputError

_MARKS = ".studies"


def mark_user(stages: Path, folder: Path, study_id: str) -> None:
    """Notes in the folder `stages` that the study in `folder` uses them, unless they are its own storage's."""
    if stages != folder.parent / "stages":
        (stages / _MARKS).mkdir(parents=True, exist_ok=True)
        (stages / _MARKS / study_id).write_text(f"{folder}\n", encoding="utf-8")


def users(stages: Path) -> list[Path]:
    """The folders of the studies of other storages that use the stages.

    Raises InputError for one that is not there: it may be on a disk that is away, and what it needs is never guessed.
    """
    found = []
    for mark in sorted((stages / _MARKS).glob("*")):
        folder = Path(mark.read_text(encoding="utf-8").strip())
        if not (folder / "study.json").is_file():
            raise InputError(f"{mark}: study {folder} uses these stages and is not there; if it is gone, delete this file")
        found.append(folder)
    return found
