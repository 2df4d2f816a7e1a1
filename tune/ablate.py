"""The named ablations: the papers' tables and figures, and what they leave open. `python tune/ablate.py --help`"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, tune/ itself is first on the path: its modules would be top-level names, `import tune` would fail.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import importlib.util
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tune.command_line import Parser, add_places, interrupted_by_termination, python, run_and_exit

if TYPE_CHECKING:
    from tune.ablation.run import Settings
    from tune.ablation.study import Study

_EPILOG = """\
A study's stages are kept: started again it goes on where it was, and with everything there it only writes its report anew.
A FILE.py of your own defines one or several tune.ablation.study.Study, as tune/ablation/studies.py does.

exit codes: 0 done; 1 some runs failed, the report says which; 2 bad input; 130 interrupted, the same command goes on

examples:
  python tune/ablate.py --list
  python tune/ablate.py table1 table2
  python tune/ablate.py components --seeds 3 --dry-run
  python tune/ablate.py my_study.py --data recordings.h5 --config tune/configs/paper.yaml
  python tune/ablate.py all
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python tune/ablate.py",
        description="Runs named ablations over several seeds, with intervals, and writes a report of each.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add("names", nargs="*", metavar="NAME", help="named ablations, all, or a FILE.py that defines some")
    add("--list", action="store_true", help="print the named ablations and their questions")
    add("--seeds", type=int, default=5, metavar="N", help="fits of each case (default: 5)")
    add("--subjects", nargs="+", default=[], metavar="NAME", help="subjects (default: as each ablation says)")
    add("--config", type=Path, metavar="FILE.yaml", help="a preset and what overrides it (default: tune/configs/quick.yaml)")
    add("--data", type=Path, metavar="FILE.h5", help="the data set (default: a synthetic one, made once)")
    add_places(result)
    add("--seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    add("--dry-run", action="store_true", help="print the runs, which stages exist already, and their estimated cost")
    add("--set", action="append", default=[], metavar="section.key=value", dest="overrides", help="set one value; repeatable")
    return result


def studies_of(names: Sequence[str]) -> list[Study]:
    """The studies of the given names and files, each once. Raises InputError for a name or a file that is none."""
    from migvis.errors import InputError
    from tune.ablation.studies import STUDIES

    known = {study.name: study for study in STUDIES}
    found: dict[str, Study] = {}
    for name in names:
        if name.endswith(".py"):
            for study in studies_in(Path(name)):
                if study.name in found and found[study.name] != study:
                    raise InputError(f"{name}: there are two ablations of the name {study.name}")
                if study.name in known:
                    raise InputError(f"{name}: {study.name} is the name of an ablation that comes with migvis")
                found[study.name] = study
        elif name == "all":
            found |= known
        elif name in known:
            found[name] = known[name]
        else:
            raise InputError(f"{name}: no such ablation; known: {', '.join(known)}, all, or a FILE.py")
    return list(found.values())


def studies_in(path: Path) -> list[Study]:
    """The studies that a file defines, alone or in lists. Raises InputError where it has none, or cannot be run."""
    from migvis.errors import InputError
    from tune.ablation.study import Study
    from tune.study_folder import check_name

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"ablations.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"ablations.{path.stem}"] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
    found: list[Study] = []
    for name, value in vars(module).items():
        several: Any = value if isinstance(value, list | tuple) else [value]
        if not name.startswith("_"):
            found += [one for one in several if isinstance(one, Study) and one not in found]
    if not found:
        raise InputError(f"{path}: defines no tune.ablation.study.Study")
    for study in found:
        check_name(study.name)
    return found


def settings_of(arguments: argparse.Namespace, given: Sequence[str]) -> Settings:
    """What all studies of this call share. given: the command line's words.

    Raises InputError for a bad option or configuration.
    """
    from migvis.errors import InputError
    from tune.ablation.run import Settings
    from tune.redact import redact
    from tune.study_config import load_study_config
    from tune.study_folder import default_storage, open_storage
    from tune.tracking_uri import absolute, check_tracking, default_uri, given_uri

    for option, value, least in (("--seeds", arguments.seeds, 1), ("--seed", arguments.seed, 0)):
        if not least <= value < 2**31:
            raise InputError(f"{option}: expected {least} to {2**31 - 1}, got {value}")
    storage = open_storage(arguments.storage or default_storage())
    options = {} if arguments.data is None else {"data.path": str(arguments.data.resolve())}
    uri = absolute(given_uri(arguments.tracking_uri) or default_uri(storage))
    if not arguments.dry_run:
        check_tracking(uri)
    return Settings(
        storage=storage,
        config=load_study_config(arguments.config, arguments.overrides, options),
        seed=arguments.seed,
        seeds=arguments.seeds,
        uri=uri,
        command=redact(shlex.join([*python(), "tune/ablate.py", *given])),
        subjects=tuple(arguments.subjects),
        address=arguments.address,
    )


def run(arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """Runs, plans or lists what the command line asks for, in the words `given`; the exit code. Raises InputError."""
    from migvis.errors import InputError
    from tune.ablation.studies import STUDIES

    if arguments.list:
        width = max(len(study.name) for study in STUDIES)
        print("\n".join(f"{study.name:<{width}}  {study.question}" for study in STUDIES))
        return 0
    studies, settings = studies_of(arguments.names), settings_of(arguments, given)
    if not studies:
        raise InputError("name an ablation, all, or a FILE.py; --list prints the named ones")
    from tune.ablation.run import NotHere, describe_plan, describe_total, open_outcome, run_ablation
    from tune.browsing import command_to_browse
    from tune.tracking_uri import default_uri

    # All are checked before the first is run: the last one's mistake shall not be found after hours.
    outcomes = []
    for study in list(studies):
        try:
            outcomes.append(open_outcome(study, settings))
        except NotHere as reason:
            if "all" not in arguments.names:
                raise
            print(f"{study.name} is left out: {reason}")
            studies.remove(study)
        except InputError as error:
            raise InputError(f"{study.name}: {error}" if len(studies) > 1 else str(error)) from None
    if arguments.dry_run:
        print("\n".join(describe_plan(outcome) for outcome in outcomes))
        if len(outcomes) > 1:
            print(describe_total(outcomes))
        return 0
    failed, where = 0, []
    for study in studies:
        outcome, report = run_ablation(study, settings)
        failed += len(outcome.failed)
        where += [f"charts:    {outcome.charts}"] if outcome.charts else []
        where += [f"report:    {report}"]
    print(f"browse it: {command_to_browse(settings.storage, settings.uri, default_uri(settings.storage))}")
    print("\n".join(where))
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""

    given = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(given)  # --help and mistakes are answered before anything heavy is imported
    interrupted_by_termination()
    from migvis.errors import InputError
    from migvis.training import FitError
    from tune.ray_session import job_server, prepare_ray_environment
    from tune.study_folder import StudyFailed, default_storage, is_full

    try:
        prepare_ray_environment()  # before ray is imported, which reads some of it once
        cluster = None if arguments.list else job_server(arguments.address)
        if cluster is not None:
            from tune.submission import submit

            return submit("ablate", given, cluster)
        return run(arguments, given)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FitError, StudyFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if not is_full(error):
            raise
        storage = arguments.storage or default_storage()
        print(f"error: --storage {storage}: is full; free some space, and the same command goes on", file=sys.stderr)
        return 2


if __name__ == "__main__":
    run_and_exit(main)
