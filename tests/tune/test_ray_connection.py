"""A process' own Ray, started and ended."""

from __future__ import annotations

import subprocess
import sys

ENDS_BESIDE_GARBAGE = """
import gc, threading, time
import ray
from tune.ray_connection import connect, disconnect

assert connect(None, None)
references = [ray.put(number) for number in range(5000)]
gc.set_threshold(1)
ending = threading.Thread(target=disconnect)
ending.start()
while ending.is_alive():
    cycle = [references.pop()] if references else []
    cycle.append(cycle)
    time.sleep(0.001)
print("ended")
"""


def test_references_that_are_garbage_while_ray_ends_do_not_end_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS_BESIDE_GARBAGE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
