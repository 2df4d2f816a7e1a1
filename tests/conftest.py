from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from migvis.training import fit


class _Killed(Exception):
    pass


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """`with killed_after(steps, module):` a fit of that module that writes a checkpoint at every step, and ends in the
    step after `steps` as if killed."""

    @contextmanager
    def killed(steps: int, module: str) -> Iterator[None]:
        def stopping(model, step_loss, **options):  # type: ignore[no-untyped-def]
            def loss(step: int) -> object:
                if step == steps:
                    raise _Killed
                return step_loss(step)

            return fit(model, loss, **{**options, "checkpoint_every": 1})

        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.fit", stopping)
            with pytest.raises(_Killed):
                yield

    return killed
