"""How many threads of the processor an operation is spread over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's operations within run in the calling thread alone; also a decorator.

    For work of thousands of small operations, of which a second thread takes off about a quarter. Each of them ends where its
    threads meet, and on a busy machine one of them is always waiting for a core: beside other processes on two cores they
    were seen to take 40 to 200 times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
