"""One Ray Train entry point through which any of the three fits runs, on one worker or many.

Ray Train gives the workers, their process group and their restart after a death. All else is ours: a fit resumes
from its own checkpoint in the stage's scratch folder, its progress passes through a small file there, and its errors
reach the caller as themselves. The folder must be visible to every worker, as the stage store is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from migvis.training import FitError, Progress, Shard
from tune.ray_session import prepare_ray_environment
from tune.resources import nodes_of, worker_share

WAITS = 24
"""How often a fit waits for room for its workers before it is given up, each time for what tune.ray_session says: two hours."""
FitFunction = Callable[..., Any]
ProgressCallback = Callable[[Progress], None]


def is_final(error: BaseException) -> bool:
    """Whether another attempt would fail alike.

    Ray's own errors tell of a worker that died; its peers meet that as a RuntimeError or OSError in the next exchange.
    """
    if isinstance(error, FitError):
        return True
    return not isinstance(error, (RuntimeError, OSError)) and type(error).__module__.partition(".")[0] != "ray"


def _write_json(path: Path, content: Any) -> None:
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(content))
    os.replace(aside, path)


def _train_worker(config: dict[str, Any]) -> Any:
    """Runs in each worker: builds its shard, limits its threads and calls the fit; rank 0 reports progress."""
    import ray.train
    import torch

    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    progress_file: Path = config["progress_file"]

    def report(progress: Progress) -> None:
        if shard.rank == 0:
            with contextlib.suppress(OSError):  # a report lost is no reason to lose the fit
                _write_json(progress_file, asdict(progress))

    value = config["function"](**config["arguments"], shard=shard, progress=report)
    return value if shard.rank == 0 else None


@contextlib.contextmanager
def _progress_from(path: Path, progress: ProgressCallback | None) -> Iterator[None]:
    """Passes each new content of the progress file to `progress`, from a thread, and the last one before it ends."""
    if progress is None:
        yield
        return
    stop = threading.Event()
    last = ""

    def look() -> None:
        nonlocal last
        with contextlib.suppress(OSError, ValueError):
            text = path.read_text()
            if text != last:
                last = text
                progress(Progress(**json.loads(text)))

    def follow() -> None:
        while not stop.wait(0.2):
            look()

    thread = threading.Thread(target=follow, name="fit progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()


@contextlib.contextmanager
def _quiet_and_interruptible() -> Iterator[None]:
    """Keeps Ray Train's own lines off the terminal, and turns its handling of Ctrl-C back into KeyboardInterrupt.

    On the main thread Ray installs a SIGINT handler that stops the workers and then exits this process with code 0,
    and it leaves that handler installed.
    """
    train_logger = logging.getLogger("ray.train")
    level = train_logger.level
    train_logger.setLevel(logging.CRITICAL)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        train_logger.setLevel(level)
        if main:
            signal.signal(signal.SIGINT, handler)


def fit_with_ray_train(
    function: FitFunction,
    arguments: Mapping[str, Any],
    *,
    workers: int,
    folder: Path,
    run_name: str,
    threads_per_worker: int = 1,
    progress: ProgressCallback | None = None,
    max_failures: int = 2,
) -> Any:
    """Calls `function(**arguments, shard=…, progress=…)` in `workers` workers and returns what rank 0 returned.

    Each worker asks for what tune.resources.worker_share says.

    `function` is importable by name; `arguments` are small values and absolute paths, among them the checkpoint from
    which the fit resumes after the death of a worker (at most `max_failures` times) or of this process. `folder` is the
    stage's scratch folder. What rank 0 returns holds no tensors. Workers of more than one talk by gloo, or nccl on GPUs.
    Ray must be initialised (see `tune.ray_connection.connect`).

    Raises the fit's own InputError, FitError or other exception (not retried if `is_final`), InputError if the cluster
    can never place the workers, RuntimeError if workers keep dying, KeyboardInterrupt with all workers stopped.
    """
    prepare_ray_environment()
    import ray
    import ray.train
    from ray.train import TrainingFailedError, UserCallback

    from tune.lean_trainer import LeanTorchTrainer

    train: Any = ray.train  # its static types are those of version 1

    class StopAtFinalError(UserCallback):
        """Ends the run at an error that another attempt would meet again; raising in the controller is the way to."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in map(_origin, worker_exceptions.values()):
                if is_final(error):
                    raise error

    share = worker_share(nodes_of(ray.nodes()), threads=threads_per_worker, workers=workers)
    needs = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
    run_folder = Path(folder).absolute() / f".ray-train-{uuid.uuid4().hex[:8]}"
    run_folder.mkdir(parents=True)
    progress_file = run_folder / "progress.json"
    trainer: Any = LeanTorchTrainer(
        _train_worker,
        train_loop_config={
            "function": function,
            "arguments": dict(arguments),
            "threads": threads_per_worker if share.gpus else math.ceil(share.cpus),
            "progress_file": progress_file,
        },
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=share.gpus > 0, resources_per_worker=needs),
        run_config=train.RunConfig(
            name=run_name,
            storage_path=str(run_folder),
            failure_config=train.FailureConfig(max_failures=max_failures, controller_failure_limit=WAITS),
            logging_config=train.LoggingConfig(log_level="CRITICAL"),
            callbacks=[StopAtFinalError()],
        ),
    )
    try:
        with _progress_from(progress_file, progress), _quiet_and_interruptible():
            return trainer.fit().return_value
    except TrainingFailedError as failure:
        raise _own_error(failure, run_name) from None
    finally:
        shutil.rmtree(run_folder, ignore_errors=True)


def _origin(error: BaseException) -> BaseException:
    """The exception that the fit raised, out of the one that Ray Train wrapped around it."""
    return getattr(error, "_base_exc", None) or getattr(error, "base_exc", None) or error


def _own_error(failure: Exception, run_name: str) -> BaseException:
    """What the fit itself raised; else a RuntimeError of one line that names the run."""
    controller_failure = getattr(failure, "controller_failure", None)
    candidates = [controller_failure] if controller_failure else list(getattr(failure, "worker_failures", {}).values())
    errors = [_origin(error) for error in candidates]
    for error in errors:
        if is_final(error):
            return error
    reasons = "; ".join(
        sorted({f"{type(error).__name__}: {' '.join(str(error).split())[:200]}" for error in errors or [failure]})
    )
    return RuntimeError(f"{run_name}: the workers failed too often: {reasons}")
