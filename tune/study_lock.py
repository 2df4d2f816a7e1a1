"""One driver for each study, on whichever host: a lease in the study's folder, and one in its database if that is another place.

Of two drivers on one study each would undo the other's work. A driver that died is followed: on its own host at once, from
another one when its lease has stood still for some time (tune.leases). So a driver that stood still itself, such as one that was
suspended, may find that it has lost the study; it then writes nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from migvis.errors import InputError
from tune.database import DatabaseAway
from tune.database_leases import DatabaseLease
from tune.folder_leases import FolderLease
from tune.leases import PATIENCE, Lease, LeasePlace, acquire_from_the_dead, holder, living_holder
from tune.study_folder import ABLATIONS, StudyFailed

_SCOPE = "studies"
_FOLDER = "driver"


class StudyTakenOver(StudyFailed):
    """Another driver took the study over while this one stood still; this one may write nothing more."""


def _take(place: LeasePlace, study: str, patience: float) -> Lease:
    taken = acquire_from_the_dead(place, patience=patience)
    if isinstance(taken, str):
        raise InputError(f"--study {study}: {taken} is running it")
    return taken


@contextmanager
def _held(lease: Lease, place: LeasePlace, study: str) -> Iterator[Callable[[], None]]:
    def check() -> None:
        if lease.lost:
            raise StudyTakenOver(f"study {study}: taken over by {holder(place) or 'another driver'}; this one has stopped")

    with lease:
        yield check


@contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[Callable[[], None]]:
    """Holds the study in `folder` for this driver, as all hosts see that share it.

    Gives what is called before each write to the study: it raises StudyTakenOver once another driver has it. Raises
    InputError while another driver runs it, or where the folder cannot be written.
    """
    place = FolderLease(folder / _FOLDER)
    try:
        lease = _take(place, folder.name, patience)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
    with _held(lease, place, folder.name) as check:
        yield check


@contextmanager
def held_in_database(url: str, study: str, patience: float = PATIENCE) -> Iterator[Callable[[], None]]:
    """Holds a study of a database, which may be that of several folders; as `locked` does.

    Raises InputError while another driver runs it, or where the database refuses.
    """
    place = DatabaseLease(url, _SCOPE, study)
    try:
        lease = _take(place, study, patience)
    except DatabaseAway as error:
        raise InputError(f"--database: {error}") from None
    with _held(lease, place, study) as check:
        yield check


def driver_process(folder: Path) -> int:
    """The process id, on its own host, of the driver that holds the study in `folder`. Raises InputError where none does."""
    try:
        driver = FolderLease(folder / _FOLDER).look().holder
    except FileNotFoundError:
        driver = None
    if driver is None:
        raise InputError(f"{folder}: no driver runs this study")
    return driver.pid


def running(storage: Path, patience: float = PATIENCE) -> dict[str, str]:
    """The studies and ablations of a storage folder that a driver of any host runs now, and who that is, for people to read.

    A driver on another host is watched until its lease moves, or has stood still for `patience` seconds.
    """
    folders = [*sorted(storage.glob(f"*/{_FOLDER}")), *sorted(storage.glob(f"{ABLATIONS}/*/{_FOLDER}"))]
    held = [place for place in map(FolderLease, folders) if holder(place) is not None]
    if not held:
        return {}
    with ThreadPoolExecutor(len(held)) as pool:
        living = list(pool.map(lambda place: living_holder(place, patience=patience), held))
    names = [place.folder.parent.relative_to(storage).as_posix() for place in held]
    return {name: who for name, who in zip(names, living, strict=True) if who is not None}
