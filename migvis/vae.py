"""The neural VAE: responses of a population to latent groups, its loss (A Eq. 2), and its fit.

D = G * D_g latent dimensions; group g (1…G) is columns (g − 1)·D_g … g·D_g. Group 1 reads out the pose and
group 2 the category, where the data have these labels; the other groups are unsupervised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from migvis import randomness
from migvis.config import VAEConfig
from migvis.errors import InputError
from migvis.training import WHOLE, FitResult, Progress, Shard, fit, gather

LOG_VARIANCE_RANGE = (-12.0, 6.0)
"""Posterior log-variances are held in here: sd between 0.0025 and 20 where the prior's is 1."""

LOG_EVERY = 50
ROTATION_COUNT = 3


class NeuralVAE(nn.Module):
    """Encoder, decoder and read-outs, each MLP with one hidden ReLU layer.

    A label count of 0 means that the label is absent, and its read-out with it. Buffers hold what turns raw
    values into the model's: response_mean and response_scale [N], pose_mean and pose_scale [pose_count], and
    latent_scale [D], the sd of posterior means over the training images.
    """

    response_mean: Tensor
    response_scale: Tensor
    pose_mean: Tensor
    pose_scale: Tensor
    latent_scale: Tensor

    def __init__(self, config: VAEConfig, unit_count: int, pose_count: int, category_count: int) -> None:
        super().__init__()
        if pose_count and config.readout == "diagonal" and pose_count != config.group_rank:
            raise InputError(f"vae.readout: diagonal needs group_rank {config.group_rank} = number of pose labels {pose_count}")
        self.config = config
        self.unit_count, self.pose_count, self.category_count = unit_count, pose_count, category_count
        self.group_count, self.group_rank = config.group_count, config.group_rank
        self.latent_count = config.group_count * config.group_rank
        width = config.hidden_width
        self.encoder = nn.Sequential(nn.Linear(unit_count, width), nn.ReLU(), nn.Linear(width, 2 * self.latent_count))
        self.decoder = nn.Sequential(nn.Linear(self.latent_count, width), nn.ReLU(), nn.Linear(width, unit_count))
        self.pose_readout: nn.Module | None = None
        self.category_readout: nn.Module | None = None
        if pose_count:
            self.pose_readout = Diagonal(pose_count) if config.readout == "diagonal" else nn.Linear(self.group_rank, pose_count)
        if category_count:
            self.category_readout = nn.Linear(self.group_rank, category_count)
        self.register_buffer("response_mean", torch.zeros(unit_count))
        self.register_buffer("response_scale", torch.ones(unit_count))
        self.register_buffer("pose_mean", torch.zeros(pose_count))
        self.register_buffer("pose_scale", torch.ones(pose_count))
        self.register_buffer("latent_scale", torch.ones(self.latent_count))

    def normalise(self, responses: Tensor) -> Tensor:
        """Raw responses [n, N] -> z-scored by the training statistics [n, N]."""
        return (responses - self.response_mean) / self.response_scale

    def encode(self, responses: Tensor) -> tuple[Tensor, Tensor]:
        """Raw responses [n, N] -> mean and log-variance of q(z|x), each [n, D]."""
        return self.encode_normalised(self.normalise(responses))

    def encode_normalised(self, normalised: Tensor) -> tuple[Tensor, Tensor]:
        """Z-scored responses [n, N] -> mean and log-variance of q(z|x), each [n, D]."""
        mean, log_var = self.encoder(normalised).chunk(2, dim=1)
        return mean, log_var.clamp(*LOG_VARIANCE_RANGE)

    def decode(self, z: Tensor) -> Tensor:
        """Latents [n, D] -> z-scored responses [n, N]."""
        decoded: Tensor = self.decoder(z)
        return decoded

    def group(self, z: Tensor, group: int) -> Tensor:
        """Latents [n, D] -> those of group 1…G [n, D_g]."""
        return z[:, (group - 1) * self.group_rank : group * self.group_rank]

    def read_pose(self, z: Tensor) -> Tensor:
        """Latents [n, D] -> z-scored pose labels [n, pose_count], from group 1. InputError without pose labels."""
        if self.pose_readout is None:
            raise InputError("vae: it was fitted without pose labels, so there is no pose to read out")
        pose: Tensor = self.pose_readout(self.group(z, 1))
        return pose

    def read_category(self, z: Tensor) -> Tensor:
        """Latents [n, D] -> category logits [n, category_count], from group 2. InputError without category labels."""
        if self.category_readout is None:
            raise InputError("vae: it was fitted without category labels, so there is no category to read out")
        logits: Tensor = self.category_readout(self.group(z, 2))
        return logits


class Diagonal(nn.Module):
    """One factor per dimension, [n, k] -> [n, k]: label k is read from latent k alone, so the group is axis-aligned."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(count))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.weight


def kl_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(q(z|x) ‖ N(0, I)) of [n, D] in nats, a mean over samples *and dimensions*."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()


def partial_correlation(z: Tensor, mean: Tensor, log_var: Tensor, group_count: int, dataset_size: int) -> Tensor:
    """PC = E_q(z)[log q(z) − Σ_g log q(z_g)] in nats (the last term of A Eq. 2), a scalar.

    z [b, D] is one sample of each posterior N(mean, exp(log_var)) [b, D], a batch of a data set of N =
    `dataset_size` samples. log q(z_i) ≈ logsumexp_j(log q(z_i|x_j) + log w_ij) with w_ii = 1/N and
    w_ij = (N − 1)/(N(b − 1)), and the same within each group of D / group_count columns; b = N is the exact
    mixture. Narrow posteriors saturate it at (G − 1)·log N.

    Raises InputError for b = 1, b > N, and a D that the groups do not divide.
    """
    batch, latent_count = z.shape
    if batch < 2:
        raise InputError(f"partial_correlation: the batch needs at least 2 samples, got {batch}")
    if batch > dataset_size:
        raise InputError(f"partial_correlation: dataset_size {dataset_size} is smaller than the batch of {batch}")
    if group_count < 1 or latent_count % group_count:
        raise InputError(f"partial_correlation: {latent_count} latent dimensions do not divide into {group_count} groups")

    # log q(z_i|x_j) as a quadratic form, Σ_d −½τ_j z_i² + τ_j μ_j z_i − ½(τ_j μ_j² + log σ_j²) with τ = 1/σ²: its
    # terms are of size τ and nearly cancel, so the products (b²·D, no b×b×D tensor) are in float64. The
    # constant log 2π is the same in the joint and in the sum of the groups, and left out.
    samples, means, log_vars = (tensor.double().unflatten(1, (group_count, -1)).transpose(0, 1) for tensor in (z, mean, log_var))
    precision = (-log_vars).exp()
    weighted = precision * means
    constant = -0.5 * (weighted * means + log_vars).sum(dim=2)
    features = torch.cat([samples.square(), samples], dim=2)  # [G, b, 2 D_g]
    coefficients = torch.cat([-0.5 * precision, weighted], dim=2)
    groups = torch.baddbmm(constant[:, None, :], features, coefficients.transpose(1, 2)).to(z.dtype)  # [G, b, b]

    # With c_i = logsumexp_j(M_ij + log w_ij) − (M_ii + log w_ii), a cross-entropy whose target is the sample's own
    # posterior, the M_ii of the joint and of its groups cancel: PC = mean(c_joint − Σ_g c_g) + (G − 1)·log N.
    # Only log w_ii − log w_ij matters to c.
    own = torch.eye(batch, dtype=z.dtype, device=z.device) * math.log((batch - 1) / (dataset_size - 1))
    logits = torch.cat([groups.sum(dim=0, keepdim=True), groups]) + own
    targets = torch.arange(batch, device=z.device).repeat(1 + group_count)
    entropies = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").unflatten(0, (1 + group_count, batch))
    return (entropies[0] - entropies[1:].sum(dim=0)).mean() + (group_count - 1) * math.log(dataset_size)


def training_loss(
    vae: NeuralVAE, normalised: Tensor, pose: Tensor | None, category: Tensor | None, noise: Tensor,
    *, dataset_size: int, rows: int, shard: Shard, with_pc: bool,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The negative lower bound of A Eq. 2 on this worker's n of `rows` samples; returns it and its unweighted terms.

    normalised [n, N], pose [n, k] z-scored, category int64 [n], noise [n, D] standard normal. Means over
    samples are scaled so that their mean over workers is the global batch's. `with_pc` computes PC even where
    its weight is 0.
    """
    config = vae.config
    share = normalised.shape[0] * shard.world / rows
    mean, log_var = vae.encode_normalised(normalised)
    z = mean + (0.5 * log_var).exp() * noise
    terms = {"mse": share * F.mse_loss(vae.decode(z), normalised), "kl": share * kl_divergence(mean, log_var)}
    loss = terms["mse"] + config.kl_weight * terms["kl"]
    if pose is not None:
        terms["pose"] = share * F.mse_loss(vae.read_pose(z), pose)
        loss = loss + config.supervision_weight * terms["pose"]
    if category is not None:
        terms["category"] = share * F.cross_entropy(vae.read_category(z), category)
        loss = loss + config.supervision_weight * config.category_weight * terms["category"]
    if config.pc_weight > 0 or with_pc:
        z, mean, log_var = gather(torch.cat([z, mean, log_var], dim=1), shard, rows).chunk(3, dim=1)
        with torch.autocast(z.device.type, enabled=False):
            z, mean, log_var = (tensor.to(normalised.dtype) for tensor in (z, mean, log_var))
            terms["pc"] = partial_correlation(z, mean, log_var, config.group_count, dataset_size)
        loss = loss + config.pc_weight * terms["pc"]
    return loss, terms


def standard(config: VAEConfig) -> VAEConfig:
    """The standard VAE of the same size: neither supervision nor partial correlation."""
    return config.model_copy(update={"supervision_weight": 0.0, "pc_weight": 0.0})


def _check_training_data(responses: Tensor, pose: Tensor | None, category: Tensor | None, category_count: int) -> None:
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
    _check_training_data(responses, pose, category, category_count)
    dtype = torch.float64 if responses.dtype == torch.float64 else torch.float32
    responses = responses.to(device, dtype)
    labels = None
    if pose is not None and config.supervision_weight > 0:
        labels = (pose if config.pose_labels == "all" else pose[:, :ROTATION_COUNT]).to(device, dtype)
    categories = category.to(device) if category is not None and config.supervision_weight * config.category_weight > 0 else None

    # Weights from the seed alone, whatever the global generator holds, which is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(randomness.derive_seed(seed, "vae", "weights"))
        pose_count = 0 if labels is None else labels.shape[1]
        vae = NeuralVAE(config, responses.shape[1], pose_count, 0 if categories is None else category_count)
    vae = vae.to(device, dtype)
    vae.response_mean.copy_(responses.mean(dim=0))
    vae.response_scale.copy_(responses.std(dim=0, correction=0))
    normalised = vae.normalise(responses)
    if labels is not None:
        spread = labels.std(dim=0, correction=0)
        vae.pose_mean.copy_(labels.mean(dim=0))
        vae.pose_scale.copy_(torch.where(spread > 0, spread, 1))
        labels = (labels - vae.pose_mean) / vae.pose_scale

    count = responses.shape[0]
    rows = min(config.batch_size, count)
    steps = config.epochs * (count // rows)

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample = shard.take(randomness.epoch_batch(seed, "vae/batch", step, count, rows)).to(device)
        noise = randomness.normal(seed, "vae/noise", step, sample, (vae.latent_count,)).to(dtype)
        logged = (step + 1) % LOG_EVERY == 0 or step + 1 == steps
        pose_rows = None if labels is None else labels[sample]
        category_rows = None if categories is None else categories[sample]
        return training_loss(
            vae, normalised[sample], pose_rows, category_rows, noise, dataset_size=count, rows=rows, shard=shard, with_pc=logged
        )

    result = fit(
        vae, step_loss, name="vae", steps=steps, learning_rate=config.learning_rate, checkpoint=checkpoint, shard=shard,
        progress=progress, log_every=LOG_EVERY, precision=precision,
    )  # fmt: skip
    saturation = (config.group_count - 1) * math.log(count)
    result.curves["pc_saturation"] = [(at, value / saturation) for at, value in result.curves["pc"]]
    with torch.no_grad():
        vae.latent_scale.copy_(vae.encode_normalised(normalised)[0].std(dim=0, correction=0))
    return vae, result


def vae_state(vae: NeuralVAE) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything of a fitted VAE: its tensors (on the CPU, contiguous, for safetensors) and its configuration (JSON)."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in vae.state_dict().items()}
    counts = {"unit_count": vae.unit_count, "pose_count": vae.pose_count, "category_count": vae.category_count}
    return tensors, {"vae": vae.config.model_dump(mode="json")} | counts


def load_vae(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> NeuralVAE:
    """The inverse of `vae_state`, in evaluation mode on the CPU. Raises InputError where the two do not fit together."""
    try:
        counts = {name: int(config[name]) for name in ("unit_count", "pose_count", "category_count")}
        with torch.random.fork_rng(devices=[]):
            vae = NeuralVAE(VAEConfig.model_validate(config["vae"]), **counts)
        vae = vae.to(tensors["response_mean"].dtype)
        vae.load_state_dict(dict(tensors))
    except (KeyError, TypeError, ValidationError, RuntimeError) as error:
        raise InputError(f"vae: its tensors and its configuration do not fit together ({str(error).splitlines()[0]})") from error
    return vae.eval()
