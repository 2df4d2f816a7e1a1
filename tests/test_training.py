"""The training loop: resume, averaged weights, workers, and what it does when a fit goes wrong."""

from __future__ import annotations

import itertools
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from migvis import randomness
from migvis.errors import InputError
from migvis.training import FitError, FitResult, Progress, Shard, StepLoss, fit, gather, learning_rate_factor

STEPS = 30


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def regression_loss(model: nn.Module) -> StepLoss:
    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample = torch.arange(16)
        inputs = randomness.normal(0, "inputs", step, sample, (4,))
        loss = (model(inputs) - inputs[:, :3].sin()).square().mean()
        return loss, {"twice": 2 * loss}

    return step_loss


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_resumed_fit_equals_uninterrupted_fit_bitwise(tmp_path: Path, ema_decay: float | None) -> None:
    whole, parts = make_model(), make_model()
    settings = {"name": "test", "steps": STEPS, "learning_rate": 1e-2, "ema_decay": ema_decay}
    settings |= {"checkpoint_every": 7, "log_every": 5}
    reference = fit(whole, regression_loss(whole), checkpoint=tmp_path / "whole.pt", **settings)

    def interrupt(progress: Progress) -> None:
        if progress.step == 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(parts, regression_loss(parts), checkpoint=tmp_path / "parts.pt", progress=interrupt, **settings)
    parts = make_model(seed=5)
    resumed = fit(parts, regression_loss(parts), checkpoint=tmp_path / "parts.pt", **settings)

    assert resumed.start_step == 14
    assert resumed.curves == reference.curves
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    stored = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "parts")]
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])
    assert int(stored[0]["adam.count"]) == STEPS
    assert any(name.startswith("ema.") for name in stored[0]) == (ema_decay is not None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.pt", "whole.pt"]


def test_finished_fit_is_read_not_repeated(tmp_path: Path) -> None:
    settings = {"name": "test", "steps": STEPS, "learning_rate": 1e-2, "ema_decay": 0.9, "checkpoint": tmp_path / "fit.pt"}
    first, second = make_model(), make_model(seed=5)
    fit(first, regression_loss(first), **settings)

    def never(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        raise AssertionError(step)

    assert fit(second, never, **settings).start_step == STEPS
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_equals_a_plain_adam_loop_with_averaged_weights() -> None:
    fitted, plain = make_model(), make_model()
    result = fit(fitted, regression_loss(fitted), name="test", steps=STEPS, learning_rate=1e-2, ema_decay=0.9, log_every=10)
    weights = list(plain.parameters())
    first, second = [torch.zeros_like(weight) for weight in weights], [torch.zeros_like(weight) for weight in weights]
    average = [weight.detach().clone() for weight in plain.parameters()]
    losses = []
    for step in range(STEPS):
        loss, _ = regression_loss(plain)(step)
        for index, gradient in enumerate(torch.autograd.grad(loss, weights)):
            first[index] = 0.9 * first[index] + 0.1 * gradient
            second[index] = 0.999 * second[index] + 0.001 * gradient.square()
            mean, square = first[index] / (1 - 0.9 ** (step + 1)), second[index] / (1 - 0.999 ** (step + 1))
            weights[index].data -= 1e-2 * mean / (square.sqrt() + 1e-8)
        losses.append(loss.item())
        decay = min(0.9, (step + 1) / (step + 10))
        average = [decay * old + (1 - decay) * new.detach() for old, new in zip(average, plain.parameters(), strict=True)]
    for weight, expected in zip(fitted.parameters(), average, strict=True):
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)
    assert [at for at, _ in result.curves["loss"]] == [10, 20, 30]
    logged = [losses[9], losses[19], losses[29]]
    assert [value for _, value in result.curves["loss"]] == pytest.approx(logged, rel=1e-5)
    assert [value for _, value in result.curves["twice"]] == pytest.approx([2 * loss for loss in logged], rel=1e-5)
    assert not fitted.training


def test_frozen_weights_stay_and_are_not_stored(tmp_path: Path) -> None:
    model = make_model()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, regression_loss(model), name="test", steps=3, learning_rate=1e-2, checkpoint=tmp_path / "fit.pt")
    assert torch.equal(model[0].weight, before)
    assert not any(".0." in name for name in torch.load(tmp_path / "fit.pt", weights_only=True))


def test_progress_counts_down() -> None:
    model, seen = make_model(), []
    fit(model, regression_loss(model), name="small", steps=25, learning_rate=1e-2, progress=seen.append, log_every=10)
    assert [(p.name, p.step, p.steps) for p in seen] == [("small", 10, 25), ("small", 20, 25), ("small", 25, 25)]
    assert seen[-1].seconds_left == 0
    assert seen[0].seconds_left == pytest.approx(1.5 * seen[0].seconds)


def test_non_finite_loss_names_fit_step_and_terms_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    model = make_model()

    def diverging(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, _ = regression_loss(model)(step)
        return loss * (math.nan if step == 12 else 1), {"kl": torch.tensor(math.inf)}

    with pytest.raises(FitError, match=r"fit small: the loss is nan at step 12 \(kl inf\)"):
        fit(model, diverging, name="small", steps=STEPS, learning_rate=1e-2, checkpoint=tmp_path / "fit.pt", checkpoint_every=10)
    stored = torch.load(tmp_path / "fit.pt", weights_only=True)
    assert int(stored["step"]) == 10
    assert all(bool(tensor.isfinite().all()) for tensor in stored.values())


def test_non_finite_gradient_is_not_written_to_the_checkpoint(tmp_path: Path) -> None:
    model = make_model()

    def infinite_slope(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = regression_loss(model)(step)
        weight = model[0].weight[0, 0]
        # A finite loss whose gradient is infinite: the square root at 0.
        return (loss + (weight - weight.detach()).sqrt() if step == 19 else loss), terms

    with pytest.raises(FitError, match="fit small: weights are not finite after step 19"):
        fit(model, infinite_slope, name="small", steps=40, learning_rate=0.01, checkpoint=tmp_path / "a.pt", checkpoint_every=10)
    assert int(torch.load(tmp_path / "a.pt", weights_only=True)["step"]) == 10


def test_foreign_and_broken_checkpoints_are_input_errors(tmp_path: Path) -> None:
    path, model, wider = tmp_path / "fit.pt", make_model(), nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
    fit(model, regression_loss(model), name="test", steps=4, learning_rate=1e-2, checkpoint=path)
    with pytest.raises(InputError, match=r"fit\.pt: it belongs to another fit"):
        fit(wider, regression_loss(wider), name="test", steps=4, learning_rate=1e-2, checkpoint=path)
    with pytest.raises(InputError, match=r"fit\.pt: it has 4 steps, more than the 2"):
        fit(model, regression_loss(model), name="test", steps=2, learning_rate=1e-2, checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"fit\.pt: not a readable checkpoint"):
        fit(model, regression_loss(model), name="test", steps=4, learning_rate=1e-2, checkpoint=path)


def test_bf16_lowers_the_loss_and_keeps_float32_weights() -> None:
    model = make_model()
    dtypes = set()

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        dtypes.add(model(torch.zeros(1, 4)).dtype)
        return regression_loss(model)(step)

    result = fit(model, step_loss, name="test", steps=200, learning_rate=1e-2, precision="bf16", log_every=1)
    assert dtypes == {torch.bfloat16}
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert result.curves["loss"][-1][1] < 0.2 * result.curves["loss"][0][1]


def test_cosine_schedule_warms_up_and_ends_near_zero() -> None:
    factors = [learning_rate_factor(step, 100, "cosine") for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0
    assert all(a > b for a, b in itertools.pairwise(factors[5:]))
    assert factors[-1] < 1e-3
    assert learning_rate_factor(57, 100, "constant") == 1.0


WAIT = timedelta(seconds=120)


def worker_loss(model: nn.Module, shard: Shard) -> StepLoss:
    """A per-sample mean on the worker's own rows, and two losses over pairs of gathered rows; the batch is odd."""
    rows = 13

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample = shard.take(torch.arange(rows))
        inputs = randomness.normal(0, "inputs", step, sample, (4,)).double()
        outputs = model(inputs)
        reconstruction = (outputs - inputs[:, :3]).square().sum() * shard.world / rows
        everyone, everyones_inputs = gather(outputs, shard, rows), gather(inputs, shard, rows)
        mixture = torch.logsumexp(-torch.cdist(everyone, everyone).square(), dim=1).mean()
        scores = everyones_inputs[:, :3] @ everyone.T
        contrast = nn.functional.cross_entropy(scores, torch.arange(rows))
        return reconstruction + 0.1 * mixture + 0.1 * contrast, {"reconstruction": reconstruction}

    return step_loss


def fit_as_worker(shard: Shard, folder: Path, steps: int) -> FitResult:
    # Every worker starts from other weights: rank 0's must win.
    model = make_model(seed=shard.rank, dtype=torch.float64)
    result = fit(
        model, worker_loss(model, shard), name="test", steps=steps, learning_rate=1e-2, ema_decay=0.9, shard=shard,
        checkpoint=folder / "fit.pt", checkpoint_every=4, log_every=5,
    )  # fmt: skip
    torch.save(model.state_dict(), folder / f"weights{shard.rank}.pt")
    return result


def run_worker(index: int, world: int, folder: Path) -> None:
    """Rank index + 1; this process is rank 0, with index −1."""
    rank = index + 1
    store = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=WAIT)
    try:
        fit_as_worker(Shard(rank, world), folder, steps=8)
        result = fit_as_worker(Shard(rank, world), folder, steps=12)
        torch.save(result.curves["loss"] + result.curves["reconstruction"], folder / f"curves{rank}.pt")
    finally:
        distributed.destroy_process_group()


def test_two_workers_and_a_resume_give_the_weights_of_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    expected = fit_as_worker(Shard(), tmp_path / "one", steps=12)
    other = torch.multiprocessing.spawn(run_worker, args=(2, tmp_path / "two"), nprocs=1, join=False)
    run_worker(-1, 2, tmp_path / "two")
    while not other.join():
        pass
    wanted = expected.curves["loss"] + expected.curves["reconstruction"]
    one = torch.load(tmp_path / "one" / "weights0.pt", weights_only=True)
    for rank in range(2):
        two = torch.load(tmp_path / "two" / f"weights{rank}.pt", weights_only=True)
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-10)
    # Rank 0 has the whole curve; the last step of its first call, 8, was logged too.
    points = torch.load(tmp_path / "two" / "curves0.pt", weights_only=True)
    assert [value for at, value in points if at != 8] == pytest.approx([value for _, value in wanted], abs=1e-10)
