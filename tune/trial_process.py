"""One trial inside its Ray actor: run the science, keep its result in the trial's folder, report it to Tune."""

from __future__ import annotations

import contextlib
import json
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from migvis.errors import InputError
from tune.context import Hooks, StudyContext
from tune.search import BAD_INPUT, ERROR, HOST, NODE, PAYLOAD
from tune.space import apply
from tune.store_lock import in_use
from tune.study_files import as_the_driver_has_it, on_this_host, send_trial
from tune.study_folder import write_json
from tune.trial_result import TrialResult


def trainable(context: StudyContext, hooks: Hooks) -> Callable[[dict[str, Any]], None]:
    """Tune's function: {"number", "params", "vae_only"} in, the result as JSON text out.

    It tells first where it runs, so that the driver can know whether its host died under it. The result is written to the
    trial's folder before it is reported, so that a driver which is killed before it records the trial need not run it again.
    An error is reported, too (a full disk takes no file), and raised again: Tune then drops the process.
    """

    def run(config: dict[str, Any]) -> None:
        store = context.store()
        tune.report({NODE: ray.get_runtime_context().get_node_id() if ray.is_initialized() else "", HOST: socket.gethostname()})
        try:
            payload = _run(context, hooks, config["number"], config["params"], config["vae_only"])
        except Exception as error:
            refused = store.refusal(error) if store.is_full(error) else error
            bad_input, text = isinstance(refused, InputError), (str(refused).splitlines() or [""])[0]
            tune.report({ERROR: text if bad_input else f"{type(error).__name__}: {text}", BAD_INPUT: bad_input})
            raise refused from error
        tune.report({PAYLOAD: payload})

    return run


def _run(context: StudyContext, hooks: Hooks, number: int, params: dict[str, Any], vae_only: bool) -> str:
    here = on_this_host(context)
    folder, reporter = here.trial_folder(number), here.reporter(f"trial-{number:03d}")
    try:
        reporter.update(f"trial {number}")
        with in_use(context.store()):  # it may outlive its driver for a while
            result = hooks.run_trial(here, apply(context.config.configuration, params), params, number, vae_only)
    except Exception:
        with contextlib.suppress(OSError, InputError):  # the error itself is told by another way
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            send_trial(context, here, number)
        raise
    finally:
        reporter.done()
    payload = replace(as_the_driver_has_it(result, here, context), host=socket.gethostname()).to_json()
    write_json(folder / "result.json", {"params": params, "result": payload})
    send_trial(context, here, number)
    return payload


def stored_result(folder: Path, number: int, params: dict[str, Any]) -> TrialResult | None:
    """The result that a trial with these parameters left in the study's folder, or None."""
    try:
        content = json.loads((folder / "trials" / f"{number:03d}" / "result.json").read_text(encoding="utf-8"))
        return TrialResult.from_json(content["result"]) if content["params"] == params else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
