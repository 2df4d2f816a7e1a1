"""What the command lines share: one line for a mistake, SIGTERM as an interruption, and how their process ends."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def interruptible_once() -> Iterator[Callable[[], None]]:
    """Gives a function after whose call a further Ctrl-C or SIGTERM is ignored, until the context ends.

    What an interruption has to leave behind takes seconds, and whoever presses again should still be told how to go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(one) for one in signals]

    def ignore() -> None:
        for one in signals:
            signal.signal(one, signal.SIG_IGN)

    try:
        yield ignore
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)


def python() -> list[str]:
    """The words by which this process' Python was started, as a user would type them: `uv run` tells that it did by UV."""
    return ["uv", "run", "python"] if "UV" in os.environ else ["python"]


def collect_rarely() -> None:
    """Has garbage looked for less often: among the thousands of modules that are imported there is none, and it takes seconds."""
    gc.set_threshold(50_000, 20, 100)


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Runs a command line as this process' only work, and exits with its code."""
    collect_rarely()
    try:
        code = main()
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("migvis", "tune"):
            raise
        print(f"error: this Python has no package {error.name}; begin the command with `uv run python`", file=sys.stderr)
        code = 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said, and what is left takes no time worth a traceback
    gc.freeze()  # as the interpreter ends it would look for garbage once more
    sys.exit(code)
