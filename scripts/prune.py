"""Deletes the stages that no study needs any more, and what killed processes left behind."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from migvis.errors import InputError
from tune.progress import duration
from tune.pruning import Item, Survey, prune, survey
from tune.redact import redact
from tune.study_folder import default_storage
from tune.study_lock import running

_EPILOG = """\
A finished study keeps the stages of its selected trial and of its final stage, and those that all its trials share: it can
be exported (any trial of it), synthesized anew and given more trials. An unfinished study keeps all that it has used, and
its checkpoints, and an ablation all that its cases are read from; delete the folder of one that is abandoned, to free what
it alone needs.

Without --yes nothing is changed. With it, nothing is deleted while a study runs on this storage or a stage is being built;
a study that is begun meanwhile waits. A prune that is killed leaves each stage whole or gone.

exit codes: 0 done; 1 some of it could not be deleted; 2 bad input or a storage in use, with one line that says which
"""


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def sums(items: Iterable[Item]) -> str:
    """Stages, their size and what they cost, in columns."""
    every = list(items)
    size, seconds = sum(item.size for item in every), sum(item.seconds for item in every)
    return f"{len(every):>6} stages  {megabytes(size):>12}  {duration(seconds):>14} to fit again"


def describe(found: Survey) -> str:
    """The table of what is kept and what is not."""
    lines = [f"study {needs.study}: {needs.why}" for needs in found.needs] or ["no study"]
    lines += [f"being built by {who}: {kind} {key}" for (kind, key), who in found.building.items()]
    lines += ["", "nobody needs:"]
    kinds = sorted({item.name[0] for item in found.unneeded})
    lines += [f"  {kind:<16}{sums(item for item in found.unneeded if item.name[0] == kind)}" for kind in kinds]
    lines.append(f"  {'in all':<16}{sums(found.unneeded)}")
    left = [path.parent.name for _, path in found.leftovers]
    counts = ", ".join(
        f"{left.count(place)} {what}"
        for place, what in ((".partial", "checkpoints"), (".writing", "half-written stages"), (".damaged", "damaged stages"))
    )
    size = megabytes(found.left_size)
    lines.append(f"left behind: {counts}, {len(found.leases)} leases, {len(found.trash)} pruned before: {size}")
    lines.append(f"{'kept:':<18}{sums(found.kept)}")
    return "\n".join(lines)


def of_objects(storage: Path, stages: str, database: str | None) -> tuple[Any, Any]:
    """survey and prune of an object store. Raises InputError where it or its database cannot be used."""
    from functools import partial

    from tune.object_pruning import prune_objects, survey_objects
    from tune.object_store import ObjectStore
    from tune.stores import places_of

    places = places_of(storage, stages, database, check=True)
    if places.database is None or not isinstance(places.stages, str):
        raise InputError(f"--stages {stages}: expected s3://BUCKET/PREFIX; for the folder DIR/stages: --storage DIR")
    store = ObjectStore(places.stages, places.database)
    return partial(survey_objects, store, places.database), partial(prune_objects, store, places.database)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Show the stages that no study needs any more, and with --yes delete them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--storage", type=Path, metavar="DIR", help="where studies are kept (default: ~/.local/share/migvis)")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="STUDY", help="keep all that this study has used; may be repeated"
    )
    parser.add_argument("--stages", metavar="URI", help="the object store of the studies in DIR (default: the stages in DIR)")
    parser.add_argument("--database", metavar="URL", help="its studies and leases, as they were told to tune/run.py")
    parser.add_argument("--yes", action="store_true", help="delete; without it the stages are only shown")
    arguments = parser.parse_args(argv)
    storage = (arguments.storage or default_storage()).absolute()
    try:
        if arguments.database is not None and arguments.stages is None:
            raise InputError(f"--database {redact(arguments.database)}: goes with --stages s3://BUCKET/PREFIX; folders need none")
        find, delete = survey, prune
        if arguments.stages is not None:
            find, delete = of_objects(storage, arguments.stages, arguments.database)
        if not arguments.yes:
            print(describe(find(storage, arguments.keep)))
            studies = [f"study {name} is running ({who}): delete when it has ended" for name, who in running(storage).items()]
            print("\n".join(studies) or "nothing is deleted without --yes")
            return 0
        result = delete(storage, arguments.keep, lambda found: print(describe(found), flush=True))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    size = sum(item.size for item in result.stages)
    print(f"deleted {len(result.stages)} stages, {megabytes(size)}")
    for kind, key in result.busy:
        print(f"kept, since it is being built: {kind} {key}")
    for path in result.remains:
        print(f"WARNING: {path}: could not be deleted", file=sys.stderr)
    return 1 if result.remains else 0


if __name__ == "__main__":
    sys.exit(main())
