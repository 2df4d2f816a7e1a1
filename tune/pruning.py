"""Deleting the stages that no study needs any more, and what killed processes left behind.

What each study needs is told by tune.needs. What is guaranteed: nothing is deleted while a driver, a trial's process or another
prune uses the store (tune.store_lock), nor while any stage is being built (tune.leases), by whomever. Each stage is renamed out
of the store, with its lease held (unless the disk is too full to take one), and deleted afterwards; so it is whole or gone,
wherever a prune is killed, and the next one deletes what is left. Who begins to read the store meanwhile, on a host that the lock
does not reach, may find that a stage has vanished under it; that fails its trial, which is tried again, and harms no stage.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from migvis.errors import InputError
from tune.folder_leases import FolderLease
from tune.leases import PATIENCE, LeasePlace, acquire, holder
from tune.manifest import StageName
from tune.needs import StudyNeeds, needs_of, study_needs
from tune.store import StageStore
from tune.store_base import Store
from tune.store_lock import StoreInUse, alone
from tune.store_users import users
from tune.study_lock import running

_TRASH = ".trash-"
_PLACES = (".partial", ".writing", ".damaged")


@dataclass(frozen=True)
class Item:
    """A stage of the store: its bytes, and the seconds that it would cost to build it again (0: not known)."""

    name: StageName
    size: int
    seconds: float


@dataclass(frozen=True)
class Survey:
    """What a store holds: `kept` and `unneeded` stages, and what killed processes left.

    leftovers: checkpoints, unfinished and damaged stages, with the stage that they belong to. leases: those that nobody
    holds. trash: what earlier prunes had no time to delete. building: stages that are being built, and who does it.
    left_size: bytes of leftovers and trash.
    """

    needs: list[StudyNeeds]
    kept: list[Item]
    unneeded: list[Item]
    leftovers: list[tuple[StageName, Path]]
    leases: list[Path]
    trash: list[Path]
    building: dict[StageName, str]
    left_size: int = 0


@dataclass
class Pruned:
    """What was really deleted. busy: stages that somebody began to build meanwhile, which stay.

    remains: what the file system did not let go.
    """

    stages: list[Item] = field(default_factory=list)
    busy: list[StageName] = field(default_factory=list)
    remains: list[Path] = field(default_factory=list)


def with_inputs(names: Collection[StageName], store: Store) -> set[StageName]:
    """`names` and all stages of the store that they were made from."""
    by_key = {key: (kind, key) for kind, key in store.stages()}
    found: set[StageName] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            manifest = store.peek(*name)
            inputs = manifest.inputs.values() if manifest is not None else ()
            waiting += [by_key[key] for key in inputs if key in by_key]
    return found


def size_of(path: Path) -> int:
    """Bytes of all files in a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            try:
                total += os.lstat(os.path.join(folder, file)).st_size
            except FileNotFoundError:
                continue
    return total


def _item(name: StageName, store: StageStore) -> Item:
    manifest = store.peek(*name)
    return Item(name, size_of(store.path(*name)), 0.0 if manifest is None else manifest.seconds)


def _store(storage: Path) -> StageStore:
    store = StageStore(storage / "stages")
    if not store.root.is_dir():
        raise InputError(f"--storage {storage}: holds no stages")
    return store


def survey(storage: Path, keep: Collection[str] = ()) -> Survey:
    """What can be deleted from the store of a storage folder; changes nothing. keep: studies that keep all that they used.

    Studies of other storages that use the store keep what they need, too.

    Raises InputError where there is no store or no such study, or where a study's records cannot be read.
    """
    store = _store(storage)
    needs = needs_of(storage, keep)
    needs += [replace(study_needs(folder), study=str(folder)) for folder in users(store.root)]
    leases = [(name, path, holder(FolderLease(path))) for name, path in store.entries(".leases")]
    building = {name: who for name, _, who in leases if who is not None}
    needed = with_inputs(set(building).union(*(one.stages for one in needs)), store)
    items = [_item(name, store) for name in store.stages()]
    awaited = {name for name in needed if not store.exists(*name)}  # their checkpoints are worth going on from
    left = [(place, name, path) for place in _PLACES for name, path in store.entries(place) if name not in building]
    leftovers = [(name, path) for place, name, path in left if place != ".partial" or name not in awaited]
    trash = sorted(store.root.glob(f"{_TRASH}*"))
    return Survey(
        needs,
        kept=[item for item in items if item.name in needed],
        unneeded=[item for item in items if item.name not in needed],
        leftovers=leftovers,
        leases=[path for _, path, who in leases if who is None],
        trash=trash,
        building=building,
        left_size=sum(map(size_of, [*(path for _, path in leftovers), *trash])),
    )


def prune(
    storage: Path,
    keep: Collection[str] = (),
    show: Callable[[Survey], None] = lambda found: None,
    patience: float = PATIENCE,
) -> Pruned:
    """Deletes what `survey` finds, which `show` is told before. patience: as check_nothing_is_built takes it.

    Raises InputError, with nothing deleted, while the store is in use, and where `survey` does; also where the file system
    refuses a rename, and then the next call deletes what was renamed until then.
    """
    store = _store(storage)
    try:
        with alone(store):
            for place in [storage, *{folder.parent for folder in users(store.root)}]:
                check_nothing_runs(place, patience)
            with store.storage_errors():
                check_nothing_is_built(store, patience)
            found = survey(storage, keep)
            show(found)
            with store.storage_errors():
                result, trash = _take_out(store, found)
    except StoreInUse:
        check_nothing_runs(storage, patience)
        raise
    for path in trash:  # in no study's reach any more, so nobody need wait for it
        shutil.rmtree(path, ignore_errors=True)
    result.remains += [path for path in trash if path.exists()]
    return result


def check_nothing_runs(storage: Path, patience: float) -> None:
    """Raises InputError while a driver runs a study, also on a host that the store's lock does not reach."""
    for name, who in running(storage, patience).items():
        raise InputError(f"--storage {storage}: study {name} is running: {who}")


def check_nothing_is_built(store: Store, patience: float) -> None:
    """Raises InputError while a stage is being built: which inputs it reads is not known here.

    A builder of which this host cannot know whether it lives is watched for longer than `patience` seconds.
    """

    def lives(place: LeasePlace) -> bool:
        end = time.monotonic() + 1.5 * patience
        lease = acquire(place, until=lambda: time.monotonic() > end, patience=patience)
        if lease is not None:
            lease.release()
        return lease is None

    held = [(name, place, who) for name, place in store.leases() if (who := holder(place)) is not None]
    if not held:
        return
    with ThreadPoolExecutor(len(held)) as pool:
        living = list(pool.map(lives, [place for _, place, _ in held]))
    for ((kind, key), _, who), lived in zip(held, living, strict=True):
        if lived:
            raise InputError(f"{store.name}: {kind} {key} is being built by {who}; nothing is deleted meanwhile")


def _take_out(store: StageStore, found: Survey) -> tuple[Pruned, list[Path]]:
    """Renames what is not needed, each thing at once; also returns what is to be deleted then."""
    result, trash = Pruned(), list(found.trash)
    unneeded = {item.name: item for item in found.unneeded}
    paths = {name: [store.path(*name)] for name in unneeded}
    for name, path in found.leftovers:
        paths.setdefault(name, []).append(path)
    for name, its in paths.items():
        with claim(store, name) as claimed:
            if not claimed:
                result.busy.append(name)
                continue
            for path in its:
                try:
                    moved = _move(path, store)
                except PermissionError:
                    result.remains.append(path)
                    continue
                trash += [] if moved is None else [moved]
                if moved is not None and path == store.path(*name):
                    result.stages.append(unneeded[name])
    with contextlib.suppress(PermissionError):
        folders = {store.lease_folder(*name) for name in paths}.union(found.leases)
        free = [path for path in sorted(folders) if holder(FolderLease(path)) is None]
        trash += [moved for path in free if (moved := _move(path, store)) is not None]
    return result, trash


@contextlib.contextmanager
def claim(store: Store, name: StageName) -> Iterator[bool]:
    """Holds a stage's lease; false if somebody else does."""
    place = store.lease(*name)
    if holder(place) is not None:
        yield False
        return
    try:
        lease = acquire(place, until=lambda: True)
    except OSError as error:
        if not store.is_full(error):
            raise
        yield True  # a lease takes a file, and to free a full disk is what this is for
        return
    if lease is None:
        yield False
        return
    with lease:
        yield True


def _move(path: Path, store: StageStore) -> Path | None:
    """Out of the store by one rename, into a folder that is there already: on a full disk none can be made."""
    aside = store.root / f"{_TRASH}{uuid.uuid4().hex}"
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return None
    return aside
