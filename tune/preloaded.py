"""What each process of a study's Ray imports as it starts (tune.ray_session): of a trial, all that trials need.

Tune gives its trials' processes a variable of their own, which tells them from the others.
"""

import gc
import importlib
import os

from tune.command_line import collect_rarely

collect_rarely()
if "PL_DISABLE_FORK" in os.environ:
    for _name in ("tune.trial", "tune.trial_process", "matplotlib.figure"):
        importlib.import_module(_name)
    gc.freeze()
