"""One trial inside its Ray actor: run the science, keep its result in the trial's folder, report it to Tune."""

from __future__ import annotations

import json
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from migvis.errors import InputError
from tune.context import Hooks, StudyContext
from tune.search import PAYLOAD
from tune.space import apply
from tune.store_lock import in_use
from tune.study_files import as_the_driver_has_it, on_this_host, send_trial
from tune.study_folder import write_json
from tune.trial_result import TrialResult


def trainable(context: StudyContext, hooks: Hooks) -> Callable[[dict[str, Any]], None]:
    """Tune's function: {"number", "params"} in, the result as JSON text out.

    The result is first written to the trial's folder, so that a driver which is killed before it records the trial
    need not run it again. An error is written there too, and raised again: Tune then drops the process.
    """
    run_trial = hooks.run_trial

    def run(config: dict[str, Any]) -> None:
        number, params = config["number"], config["params"]
        here = on_this_host(context)
        folder = here.trial_folder(number)
        (folder / "error.json").unlink(missing_ok=True)
        reporter = here.reporter(f"trial-{number:03d}")
        reporter.update(f"trial {number}")
        try:
            with in_use(context.store()):  # it may outlive its driver for a while
                result = run_trial(here, apply(context.config.configuration, params), params, number)
        except Exception as error:
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            text = (str(error).splitlines() or [""])[0]
            message = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
            write_json(folder / "error.json", {"message": message, "bad_input": isinstance(error, InputError)})
            send_trial(context, here, number)
            raise
        finally:
            reporter.done()
        payload = replace(as_the_driver_has_it(result, here, context), host=socket.gethostname()).to_json()
        write_json(folder / "result.json", {"params": params, "result": payload})
        send_trial(context, here, number)
        tune.report({PAYLOAD: payload})

    return run


def stored_result(folder: Path, number: int, params: dict[str, Any]) -> TrialResult | None:
    """The result that a trial with these parameters left in the study's folder, or None."""
    try:
        content = json.loads((folder / "trials" / f"{number:03d}" / "result.json").read_text(encoding="utf-8"))
        return TrialResult.from_json(content["result"]) if content["params"] == params else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stored_error(folder: Path, number: int) -> tuple[str, bool]:
    """(message, whether the input was bad) of a trial that failed; a process that was killed left nothing."""
    try:
        content = json.loads((folder / "trials" / f"{number:03d}" / "error.json").read_text(encoding="utf-8"))
        return content["message"], content["bad_input"]
    except (OSError, ValueError, KeyError):
        return "the trial's process died", False
