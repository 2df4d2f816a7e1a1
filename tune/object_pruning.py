"""Deleting from an object store the stages that no study of a storage folder needs any more; see tune.pruning.

What other storage folders need of the same objects is not known here. So nothing is deleted while these objects, or the database,
have a study that this storage folder has not. A stage is gone with its manifest, which is deleted first; files that were left
without one are deleted by the next prune.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from migvis.errors import InputError
from tune.database_leases import leases_of
from tune.leases import PATIENCE, holder
from tune.manifest import NAME, StageName, name_of
from tune.needs import needs_of
from tune.object_store import ObjectStore
from tune.object_trees import delete_tree
from tune.pruning import (
    Item,
    Pruned,
    Survey,
    check_nothing_is_built,
    check_nothing_runs,
    claim,
    with_inputs,
)
from tune.redact import redact
from tune.store_lock import alone
from tune.study_files import MARK, STUDIES
from tune.study_folder import read_study


@dataclass(frozen=True)
class Objects:
    """What an object store holds: bytes of each stage (or what was left of one) by name, and of all other trees by place."""

    stages: dict[StageName, int]
    others: dict[str, int]

    @classmethod
    def of(cls, store: ObjectStore) -> Objects:
        stages: dict[StageName, int] = {}
        others: dict[str, int] = {}
        with store.storage_errors():
            for name, size in store.objects.below(""):
                first, second, *rest = [*name.split("/"), ""]
                if rest and NAME.fullmatch(first) and NAME.fullmatch(second):
                    stages[first, second] = stages.get((first, second), 0) + size
                elif rest and first.startswith("."):
                    place = "/".join([first, second, rest[0]] if first == STUDIES else [first, second])
                    others[place] = others.get(place, 0) + size
        return cls(stages, others)


def survey_objects(store: ObjectStore, database: str, storage: Path, keep: Collection[str] = ()) -> Survey:
    """What can be deleted; changes nothing.

    Raises InputError as tune.pruning.survey does, and where there is a study that the storage folder has not.
    """
    from tune.optuna_database import studies_in

    needs = needs_of(storage, keep)
    for study in studies_in(database):
        if study not in {one.study for one in needs}:
            raise InputError(f"--database {redact(database)}: has the study {study}, and {storage} does not know what it needs")
    found, whole = Objects.of(store), set(store.stages())
    records = [read_study(storage, path.parent.name) for path in sorted(storage.glob("*/study.json"))]
    for place in found.others:
        if place.startswith(f"{STUDIES}/") and place.split("/")[1] not in {record.id for record in records}:
            its = "/".join(place.split("/")[:2])
            raise InputError(f"{store.uri}/{its}: of a study that {storage} has not; delete these objects if it is abandoned")
    building = {name: who for name, place in store.leases() if (who := holder(place)) is not None}
    needed = with_inputs(set(building).union(*(one.stages for one in needs)), store)
    kept = {f".data/{record.data_digest}" for record in records}
    kept |= {f"{STUDIES}/{record.id}/{MARK}" for record in records}
    unfinished = {record.id for record in records if not record.finished}
    kept |= {place for place in found.others if place.startswith(f"{STUDIES}/") and place.split("/")[1] in unfinished}
    kept |= {f".partial/{kind}-{key}" for kind, key in needed.union(building) if (kind, key) not in whole}
    left = [(name, Path("/".join(name)), size) for name, size in found.stages.items() if name not in whole.union(building)]
    left += [
        (name_of(Path(place).name) or ("", ""), Path(place), size) for place, size in found.others.items() if place not in kept
    ]
    items = [_item(name, found.stages[name], store) for name in sorted(whole)]
    return Survey(
        needs,
        kept=[item for item in items if item.name in needed],
        unneeded=[item for item in items if item.name not in needed],
        leftovers=[(name, place) for name, place, _ in left],
        leases=[],
        trash=[],
        building=building,
        left_size=sum(size for _, _, size in left),
    )


def _item(name: StageName, size: int, store: ObjectStore) -> Item:
    manifest = store.peek(*name)
    return Item(name, size, 0.0 if manifest is None else manifest.seconds)


def prune_objects(
    store: ObjectStore,
    database: str,
    storage: Path,
    keep: Collection[str] = (),
    show: Callable[[Survey], None] = lambda found: None,
    patience: float = PATIENCE,
) -> Pruned:
    """Deletes what `survey_objects` finds, which `show` is told before.

    Raises InputError, with nothing deleted, while the store is in use, and where `survey_objects` does.
    """
    result = Pruned()
    with alone(store):
        check_nothing_runs(storage, patience)
        check_nothing_is_built(store, patience)
        found = survey_objects(store, database, storage, keep)
        show(found)
        with store.storage_errors():
            for item in found.unneeded:
                with claim(store, item.name) as claimed:
                    if claimed:
                        delete_tree(store.objects, "/".join(item.name))
                        result.stages.append(item)
                    else:
                        result.busy.append(item.name)
            for _, place in found.leftovers:
                delete_tree(store.objects, place.as_posix())
            for lease in leases_of(database, store.uri):
                if holder(lease) is None:
                    lease.remove()
    return result
