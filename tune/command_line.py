"""What the command lines share: one line for a mistake, and SIGTERM as an interruption."""

from __future__ import annotations

import argparse
import signal
from types import FrameType
from typing import NoReturn

ADDRESS_HELP = (
    "a cluster to run on (default: RAY_ADDRESS, or a local Ray): http://HEAD:8265 from anywhere, where --data and --storage are"
    " paths on the cluster; auto or HOST:PORT on one of its hosts"
)


class Parser(argparse.ArgumentParser):
    """A mistake is one line, as all bad input is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def interrupted_by_termination() -> None:
    """From now on SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
