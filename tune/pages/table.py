"""Tables of texts, which a page shows and a CSV file holds alike."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NOTHING = "–"
"""What stands where nothing was measured."""


@dataclass(frozen=True)
class Table:
    """A table of texts; `file` names its CSV. emphasis: (row, column) of what is bold.
    findings: what it says, in sentences."""

    title: str
    file: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    emphasis: frozenset[tuple[int, int]] = frozenset()
    findings: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Writes the CSV; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.file}.csv"
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(self.header)
            writer.writerows(self.rows)
        return path
