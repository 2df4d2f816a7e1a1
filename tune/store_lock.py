"""Who may delete from a stage store: nobody, while anybody uses it.

A stage that was just found must not vanish before it is read. So every driver and every trial's process holds the store's
lock, shared, for as long as it lives, and who deletes stages holds it alone. It is a lock of the operating system (flock)
on `<root>/.lock`: it ends with its holder, however that ends. Hosts that share the folder see each other's where the file
system passes such locks on, as NFS 4 does.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from migvis.errors import InputError
from tune.store import StageStore


class StoreInUse(InputError):
    """Stages may not be deleted now."""


def _open(store: StageStore) -> IO[str]:
    with store.storage_errors():
        store.root.mkdir(parents=True, exist_ok=True)
        # NFS gives a shared lock to those only who may read the file.
        return open(store.root / ".lock", "a+", encoding="utf-8")


@contextmanager
def in_use(store: StageStore) -> Iterator[None]:
    """Keeps all stages where they are; waits, and says so, while another process deletes some.

    Raises InputError if the storage folder cannot be written.
    """
    with _open(store) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{store.root}: stages are being pruned; waiting for the end of that", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield


@contextmanager
def alone(store: StageStore) -> Iterator[None]:
    """The right to delete stages. Raises StoreInUse while another process uses the store, InputError if it cannot be written."""
    with _open(store) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreInUse(f"{store.root}: in use by a study that runs, or being pruned already") from None
        yield
