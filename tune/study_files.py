"""The files of a study on hosts that share no folder: its data set, and what its trials leave, through the object store.

    <uri>/.data/<digest>/                the data set
    <uri>/.studies/<id>/name             of a study that uses these objects, for tune.object_pruning
    <uri>/.studies/<id>/trial-<n>/       a trial's folder and its uses, as of its end (tune.object_trees)

Where stages are in a folder, all hosts see the study's folder as well, and there is nothing to do.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from migvis.errors import InputError
from tune.context import StudyContext
from tune.manifest import MANIFEST, Content, DamagedStage, check_file, file_digest
from tune.object_store import ObjectStore
from tune.object_trees import fetch_files, manifest_of, put_files, put_manifest
from tune.trial_result import TrialResult

logger = logging.getLogger("tune.pipeline.files")

STUDIES, MARK = ".studies", "name"
_DATA_FILE = "set.h5"


def _objects_of(context: StudyContext) -> ObjectStore | None:
    store = context.store()
    return store if isinstance(store, ObjectStore) else None


def share_data(context: StudyContext) -> StudyContext:
    """For the driver: uploads the study's name and, once, its data set; the context with that in the cache, as on all hosts.

    Raises InputError where the object store refuses.
    """
    store = _objects_of(context)
    if store is None:
        return context
    place = f".data/{context.data_digest}"
    with store.storage_errors():
        store.objects.write(f"{STUDIES}/{context.study_id}/{MARK}", context.study.encode())
        if _readable(store, place) is None:
            source = context.data_path
            content = {"files": {_DATA_FILE: {"sha256": file_digest(source), "size": source.stat().st_size}}}
            with source.open("rb") as file:
                store.objects.upload(f"{place}/{content['files'][_DATA_FILE]['sha256']}", file)
            put_manifest(store.objects, place, content)
    return replace(context, data_path=_bring_data(store, context))


def on_this_host(context: StudyContext) -> StudyContext:
    """For a process on any host: the context as it is here, with the data set fetched and folders of its own.

    Raises InputError where the object store refuses, or its data set is damaged.
    """
    store = _objects_of(context)
    if store is None:
        return context
    folder = store.local.root / STUDIES / context.study_id
    shown = context.folder / "progress"
    return replace(
        context,
        folder=folder,
        data_path=_bring_data(store, context),
        progress=shown if shown.is_dir() else folder / "progress",  # on the driver's own host it is seen at once
    )


def _bring_data(store: ObjectStore, context: StudyContext) -> Path:
    place, folder = f".data/{context.data_digest}", store.local.root / ".data" / context.data_digest
    with store.storage_errors():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".lock"), "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # of this host's processes one fetches it
            if not folder.is_dir():
                found = _readable(store, place)
                if found is None:
                    raise InputError(f"{store.uri}/{place}: the data set is not there, or damaged; start the driver again")
                aside = folder.with_suffix(".part")
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                try:
                    fetch_files(store.objects, place, found, aside)
                except DamagedStage as damage:
                    store.objects.delete(f"{place}/{MANIFEST}")
                    raise InputError(f"{damage}; start the driver again") from None
                aside.rename(folder)
    return folder / _DATA_FILE


def _readable(store: ObjectStore, place: str) -> Content | None:
    """A manifest's content; none where there is none, or a damaged one."""
    try:
        found = manifest_of(store.objects, place)
    except DamagedStage as damage:
        logger.warning("%s", damage)
        return None
    return None if found is None else found[0]


def _trial_place(context: StudyContext, number: int) -> str:
    return f"{STUDIES}/{context.study_id}/trial-{number:03d}"


def send_trial(context: StudyContext, here: StudyContext, number: int) -> None:
    """Uploads what a trial left on this host. Raises InputError where the object store refuses."""
    store = _objects_of(context)
    if store is None:
        return
    paths = [*here.trial_folder(number).rglob("*"), here.folder / "uses" / f"trial-{number:03d}.json"]
    files = {
        path.relative_to(here.folder).as_posix(): {"sha256": file_digest(path), "size": path.stat().st_size}
        for path in paths
        if path.is_file()
    }
    place = _trial_place(context, number)
    with store.storage_errors():
        put_files(store.objects, place, here.folder, {"files": files})
        put_manifest(store.objects, place, {"files": files})


def fetch_trial(context: StudyContext, number: int) -> None:
    """For the driver: brings what a trial left into the study's folder; nothing if it left nothing, or all of it is here.

    Raises InputError where the object store refuses.
    """
    store = _objects_of(context)
    if store is None:
        return
    place = _trial_place(context, number)
    with store.storage_errors():
        content = _readable(store, place)
        if content is None or _is_whole(context.folder, content):
            return
        aside = context.folder / f".fetching-{number:03d}"
        shutil.rmtree(aside, ignore_errors=True)  # of a driver that was killed
        try:
            fetch_files(store.objects, place, content, aside)
            _move_into_place(aside, content, context.folder, last=f"trials/{number:03d}/result.json")
        except DamagedStage as damage:
            logger.warning("%s; trial %d has no files", damage, number)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _is_whole(folder: Path, content: Content) -> bool:
    """Whether a folder has the very files that `content` names: those of an earlier attempt are others."""
    try:
        for file, entry in content["files"].items():
            check_file(folder / file, entry, folder / file)
    except DamagedStage:
        return False
    return True


def _move_into_place(aside: Path, content: Content, folder: Path, last: str) -> None:
    """Renames the files into `folder`, the result as the `last`, so that it is never seen without the others."""
    for file in sorted(content["files"], key=lambda file: file == last):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (aside / file).replace(folder / file)


def as_the_driver_has_it(result: TrialResult, here: StudyContext, context: StudyContext) -> TrialResult:
    """The result with the paths that its files have once they were fetched."""

    def moved(files: Mapping[str, Path]) -> dict[str, Path]:
        return {
            name: context.folder / path.relative_to(here.folder) if path.is_relative_to(here.folder) else path
            for name, path in files.items()
        }

    return replace(result, images=moved(result.images), artifacts=moved(result.artifacts))
