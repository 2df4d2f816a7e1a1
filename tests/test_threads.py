"""Which work runs in one thread, whatever the process may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from migvis import vae_fit
from migvis.config import VAEConfig
from migvis.metrics import render_fit
from migvis.threads import one_thread
from migvis.training import FitResult
from migvis.training import fit as real_fit


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_is_what_it_was_also_after_a_failure() -> None:
    @one_thread()
    def fails() -> None:
        raise ZeroDivisionError(torch.get_num_threads())

    with pytest.raises(ZeroDivisionError, match="1"):
        fails()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("together", "threads"), [(0, 1), (3, 1), (16, 2)])
def test_few_small_fits_take_one_thread_and_many_at_once_all(monkeypatch, together: int, threads: int) -> None:
    seen: list[int] = []

    def watched(*arguments: object, **options: object) -> FitResult:
        seen.append(torch.get_num_threads())
        return real_fit(*arguments, **options)

    monkeypatch.setattr(vae_fit, "fit", watched)
    responses = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    config = VAEConfig(group_count=2, group_rank=2, hidden_width=8, batch_size=20, epochs=1)
    if together:
        vae_fit.fit_vaes(responses, None, None, [config] * together, list(range(together)), category_count=0)
    else:
        vae_fit.fit_vae(responses, None, None, config, category_count=0, seed=0)
    assert seen == [threads]
    assert torch.get_num_threads() == 2


def test_renders_are_fitted_in_one_thread(monkeypatch) -> None:
    seen: list[int] = []

    def watched(light: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        raise InterruptedError

    monkeypatch.setattr(render_fit, "object_extent", watched)
    fit: Callable[..., object] = render_fit.fit_renders
    with pytest.raises(InterruptedError):
        fit(torch.zeros(1, 1, 32, 32), None)
    assert seen == [1]
    assert torch.get_num_threads() == 2
