"""Fits through Ray Train: any number of workers, death and resume, errors as themselves, Ctrl-C. Real Ray, so slow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from migvis.errors import InputError
from migvis.training import FitError, Progress, Shard, fit
from tune.ray_session import RAY_ENVIRONMENT, prepare_ray_environment
from tune.training_jobs import fit_with_ray_train, is_final

ROWS = 16


def fit_line(out, checkpoint, die_at=None, fail=None, *, shard, progress):
    """Fits y = A x by least squares on a batch drawn per step, in float64; may die once, or fail, on its last worker."""
    last = shard.rank == shard.world - 1
    Path(out, f"started-{shard.rank}-{os.getpid()}").touch()
    if fail is not None and last:
        raise fail
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, bias=False).double()

    def step_loss(step):
        died = Path(out, "died")
        if step == die_at and last and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        inputs = torch.randn(ROWS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        target = inputs @ torch.arange(6, dtype=torch.float64).reshape(3, 2)
        loss = (model(shard.take(inputs)) - shard.take(target)).square().mean()
        return loss, {"mse": loss.detach()}

    result = fit(
        model,
        step_loss,
        name="line",
        steps=40,
        learning_rate=0.1,
        checkpoint=Path(checkpoint),
        checkpoint_every=5,
        shard=shard,
        progress=progress,
        log_every=5,
    )
    if shard.rank == 0:
        torch.save(model.weight.detach(), Path(out, "weights.pt"))
    return {"start_step": result.start_step, "world": shard.world}


def test_the_environment_s_own_values_win_and_authentication_is_set_only_before_ray_is_imported(monkeypatch):
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_METRICS_ENABLED": "1"})
    prepare_ray_environment()
    assert os.environ == {**RAY_ENVIRONMENT, "RAY_AUTH_MODE": "disabled", "RAY_TRAIN_METRICS_ENABLED": "1"}
    for modules, mode in (({}, "token"), ({"ray": None}, None)):
        monkeypatch.setattr(os, "environ", {})
        monkeypatch.setattr(sys, "modules", modules)
        prepare_ray_environment()
        assert os.environ.get("RAY_AUTH_MODE") == mode


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (FitError("loss"), True),
        (InputError("file"), True),
        (KeyError("x"), True),
        (RuntimeError("Connection closed by peer"), False),
        (ConnectionResetError(), False),
    ],
)
def test_only_what_another_attempt_may_mend_is_retried(error, final):
    assert is_final(error) is final


@pytest.fixture(scope="module")
def ray_workers(local_ray):
    import ray

    # Workers cannot import this file by name.
    ray.cloudpickle.register_pickle_by_value(sys.modules[fit_line.__module__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[fit_line.__module__])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    fit_line(str(folder), str(folder / "checkpoint.pt"), shard=Shard(), progress=lambda update: None)
    return torch.load(folder / "weights.pt", weights_only=True)


def run(tmp_path, workers, **arguments):
    seen = []
    out = {"out": str(tmp_path), "checkpoint": str(tmp_path / "checkpoint.pt")}
    try:
        result = fit_with_ray_train(
            fit_line, {**out, **arguments}, workers=workers, folder=tmp_path, run_name="line", progress=seen.append
        )
    finally:
        assert not list(tmp_path.glob(".ray-train-*"))
    assert isinstance(seen[-1], Progress)
    assert (seen[-1].name, seen[-1].step, seen[-1].steps) == ("line", 40, 40)
    return result, torch.load(tmp_path / "weights.pt", weights_only=True)


@pytest.mark.slow
def test_one_worker_fits_the_same_weights_as_no_ray(ray_workers, reference, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    result, weights = run(tmp_path, 1)
    assert result == {"start_step": 0, "world": 1}
    torch.testing.assert_close(weights, reference, rtol=0, atol=1e-12)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
def test_of_two_workers_one_is_killed_and_the_weights_are_the_same(ray_workers, reference, tmp_path):
    result, weights = run(tmp_path, 2, die_at=23)
    assert (tmp_path / "died").exists()
    assert result == {"start_step": 20, "world": 2}
    torch.testing.assert_close(weights, reference, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_a_fit_s_error_arrives_as_itself_without_retry_though_another_worker_waits(ray_workers, tmp_path):
    with pytest.raises(FitError, match=r"^loss is nan at step 3$"):
        run(tmp_path, 2, fail=FitError("loss is nan at step 3"))
    assert len(list(tmp_path.glob("started-*"))) == 2


@pytest.mark.slow
def test_workers_that_never_fit_the_cluster_are_refused(ray_workers, tmp_path):
    with pytest.raises(InputError, match=r"^search.fit_workers=3: so many workers with a CPU each cannot be placed"):
        fit_with_ray_train(fit_line, {}, workers=3, folder=tmp_path, run_name="line")


@pytest.mark.slow
def test_control_c_stops_the_workers_and_is_a_keyboard_interrupt(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from pathlib import Path

            from tune.ray_session import prepare_ray_environment
            from tune.training_jobs import fit_with_ray_train

            folder = Path(sys.argv[1])

            def sleep(shard, progress):
                (folder / "pid").write_text(str(os.getpid()))
                time.sleep(600)

            if __name__ == "__main__":
                prepare_ray_environment()
                import ray

                ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
                try:
                    fit_with_ray_train(sleep, {}, workers=1, folder=folder, run_name="sleep")
                except KeyboardInterrupt:
                    (folder / "interrupted").touch()
            """
        )
    )
    driver = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    worker = int((tmp_path / "pid").read_text())
    driver.send_signal(signal.SIGINT)
    output, errors = driver.communicate(timeout=120)
    assert (tmp_path / "interrupted").exists(), errors
    assert not Path(f"/proc/{worker}").exists()
    assert (output, errors) == ("", "")
