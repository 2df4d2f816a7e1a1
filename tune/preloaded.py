"""What each process of a study's own Ray imports as it starts (tune.ray_session): of a trial, all that trials need.

Tune gives its trials' processes a variable of their own, and Ray Train one to those of its fits, which trials pass theirs on to.
"""

import contextlib
import gc
import importlib
import os

from tune.command_line import collect_rarely

collect_rarely()
if "PL_DISABLE_FORK" in os.environ and "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC" not in os.environ:
    with contextlib.suppress(Exception):  # the trial meets it again, and tells it
        for _name in ("tune.trial", "tune.trial_process", "matplotlib.figure"):
            importlib.import_module(_name)
    gc.freeze()
