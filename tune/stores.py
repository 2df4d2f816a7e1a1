"""Which store a study uses, from the plain words that travel to its processes."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from migvis.errors import InputError
from tune.database import check_database, sqlite_url, without_password
from tune.objects import Objects, ObjectsAway, open_objects
from tune.store import StageStore
from tune.store_base import Store


def is_object_store(root: Path | str) -> bool:
    """Whether stages are on an object store: `root` is a URI, and no folder."""
    return "://" in str(root)


@dataclass(frozen=True)
class Places:
    """Where stages are kept, a folder or the URI of an object store, and the database of trials and leases.

    database: its URL without a password; None: each study's own.
    """

    stages: Path | str
    database: str | None


def default_places(storage: Path) -> Places:
    """The places of a storage folder, of which nothing else was said."""
    return Places(storage / "stages", None)


def places_of(storage: Path, stages: str | None, database: str | None, *, check: bool) -> Places:
    """What --stages and --database name (None: the default). check: asks whether both can be used, and writes to them.

    On an object store all studies of a storage folder share a database by default, since they share leases.
    Raises InputError, one line without credentials.
    """
    if database is not None:
        database = check_database(database) if check else without_password(database)
    if stages is None or not is_object_store(stages):
        root = default_places(storage).stages if stages is None else Path(stages).absolute()
        return Places(root, database)
    uri = stages.rstrip("/")
    objects = open_objects(uri)
    if check:
        check_objects(objects)
    return Places(uri, database or sqlite_url(storage / "studies.db"))


def check_objects(objects: Objects) -> None:
    """Raises InputError where an object cannot be written, read and deleted."""
    name, content = f".probe-{uuid.uuid4().hex}", b"migvis"
    try:
        objects.write(name, content)
        read = objects.read(name)
        objects.delete(name)
    except ObjectsAway as error:
        raise InputError(f"--stages {objects.uri}: cannot be used: {error}") from None
    if read != content:
        raise InputError(f"--stages {objects.uri}: an object that was written cannot be read")


def check_reach(root: Path | str, database: str, hosts: int) -> None:
    """Raises InputError where the hosts of a cluster would not share the leases of their object store."""
    if hosts > 1 and is_object_store(root) and database.startswith("sqlite:"):
        raise InputError(f"--stages {root}: on {hosts} hosts it needs --database postgresql://HOST/NAME, for its leases")


def open_store(root: Path | str, database: str) -> Store:
    """The stages in a folder, or at the URI of an object store, whose leases are in `database`. Touches nothing.

    Raises InputError for a URI of another kind.
    """
    if not is_object_store(root):
        return StageStore(root)
    from tune.object_store import ObjectStore

    return ObjectStore(str(root), database)
