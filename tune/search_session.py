"""The search, run as a Ray Tune experiment."""

from __future__ import annotations

import logging
import shutil
import uuid

from ray import tune

from tune.context import Hooks, StudyContext
from tune.placing import placing_of
from tune.search import LedgerSearcher
from tune.trial_process import trainable


def run_search(context: StudyContext, hooks: Hooks, searcher: LedgerSearcher) -> None:
    """Runs the search until the searcher says that it is finished; results go through the searcher.

    Each trial takes what tune.resources says of the nodes that there are now. Raises what kept the searcher from proposing or
    recording a trial, as it was: Tune itself has only its traceback, as a text.
    """
    for name in ("ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    placing, _ = placing_of(context.config.search)
    resources = {"cpu": placing.trial.cpus} | ({"gpu": placing.trial.gpus} if placing.trial.gpus else {})
    context = context.of_trials(placing.threads, placing.workers)
    for left in context.folder.glob("tune-*"):
        shutil.rmtree(left, ignore_errors=True)
    # A name of its own, because a driver that has lost the study to this one may still be on its way out.
    scratch = context.folder / f"tune-{uuid.uuid4().hex[:8]}"
    try:
        tuner = tune.Tuner(
            tune.with_resources(trainable(context, hooks), resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                # The searcher keeps to that by itself. Told of it, Tune starts so many processes at once; else one by one,
                # and while one is starting, trials of seconds go to those that there are.
                max_concurrent_trials=context.config.search.concurrent_trials,
                # The searcher ends the search; this only has to be more than it will ever ask for.
                num_samples=1_000_000,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=scratch.name,
                storage_path=str(context.folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        tuner.fit()
    except Exception:
        if searcher.failure is None:
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if searcher.failure is not None:
        raise searcher.failure
