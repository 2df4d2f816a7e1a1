"""The main job: search, select, re-synthesize, export. `python tune/run.py --help`"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, tune/ itself is first on the path: its modules would be top-level names, `import tune` would fail.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tune.command_line import Parser, add_places, add_stores, interrupted_by_termination, run_and_exit

if TYPE_CHECKING:
    from tune.context import Hooks
    from tune.study import Request

_EPILOG = """\
exit codes: 0 done; 1 failed, with one line that says why; 2 bad input, with one line that says what and where;
130 interrupted, with the line that resumes it

examples:
  python tune/run.py                                        the embedded default: synthetic data, 18 trials
  python tune/run.py --data recordings.h5 --config tune/configs/paper.yaml
  python tune/run.py --study first --trials 24 --set vae.group_rank=4 --set 'search.pc_weight=[1.0e-5, 1.0e-3]'
  python tune/run.py --resume                               go on with the latest unfinished study
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python tune/run.py",
        description="Searches MIG-Vis' hyperparameters, selects a configuration, re-synthesizes with it and exports it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--config", type=Path, metavar="FILE.yaml", help="a preset and what overrides it (default: tune/configs/quick.yaml)")
    add("--data", type=Path, metavar="FILE.h5", help="the data set (default: a synthetic one, made once)")
    add("--trials", type=int, metavar="N", help="trials in all; with --resume the new total")
    add("--study", metavar="NAME", help="the study's name (default: preset, date and time)")
    add_places(result)
    add_stores(result)
    add("--seed", type=int, metavar="N", help="seed of the search and of every fit (default: 0)")
    add("--resume", action="store_true", help="go on with --study, or with the latest unfinished study")
    add("--dry-run", action="store_true", help="print the plan: stages, which exist already, and their estimated cost")
    add("--set", action="append", default=[], metavar="section.key=value", dest="overrides", help="set one value; repeatable")
    return result


def request_of(argv: Sequence[str]) -> Request:
    """The request of a command line. Raises SystemExit(2) as argparse does, or InputError."""
    from migvis.errors import InputError
    from tune.study import Request

    values = vars(parser().parse_args(argv))
    if values["seed"] is not None and not 0 <= values["seed"] < 2**31:
        raise InputError(f"--seed: expected 0 to {2**31 - 1}, got {values['seed']}")
    return Request(**{**values, "overrides": tuple(values["overrides"])})


def default_hooks() -> Hooks:
    """The science: tune.trial and tune.final."""
    from tune.context import Hooks
    from tune.final import finish
    from tune.plan import plan
    from tune.study_data import open_data
    from tune.trial import EXPECTED_SECONDS, begin, prepare, run_trial

    return Hooks(
        open_data=open_data,
        prepare=prepare,
        run_trial=run_trial,
        finish=finish,
        plan=plan,
        expected_seconds=EXPECTED_SECONDS,
        begin=begin,
    )


def main(argv: Sequence[str] | None = None, hooks: Hooks | None = None) -> int:
    """Runs the command line and returns its exit code. hooks: the science, for tests (default: the package's own)."""

    arguments = sys.argv[1:] if argv is None else argv
    values = parser().parse_args(arguments)  # --help and mistakes are answered before anything heavy is imported
    interrupted_by_termination()
    try:
        from migvis.errors import InputError
        from tune.ray_session import job_server, prepare_ray_environment
        from tune.study import Interrupted, StudyFailed, run_study
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    try:
        prepare_ray_environment()  # before ray is imported, which reads some of it once
        cluster = job_server(values.address)
        if cluster is not None:
            from tune.submission import submit

            return submit("run", arguments, cluster)
        run_study(request_of(arguments), default_hooks if hooks is None else lambda: hooks)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StudyFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as resume:
        print(f"interrupted; go on with: {resume}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    run_and_exit(main)
