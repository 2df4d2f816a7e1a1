"""Fits of the neural VAE: one alone, on any number of workers, or many at once as one batched program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from migvis import randomness
from migvis.config import VAEConfig
from migvis.errors import InputError
from migvis.threads import one_thread
from migvis.training import WHOLE, FitResult, Progress, Shard, check_finite, fit
from migvis.vae import LossWeights, NeuralVAE, loss_weights, stacked, training_loss, unstack

LOG_EVERY = 50
MANY = 16
"""VAEs in one batched fit from which on its operations are large enough for several threads."""
ROTATION_COUNT = 3
OWN_FIELDS = {"pc_weight", "kl_weight", "supervision_weight", "category_weight", "learning_rate"}
"""Fields in which the VAEs of one batched fit may differ, beside their seed."""


def fit_vae(
    responses: Tensor,
    pose: Tensor | None,
    category: Tensor | None,
    config: VAEConfig,
    *,
    category_count: int,
    seed: int,
    shard: Shard = WHOLE,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> tuple[NeuralVAE, FitResult]:
    """Fit a NeuralVAE to the training stimuli of one subject, in float64 if the responses are, else in float32.

    precision="bf16" runs the networks in bfloat16; the partial correlation, a difference of large terms, stays in float32.

    Raw training data, a row for each distinct stimulus: responses [n, N], pose [n, 6] (degrees first; only its
    first 3 columns are read unless config.pose_labels is "all"), category int64 [n]. A label that is None, or
    whose weight is 0, has no read-out. The curves hold mse, kl, pose, category, pc (nats) and pc_saturation =
    PC / ((G − 1)·log n), which near 1 says that the posteriors are so narrow that PC has no gradient.

    Raises InputError for data of the wrong shape or range and for constant units, FitError as `fit` does.
    """
    data = _training_data(responses, pose, category, config, category_count, device)
    vae, weights = data.new_vae(config, seed), loss_weights(config)

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample = shard.take(randomness.epoch_batch(seed, "vae/batch", step, data.count, data.rows)).to(device)
        noise = randomness.normal(seed, "vae/noise", step, sample, (vae.latent_count,)).to(data.normalised.dtype)
        return training_loss(
            vae, *data.take(sample), noise, weights=weights, dataset_size=data.count, rows=data.rows, shard=shard,
            with_pc=config.pc_weight > 0 or data.is_logged(step),
        )  # fmt: skip

    with one_thread():
        result = fit(
            vae, step_loss, name="vae", steps=data.steps, learning_rate=config.learning_rate, checkpoint=checkpoint, shard=shard,
            progress=progress, log_every=LOG_EVERY, precision=precision,
        )  # fmt: skip
    data.finish(vae, result.curves)
    return vae, result


def fit_vaes(
    responses: Tensor,
    pose: Tensor | None,
    category: Tensor | None,
    configs: Sequence[VAEConfig],
    seeds: Sequence[int],
    *,
    category_count: int,
    names: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> list[tuple[NeuralVAE, FitResult]]:
    """What `fit_vae` returns for each of K configurations and its seed, all fitted at once.

    The K networks are stacked, and each step is one batched program on K batches: a small VAE's step is bound by
    the number of its operations, not by their size. They equal separate fits up to rounding, which a long fit of few
    stimuli amplifies: seen after a thousand steps were 3e-7 of a weight with 1843 stimuli, and 5e-2 with 70. The seconds
    of each are its share of the whole.

    names: what a FitError calls the K fits. Raises what `fit_vae` raises, and InputError unless
    `can_be_fitted_together`; a loss that is not finite ends all K.
    """
    if not configs or len(configs) != len(seeds):
        raise InputError(f"fit_vaes: expected a seed for each configuration, got {len(configs)} and {len(seeds)}")
    if not can_be_fitted_together(configs):
        raise InputError(f"fit_vaes: the configurations may differ in {', '.join(sorted(OWN_FIELDS))} only, and not in labels")
    data = _training_data(responses, pose, category, configs[0], category_count, device)
    vaes = [data.new_vae(config, seed) for config, seed in zip(configs, seeds, strict=True)]
    dtype, latent_count = data.normalised.dtype, vaes[0].latent_count
    by_term = zip(*map(loss_weights, configs), strict=True)
    weights = LossWeights(*(torch.tensor(own, dtype=dtype, device=device) for own in by_term))
    always_with_pc = any(config.pc_weight > 0 for config in configs)
    stack = stacked(vaes)

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batches = [randomness.epoch_batch(seed, "vae/batch", step, data.count, data.rows) for seed in seeds]
        samples = torch.stack(batches).to(device)
        noise = randomness.normal_of_each(seeds, "vae/noise", step, samples, (latent_count,)).to(dtype)
        logged = data.is_logged(step)
        losses, terms = training_loss(
            stack, *data.take(samples), noise, weights=weights, dataset_size=data.count, rows=data.rows, shard=WHOLE,
            with_pc=always_with_pc or logged,
        )  # fmt: skip
        total = losses.sum()
        # On an accelerator the loss is waited for at logged steps only.
        finite = bool(total.isfinite()) if logged or total.device.type == "cpu" else True
        if finite and not logged:
            return total, {}
        if not finite:
            wrong = int((~losses.isfinite()).nonzero()[0])
            name = str(wrong) if names is None else names[wrong]
            own = {term: value[wrong].detach() for term, value in terms.items()}
            check_finite(f"vae {name}", [(step, losses[wrong].detach(), own)])
        each = {"loss": losses, **terms}
        return total, {f"{term}/{index}": value[index] for index in range(len(vaes)) for term, value in each.items()}

    rates = [config.learning_rate for config in configs]
    with one_thread() if len(vaes) < MANY else nullcontext():
        result = fit(
            stack, step_loss, name=f"vae × {len(vaes)}", steps=data.steps,
            learning_rate=rates[0] if len(set(rates)) == 1 else torch.tensor(rates, dtype=dtype, device=device),
            checkpoint=checkpoint, progress=progress, log_every=LOG_EVERY, precision=precision,
        )  # fmt: skip
    unstack(stack, vaes)
    fitted = []
    for index, vae in enumerate(vaes):
        vae.eval()
        suffix = f"/{index}"
        curves = {name.removesuffix(suffix): curve for name, curve in result.curves.items() if name.endswith(suffix)}
        data.finish(vae, curves)
        fitted.append((vae, FitResult(curves, result.seconds / len(vaes), result.start_step)))
    return fitted


def can_be_fitted_together(configs: Sequence[VAEConfig]) -> bool:
    """Whether `fit_vaes` takes them: they differ in weights and learning rate only, and learn from the same labels."""
    return len({shared_by(config) for config in configs}) == 1


def shared_by(config: VAEConfig) -> str:
    """What VAEs that are fitted together have in common, as text: equal texts `can_be_fitted_together`."""
    return f"{config.model_dump_json(exclude=OWN_FIELDS)} {_learns_pose(config)} {_learns_category(config)}"


def _learns_pose(config: VAEConfig) -> bool:
    return config.supervision_weight > 0


def _learns_category(config: VAEConfig) -> bool:
    return config.supervision_weight * config.category_weight > 0


@dataclass(frozen=True)
class _TrainingData:
    """Training stimuli as the loss reads them: normalised [n, N], pose [n, k] z-scored and category [n], or None."""

    normalised: Tensor
    pose: Tensor | None
    category: Tensor | None
    category_count: int
    rows: int
    steps: int
    statistics: Mapping[str, Tensor]
    """The buffers of a NeuralVAE that these stimuli determine, by name."""

    @property
    def count(self) -> int:
        return len(self.normalised)

    def take(self, sample: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """normalised, pose and category of the stimuli `sample`, of any shape."""
        pose = None if self.pose is None else self.pose[sample]
        return self.normalised[sample], pose, None if self.category is None else self.category[sample]

    def is_logged(self, step: int) -> bool:
        return (step + 1) % LOG_EVERY == 0 or step + 1 == self.steps

    def new_vae(self, config: VAEConfig, seed: int) -> NeuralVAE:
        """A VAE with random weights, and the statistics of these stimuli in its buffers."""
        # Weights from the seed alone, whatever the global generator holds, which is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(randomness.derive_seed(seed, "vae", "weights"))
            pose_count = 0 if self.pose is None else self.pose.shape[1]
            vae = NeuralVAE(config, self.normalised.shape[1], pose_count, 0 if self.category is None else self.category_count)
        vae = vae.to(self.normalised.device, self.normalised.dtype)
        for name, value in self.statistics.items():
            vae.get_buffer(name).copy_(value)
        return vae

    @torch.no_grad()
    def finish(self, vae: NeuralVAE, curves: dict[str, list[tuple[int, float]]]) -> None:
        """What is known at the end of a fit only: the spread of its latents, and how saturated its PC was."""
        saturation = (vae.group_count - 1) * math.log(self.count)
        curves["pc_saturation"] = [(at, value / saturation) for at, value in curves["pc"]]
        vae.latent_scale.copy_(vae.encode_normalised(self.normalised)[0].std(dim=0, correction=0))


def _training_data(
    responses: Tensor, pose: Tensor | None, category: Tensor | None, config: VAEConfig, category_count: int,
    device: torch.device | str,
) -> _TrainingData:  # fmt: skip
    """Raises InputError for data of the wrong shape or range and for constant units."""
    _check(responses, pose, category, category_count)
    dtype = torch.float64 if responses.dtype == torch.float64 else torch.float32
    responses = responses.to(device, dtype)
    statistics = {"response_mean": responses.mean(dim=0), "response_scale": responses.std(dim=0, correction=0)}
    labels = None
    if pose is not None and _learns_pose(config):
        labels = (pose if config.pose_labels == "all" else pose[:, :ROTATION_COUNT]).to(device, dtype)
        spread = labels.std(dim=0, correction=0)
        statistics |= {"pose_mean": labels.mean(dim=0), "pose_scale": torch.where(spread > 0, spread, 1)}
        labels = (labels - statistics["pose_mean"]) / statistics["pose_scale"]
    rows = min(config.batch_size, len(responses))
    return _TrainingData(
        normalised=(responses - statistics["response_mean"]) / statistics["response_scale"],
        pose=labels,
        category=category.to(device) if category is not None and _learns_category(config) else None,
        category_count=category_count,
        rows=rows,
        steps=config.epochs * (len(responses) // rows),
        statistics=statistics,
    )


def _check(responses: Tensor, pose: Tensor | None, category: Tensor | None, category_count: int) -> None:
    if responses.ndim != 2 or responses.shape[0] < 2:
        raise InputError(f"responses: expected [stimuli ≥ 2, units], got shape {tuple(responses.shape)}")
    if not bool(responses.isfinite().all()):
        raise InputError("responses: they hold values that are not finite")
    constant = (responses == responses[0]).all(dim=0).nonzero()
    if len(constant):
        raise InputError(f"responses: unit {int(constant[0])} is constant over the {len(responses)} training stimuli")
    if pose is not None and (pose.ndim != 2 or pose.shape[0] != len(responses) or pose.shape[1] < ROTATION_COUNT):
        raise InputError(f"pose: expected [{len(responses)}, 3 or 6], got shape {tuple(pose.shape)}")
    if pose is not None and not bool(pose.isfinite().all()):
        raise InputError("pose: it holds values that are not finite")
    if category is not None and tuple(category.shape) != (len(responses),):
        raise InputError(f"category: expected shape ({len(responses)},), got {tuple(category.shape)}")
    if category is not None and not 0 <= int(category.min()) <= int(category.max()) < category_count:
        raise InputError(f"category: values {int(category.min())}…{int(category.max())} lie outside 0…{category_count - 1}")
