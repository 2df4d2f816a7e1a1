from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from torch import Tensor, nn

from migvis.training import FitResult, StepLoss, Term, fit
from tests.postgresql import postgresql_server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a database on a real PostgreSQL server."""
    try:
        with postgresql_server() as url:
            yield url
    except FileNotFoundError as reason:
        pytest.skip(str(reason))


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
