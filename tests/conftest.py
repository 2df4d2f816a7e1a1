from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from torch import Tensor, nn

from migvis.training import FitResult, StepLoss, Term, fit
from tests import services

os.environ.pop("UV", None)  # that pytest was started by `uv run` changes the commands that are printed


class _Killed(Exception):
    pass


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], AbstractContextManager[None]]:
    """`with killed_after(steps, module):` a fit of that module that writes a checkpoint at every step, and ends in the
    step after `steps` as if killed."""

    @contextmanager
    def killed(steps: int, module: str) -> Iterator[None]:
        def stopping(model: nn.Module, step_loss: StepLoss, **options: Any) -> FitResult:
            def loss(step: int) -> tuple[Tensor, Mapping[str, Term]]:
                if step == steps:
                    raise _Killed
                return step_loss(step)

            return fit(model, loss, **{**options, "checkpoint_every": 1})

        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.fit", stopping)
            with pytest.raises(_Killed):
                yield

    return killed


@pytest.fixture(scope="session")
def postgres() -> Iterator[services.Postgres]:
    """A real PostgreSQL for all tests of the session; each takes a database of its own. Not where it is not installed."""
    if reason := services.missing_postgres():
        pytest.skip(reason)
    with services.postgres() as service:
        yield service


@pytest.fixture(scope="session")
def object_store() -> Iterator[services.ObjectStore]:
    """A real S3-compatible object store for all tests of the session; each takes a bucket of its own. Not without it."""
    if reason := services.missing_object_store():
        pytest.skip(reason)
    with services.object_store() as store:
        yield store
