"""One driver for each study of a database, on whichever host."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from migvis.errors import InputError
from tune.database import DatabaseAway
from tune.database_leases import DatabaseLease
from tune.leases import PATIENCE, acquire, holder

_SCOPE = "studies"


@contextmanager
def held_in_database(url: str, study: str, patience: float = PATIENCE) -> Iterator[None]:
    """Holds a study for this driver; a driver that seems to run is watched, in case it died on another host.

    Raises InputError while another driver runs it, or where the database refuses.
    """
    place = DatabaseLease(url, _SCOPE, study)
    try:
        place.make()
        seen, who, end = place.look(), holder(place), time.monotonic() + 1.5 * patience
        lease = acquire(place, until=lambda: place.look().counter != seen.counter or time.monotonic() > end, patience=patience)
    except DatabaseAway as error:
        raise InputError(f"--database: {error}") from None
    if lease is None:
        raise InputError(f"--study {study}: {who or holder(place)} is running it")
    with lease:
        yield
