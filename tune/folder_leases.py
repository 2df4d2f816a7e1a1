"""Leases in a folder, on any file system that several hosts share: a file named 0, 1, 2, … for each generation."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tune.leases import Holder, LeasePlace, Seen

_RETRY = 0.01
"""Seconds between two looks at a folder that changed in between."""


class FolderLease(LeasePlace):
    """A lease whose generations are files of `folder`, made by exclusive creation; older ones are cleared away."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name

    def make(self) -> None:
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                return
            except FileExistsError:  # a file in its place, or it was free and pruned while mkdir looked at it
                if self.folder.exists() and not self.folder.is_dir():
                    raise

    def _generations(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self.folder) if name.isdigit())

    def look(self) -> Seen:
        while True:
            generations = self._generations()
            if not generations:
                return Seen(-1, "", None)
            try:
                counter, _, identity = self._path(generations[-1]).read_text().partition("\n")
            except FileNotFoundError:  # a newer holder cleared it away between the two calls
                time.sleep(_RETRY)  # on a network folder the listing may be an old one for a while
                continue
            return Seen(generations[-1], counter, Holder.from_json(identity))  # just created it may have no identity yet

    def claim(self, generation: int, counter: str, holder: Holder) -> bool:
        path = self._path(generation)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{counter}\n{holder.to_json()}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # a full disk: left behind, the empty file would be a holder for others to wait for
            path.unlink(missing_ok=True)
            raise
        generations = self._generations()
        if generations[-1:] != [generation]:  # we looked long ago, and others have come and gone since
            path.unlink(missing_ok=True)
            return False
        for older in generations[:-1]:
            self._path(older).unlink(missing_ok=True)
        return True

    def is_latest(self, generation: int) -> bool:
        try:
            return self._generations()[-1] == generation
        except (FileNotFoundError, IndexError):
            return False
        except OSError:  # too many open files, a network folder that is away: no sign of another holder
            return True

    def write(self, generation: int, counter: str) -> None:
        # In place, without creating: after a takeover this file may be gone, and must not come back.
        descriptor = os.open(self._path(generation), os.O_WRONLY)
        try:
            os.pwrite(descriptor, counter.encode(), 0)
            os.fsync(descriptor)  # other hosts see it only when it has left this one's cache
        finally:
            os.close(descriptor)

    def _path(self, generation: int) -> Path:
        return self.folder / str(generation)
