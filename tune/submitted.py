"""The far end of a submission: what a cluster runs as a job, in a folder with the sender's packages and this note on them.

    python -m tune.submitted run|ablate WORDS…
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_NOTE = "submitted.json"


@dataclass(frozen=True)
class Submitted:
    """address: of the cluster, as its sender knows it. revision: of the sender's source. versions: of what it has installed."""

    address: str
    revision: str
    versions: Mapping[str, str]

    def write(self, folder: Path) -> None:
        (folder / _NOTE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    def differences(self, here: Mapping[str, str]) -> str:
        """Packages whose versions are not the same `here`, in one line; empty: none."""
        pairs = [(name, here.get(name, "none"), there) for name, there in self.versions.items()]
        return "; ".join(f"{name} {mine} here, {theirs} there" for name, mine, theirs in pairs if mine != theirs)


def submitted(root: Path = ROOT) -> Submitted | None:
    """The note beside this source; None where this is no submitted job."""
    path = root / _NOTE
    return Submitted(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def installed_versions() -> dict[str, str]:
    """Versions of Python and of what the project depends on, by name."""
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in requires("migvis") or []]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def main(words: Sequence[str]) -> int:
    """Runs a submitted command line and returns its exit code."""
    from tune import ablate, run

    note = submitted()
    difference = note.differences(installed_versions()) if note is not None else ""
    if difference:
        print(f"note: this cluster has other versions than the machine that sent the job, `ray up` mends it: {difference}")
    program, *rest = words
    return {"run": run, "ablate": ablate}[program].main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
