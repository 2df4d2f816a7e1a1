"""Who may delete from a stage store: nobody, while anybody uses it.

A stage that was just found must not vanish before it is read. So every driver and every trial's process holds the store's
lock, shared, for as long as it lives, and who deletes stages holds it alone. It ends with its holder, however that ends
(tune.shared_locks).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from migvis.errors import InputError
from tune.shared_locks import TakeLock
from tune.store_base import Store


class StoreInUse(InputError):
    """Stages may not be deleted now."""


@contextmanager
def _lock_of(store: Store) -> Iterator[TakeLock]:
    with ExitStack() as stack:
        with store.storage_errors():
            take = stack.enter_context(store.lock())
        yield take


@contextmanager
def in_use(store: Store) -> Iterator[None]:
    """Keeps all stages where they are; waits, and says so, while another process deletes some.

    Raises InputError if the storage cannot be written.
    """
    with _lock_of(store) as take:
        with store.storage_errors():
            if not take(False, False):
                print(f"{store.name}: stages are being pruned; waiting for the end of that", file=sys.stderr)
                take(False, True)
        yield


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """The right to delete stages. Raises StoreInUse while another process uses the store, InputError if it cannot be written."""
    with _lock_of(store) as take:
        with store.storage_errors():
            if not take(True, False):
                raise StoreInUse(f"{store.name}: in use by a study that runs, or being pruned already")
        yield
