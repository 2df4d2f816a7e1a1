"""What the command lines share: one line for a mistake, SIGTERM as an interruption, and how their process ends."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

_ENDS_WITHIN = 50.0
"""Seconds after a SIGTERM. Ray kills a job 60 s after it was stopped (tune.submission), and that without a word."""


class Parser(argparse.ArgumentParser):
    """A mistake is one line, as all bad input is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def add_places(parser: argparse.ArgumentParser) -> None:
    """The options that say where a study lives, is shown and is run."""
    add = parser.add_argument
    add(
        "--storage",
        type=Path,
        metavar="DIR",
        help="where studies and stages are kept (default: MIGVIS_STORAGE, or ~/.local/share/migvis)",
    )
    add(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server or database (default: MLFLOW_TRACKING_URI, or sqlite in the storage folder)",
    )
    add(
        "--address",
        metavar="RAY",
        help="a cluster to run on (default: RAY_ADDRESS, or a local Ray): http://HEAD:8265 from anywhere, where --data and"
        " --storage are paths on the cluster; auto or HOST:PORT on one of its hosts",
    )


def add_stores(parser: argparse.ArgumentParser) -> None:
    """The options for hosts that share no folder."""
    add = parser.add_argument
    add(
        "--stages",
        metavar="DIR|URI",
        help="where stages are kept: a folder, or s3://BUCKET/PREFIX with AWS_… in the environment (default: in the storage"
        " folder)",
    )
    add(
        "--database",
        metavar="URL",
        help="of trials and leases: postgresql://HOST/NAME with PGPASSWORD in the environment (default: sqlite in the storage"
        " folder)",
    )


def interrupted_by_termination() -> None:
    """From now on SIGTERM raises KeyboardInterrupt, as Ctrl-C does; a process that lives on says where it is stuck."""

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback_later(_ENDS_WITHIN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def collect_rarely() -> None:
    """Has garbage looked for less often: among the thousands of modules that are imported there is none, and it takes seconds."""
    gc.set_threshold(50_000, 20, 100)


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Runs a command line as this process' only work, and exits with its code."""
    collect_rarely()
    code = main()
    gc.freeze()  # as the interpreter ends it would look for garbage once more
    sys.exit(code)
