"""The one training loop: Adam, averaged weights, checkpoint and resume, bf16, workers, progress.

A fit is a pure function of its initial weights and of `step_loss(step)`, which draws its own batch by
`migvis.randomness`. So a checkpoint holds tensors only, and a resumed fit equals the uninterrupted one
bitwise on a CPU. With several workers each takes its shard of the same global batch, gradients are
averaged after the backward pass, and the weights are those of one worker up to rounding.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from migvis.errors import InputError
from migvis.optimizer import Adam

Term = Tensor | float
StepLoss = Callable[[int], tuple[Tensor, Mapping[str, Term]]]

WARMUP_FRACTION = 0.05
"""Share of the steps in which schedule="cosine" rises linearly to the full learning rate."""


class FitError(RuntimeError):
    """A fit reached a non-finite loss or weight; the message names the fit, the step and the loss terms."""


@dataclass(frozen=True)
class Shard:
    """Which rows of a global batch this worker takes: `rank`, `rank + world`, `rank + 2 world`, …"""

    rank: int = 0
    world: int = 1

    def take(self, indices: Tensor) -> Tensor:
        """This worker's rows of `indices` [n, …]; workers whose rank is at least n % world get one less when n % world > 0.

        Raises InputError where a worker would have none.
        """
        if len(indices) < self.world:
            raise InputError(f"workers={self.world}: a batch of {len(indices)} samples is too small for as many workers")
        return indices[self.rank :: self.world]

    def share(self, taken: int, rows: int) -> float:
        """Factor on a mean over the `taken` samples of this worker, so that the mean over workers is that over all `rows`."""
        return taken * self.world / rows


WHOLE = Shard()
"""The shard of a single worker: everything."""


@dataclass(frozen=True)
class Progress:
    """How far a fit is: `step` of `steps` done, the last loss, seconds spent in this call and estimated seconds left."""

    name: str
    step: int
    steps: int
    loss: float
    seconds: float
    seconds_left: float


@dataclass
class FitResult:
    """`curves[term]` lists (steps done, value), on rank 0 from step 0 even after a resume; `seconds` is this call's wall time."""

    curves: dict[str, list[tuple[int, float]]]
    seconds: float
    start_step: int


class _AllGather(torch.autograd.Function):
    """All workers' rows in global order; its adjoint sums the workers' gradients of this worker's rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, shard: Shard, rows: int) -> Tensor:
        ctx.shard, ctx.local_rows = shard, tensor.shape[0]
        longest = math.ceil(rows / shard.world)
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        parts = [torch.empty_like(padded) for _ in range(shard.world)]
        distributed.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:rows]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return ctx.shard.take(total)[: ctx.local_rows], None, None


def gather(tensor: Tensor, shard: Shard, rows: int | None = None) -> Tensor:
    """All workers' rows of `tensor` [n_rank, …] -> [rows, …] in global row order, differentiable.

    `rows` is the size of the global batch; None means that every worker holds the same number. A loss that
    every worker computes in full from gathered rows gets, after `fit` has averaged the gradients over
    workers, the gradient of a single worker. The identity with one worker.
    """
    if shard.world == 1:
        return tensor
    total = tensor.shape[0] * shard.world if rows is None else rows
    gathered: Tensor = _AllGather.apply(tensor, shard, total)
    return gathered


def learning_rate_factor(step: int, steps: int, schedule: Literal["constant", "cosine"]) -> float:
    """Factor on the learning rate at `step` (from 0): 1, or a linear warm-up and then half a cosine down to 0."""
    if schedule == "constant":
        return 1.0
    warmup = max(1, round(WARMUP_FRACTION * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def averaging_decay(done: int, ema_decay: float) -> float:
    """Decay of the averaged weights after `done` steps: done/(done + 9) at first, so that little of the random start remains.

    A constant 0.998 would keep 3 % of it after 1800 steps.
    """
    return min(ema_decay, done / (done + 9))


class _State:
    """The live tensors of a fit by name: trainable weights, buffers, averaged weights, Adam's moments and step count."""

    def __init__(self, model: nn.Module, ema_decay: float | None) -> None:
        named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.weights: list[Tensor] = list(named.values())
        self.averages = [weight.detach().clone() for weight in self.weights] if ema_decay is not None else []
        self.optimizer = Adam(self.weights)
        self.tensors = {f"model.{name}": weight.detach() for name, weight in named.items()}
        self.tensors |= {f"model.{name}": buffer for name, buffer in model.named_buffers()}
        self.tensors |= {f"ema.{name}": average for name, average in zip(named, self.averages, strict=False)}
        self.tensors |= {f"adam.first.{name}": moment for name, moment in zip(named, self.optimizer.first, strict=True)}
        self.tensors |= {f"adam.second.{name}": moment for name, moment in zip(named, self.optimizer.second, strict=True)}
        self.tensors["adam.count"] = self.optimizer.count

    def load(self, path: Path, steps: int) -> tuple[int, dict[str, list[tuple[int, float]]]]:
        """Copy the checkpoint at `path` into the live tensors; returns the steps done and the curves."""
        try:
            stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
            done = int(stored["step"])
        except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
            raise InputError(f"checkpoint {path}: not a readable checkpoint of a fit ({type(error).__name__})") from error
        for name, tensor in self.tensors.items():
            if name not in stored or stored[name].shape != tensor.shape:
                raise InputError(f"checkpoint {path}: it belongs to another fit, tensor {name} is missing or of another shape")
        if done > steps:
            raise InputError(f"checkpoint {path}: it has {done} steps, more than the {steps} of this fit")
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(stored[name])
        curves = {
            name.removeprefix("curve."): [(int(at), float(value)) for at, value in tensor.tolist()]
            for name, tensor in stored.items()
            if name.startswith("curve.")
        }
        return done, curves

    def save(self, path: Path, done: int, curves: Mapping[str, list[tuple[int, float]]]) -> None:
        """Write the checkpoint beside `path`, then rename it, so that `path` is always a whole checkpoint."""
        stored = {name: tensor.detach() for name, tensor in self.tensors.items()}
        stored |= {f"curve.{name}": torch.tensor(points, dtype=torch.float64) for name, points in curves.items()}
        stored["step"] = torch.tensor(done)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            torch.save(stored, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def weights_finite(self) -> bool:
        return bool(torch.stack(torch._foreach_norm(self.weights)).isfinite().all())


def _broadcast(tensors: Mapping[str, Tensor], start: int, device: torch.device) -> int:
    """Give every worker the tensors and the start step of rank 0."""
    step = torch.tensor([start], device=device)
    distributed.broadcast(step, src=0)
    with torch.no_grad():
        for tensor in tensors.values():
            whole = tensor.contiguous()
            distributed.broadcast(whole, src=0)
            tensor.copy_(whole)
    return int(step)


def _average_over_workers(weights: list[Tensor], loss: Tensor, world: int) -> Tensor:
    """Average gradients and loss over workers in one all-reduce; returns the mean loss.

    The loss travels with the gradients, so a non-finite loss anywhere stops every worker at the same step.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients] + [loss.detach().reshape(1).to(gradients[0].dtype)])
    distributed.all_reduce(flat)
    flat /= world
    parts = flat.split([gradient.numel() for gradient in gradients] + [1])
    torch._foreach_copy_(gradients, [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=False)])
    return parts[-1][0]


def _term_values(terms: Mapping[str, Term], shard: Shard, device: torch.device) -> dict[str, float]:
    """The terms as numbers, averaged over workers."""
    values = torch.tensor([float(term) for term in terms.values()], dtype=torch.float64, device=device)
    if shard.world > 1:
        distributed.all_reduce(values)
        values /= shard.world
    return dict(zip(terms, values.tolist(), strict=False))


def check_finite(name: str, pending: list[tuple[int, Tensor, Mapping[str, Term]]]) -> None:
    """Raise FitError for the first of the pending (step, loss, terms) whose loss is not finite."""
    losses = torch.stack([loss for _, loss, _ in pending])
    if bool(losses.isfinite().all()):
        return
    step, loss, terms = next(entry for entry in pending if not math.isfinite(float(entry[1])))
    listed = ", ".join(f"{term} {float(value):.4g}" for term, value in terms.items())
    raise FitError(f"fit {name}: the loss is {float(loss)} at step {step}" + (f" ({listed})" if listed else ""))


def fit(
    model: nn.Module,
    step_loss: StepLoss,
    *,
    name: str,
    steps: int,
    learning_rate: float | Tensor,
    ema_decay: float | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    schedule: Literal["constant", "cosine"] = "constant",
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    shard: Shard = WHOLE,
    progress: Callable[[Progress], None] | None = None,
    log_every: int = 50,
) -> FitResult:
    """Fit the trainable weights of `model`, in place, by `steps` steps of Adam on `step_loss`.

    `step_loss(step)`, step from 0, returns (scalar loss, terms to log) on the model's device and depends on
    nothing but the step and the weights; `learning_rate` is that of Adam.step. An existing `checkpoint` is resumed;
    one is written every `checkpoint_every` steps and at the end, by rank 0. With `ema_decay` the model ends with the averaged
    weights, average <- decay * average + (1 - decay) * weight after each step (averaging_decay). With `shard.world` > 1 the
    process group is the caller's, weights start as rank 0's, and `progress` is called on every worker.
    The model is left in evaluation mode.

    Raises FitError at a non-finite loss or weight (the checkpoint stays the last good one), and InputError
    for a checkpoint that cannot be read or belongs to another fit.
    """
    state = _State(model, ema_decay)
    device = state.weights[0].device
    start, curves = 0, dict[str, list[tuple[int, float]]]()
    if checkpoint is not None and shard.rank == 0 and checkpoint.exists():
        start, curves = state.load(checkpoint, steps)
    if shard.world > 1:
        start = _broadcast(state.tensors, start, device)

    model.train()
    began = time.perf_counter()
    pending: list[tuple[int, Tensor, Mapping[str, Term]]] = []
    for step in range(start, steps):
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
            loss, terms = step_loss(step)
        state.optimizer.zero_grad()
        loss.backward()
        loss = _average_over_workers(state.weights, loss, shard.world) if shard.world > 1 else loss.detach()

        done = step + 1
        log = done % log_every == 0 or done == steps
        save = checkpoint is not None and (done % checkpoint_every == 0 or done == steps)
        pending.append((step, loss, {term: torch.as_tensor(value).detach() for term, value in terms.items()}))
        # Reading the loss waits for an accelerator, so there it is read only when something is to be written.
        if device.type == "cpu" or log or save:
            check_finite(name, pending)
            pending = pending[-1:] if log else []
        state.optimizer.step(learning_rate * learning_rate_factor(step, steps, schedule))
        if state.averages and ema_decay is not None:
            with torch.no_grad():
                torch._foreach_lerp_(state.averages, state.weights, 1 - averaging_decay(done, ema_decay))

        if log:
            values = {"loss": float(loss)} | _term_values(pending[-1][2], shard, device)
            pending = []
            for term, value in values.items():
                curves.setdefault(term, []).append((done, value))
        if save or done == steps:
            if not state.weights_finite():
                raise FitError(f"fit {name}: weights are not finite after step {step}, loss {float(loss):.4g}")
            if checkpoint is not None and shard.rank == 0:
                state.save(checkpoint, done, curves)
        if log and progress is not None:
            seconds = time.perf_counter() - began
            left = seconds / (done - start) * (steps - done)
            progress(Progress(name, done, steps, curves["loss"][-1][1], seconds, left))

    if state.averages:
        with torch.no_grad():
            torch._foreach_copy_(state.weights, state.averages)
    model.eval()
    return FitResult(curves, time.perf_counter() - began, start)
