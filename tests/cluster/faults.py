"""Injects faults into studies on three test hosts, recovers as a user would, and compares with an undisturbed study.

    uv run python tests/cluster/faults.py                           all of them, each once
    uv run python tests/cluster/faults.py --fault driver --times 5  by name, so often (a study of `driver` is killed 4 times)
    uv run python tests/cluster/faults.py --results FILE            goes on with FILE, one line of JSON per disturbed study

Needs root and what tests/cluster/hosts.py needs; `clocks` needs Debian's faketime as well. Prints a table, then the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.cluster import fault_damage, fault_kinds
from tests.cluster.fault_bench import Bench
from tests.cluster.fault_kinds import Chance, Disturbed
from tests.cluster.fault_study import Audit, Study, blank_storage, write_small_science
from tests.cluster.hosts import unavailable
from tune.command_line import interrupted_by_termination

KINDS: dict[str, tuple[Callable[[Chance], Disturbed], Callable[[Chance], Study], int]] = {
    "driver": (fault_kinds.driver, Chance.study, 1),
    "driver, resumed on another host": (fault_kinds.elsewhere, Chance.study, 1),
    "second driver": (fault_kinds.second_driver, Chance.study, 1),
    "worker host": (fault_kinds.worker_host, Chance.study, 1),
    "worker host, 2 trials at once": (fault_kinds.worker_host, Chance.study, 2),
    "head": (fault_kinds.head, Chance.study, 1),
    "full storage": (fault_kinds.full_storage, Chance.study, 1),
    "tracking server": (fault_kinds.tracking_server, Chance.study, 1),
    "clocks": (fault_kinds.clocks, Chance.study, 1),
    "truncated file": (fault_damage.truncated, fault_damage.real_study, 1),
    "flipped file": (fault_damage.flipped, fault_damage.real_study, 1),
    "training worker": (fault_damage.training_worker, fault_damage.long_fit, 1),
}
"""By name: the fault, the study that is compared with, undisturbed, and how many trials run at once."""


@dataclass(frozen=True)
class Row:
    """One disturbed study. equal: its trials and its selection are those of the undisturbed one."""

    fault: str
    seed: int
    times: int
    trials: int
    lost: list[str]
    twice: int
    seconds: list[float]
    equal: bool
    moments: list[str]


class Faults:
    """Disturbs studies on a bench and compares each with the undisturbed study of as many trials at once."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.script = write_small_science(bench.folder / "science.py")
        blank_storage(bench.storage, bench.folder / "blank.db")
        self._undisturbed: dict[str, Audit] = {}

    def undisturbed(self, make: Callable[[Chance], Study], concurrent: int) -> Audit:
        name = f"undisturbed-{make.__name__}-{concurrent}"
        if name not in self._undisturbed:
            study = make(Chance(self.bench, self.script, name, random.Random(0), concurrent))
            study.finish(study.start())
            self._undisturbed[name] = study.audit()
            if self._undisturbed[name].lost or self._undisturbed[name].twice:
                raise RuntimeError(f"the undisturbed study itself: {self._undisturbed[name]}")
        return self._undisturbed[name]

    def inject(self, fault: str, seed: int) -> Row:
        """Disturbs one study, and audits it. Raises RuntimeError where recovery took more than the fault's own recipe."""
        inject, make, concurrent = KINDS[fault]
        expected = self.undisturbed(make, concurrent)
        name = f"{'-'.join(fault.replace(',', '').split())}-{seed}"
        disturbed = inject(Chance(self.bench, self.script, name, random.Random(f"{fault} {seed}"), concurrent))
        study, found = disturbed.study, disturbed.study.audit()
        seconds = [round(value, 1) for value in disturbed.seconds]
        equal = found.chosen == expected.chosen
        return Row(fault, seed, disturbed.times, study.trials, found.lost, found.twice, seconds, equal, disturbed.moments)


def table(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows of each fault added up."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.fault, []).append(row)
    summed = []
    for fault, its in found.items():
        seconds = [value for row in its for value in row.seconds]
        summed.append(
            {
                "fault": fault,
                "times injected": sum(row.times for row in its),
                "studies": len(its),
                "trials": sum(row.trials for row in its),
                "trials lost": sum(len(row.lost) for row in its),
                "trials run twice": sum(row.twice for row in its),
                "seconds to recover, median": round(statistics.median(seconds), 1) if seconds else None,
                "seconds to recover, most": max(seconds, default=None),
                "selection as undisturbed": f"{sum(row.equal for row in its)} of {len(its)}",
            }
        )
    return summed


def markdown(summed: list[dict[str, Any]]) -> str:
    heads = list(summed[0])
    lines = [heads, ["---"] * len(heads), *([str(one[head]) for head in heads] for one in summed)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", action="append", choices=list(KINDS), metavar="NAME", help=f"one of: {'; '.join(KINDS)}")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="studies per fault (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first study of a fault (default: 0)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="add to FILE, and leave out what it has already")
    arguments = parser.parse_args(argv)
    interrupted_by_termination()
    reason = unavailable()
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    results = arguments.results
    rows = [Row(**json.loads(line)) for line in results.read_text().splitlines()] if results and results.exists() else []
    with tempfile.TemporaryDirectory(prefix="mf", dir="/tmp") as folder, Bench(Path(folder)) as bench:
        faults = Faults(bench)
        bench.start_cluster()
        for fault in arguments.fault or list(KINDS):
            for seed in range(arguments.seed, arguments.seed + arguments.times):
                if any((row.fault, row.seed) == (fault, seed) for row in rows):
                    continue
                row = faults.inject(fault, seed)
                rows.append(row)
                print(json.dumps(asdict(row)), flush=True)
                if results is not None:
                    with results.open("a") as file:
                        file.write(json.dumps(asdict(row)) + "\n")
    summed = table(rows)
    print(markdown(summed))
    print(json.dumps(summed))
    return 1 if any(row.lost for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
