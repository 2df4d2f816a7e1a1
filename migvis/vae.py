"""The neural VAE: responses of a population to latent groups, and its loss (A Eq. 2).

D = G * D_g latent dimensions; group g (1…G) is columns (g − 1)·D_g … g·D_g. Group 1 reads out the pose and
group 2 the category, where the data have these labels; the other groups are unsupervised.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from migvis.config import VAEConfig
from migvis.errors import InputError
from migvis.partial_correlation import partial_correlation
from migvis.training import Shard, gather

LOG_VARIANCE_RANGE = (-12.0, 6.0)
"""Posterior log-variances are held in here: sd between 0.0025 and 20 where the prior's is 1."""


class NeuralVAE(nn.Module):
    """Encoder, decoder and read-outs, each MLP with one hidden ReLU layer.

    A label count of 0 means that the label is absent, and its read-out with it. Buffers hold what turns raw
    values into the model's: response_mean and response_scale [N], pose_mean and pose_scale [pose_count], and
    latent_scale [D], the sd of posterior means over the training images.

    What `stacked` returns holds the weights of K VAEs. Its networks take and give K of everything, [K, n, …] for [n, …].
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
        self.encoder = nn.Sequential(Linear(unit_count, width), nn.ReLU(), Linear(width, 2 * self.latent_count))
        self.decoder = nn.Sequential(Linear(self.latent_count, width), nn.ReLU(), Linear(width, unit_count))
        self.pose_readout: nn.Module | None = None
        self.category_readout: nn.Module | None = None
        if pose_count:
            self.pose_readout = Diagonal(pose_count) if config.readout == "diagonal" else Linear(self.group_rank, pose_count)
        if category_count:
            self.category_readout = Linear(self.group_rank, category_count)
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
        mean, log_var = self.encoder(normalised).chunk(2, dim=-1)
        return mean, log_var.clamp(*LOG_VARIANCE_RANGE)

    def decode(self, z: Tensor) -> Tensor:
        """Latents [n, D] -> z-scored responses [n, N]."""
        decoded: Tensor = self.decoder(z)
        return decoded

    def group(self, z: Tensor, group: int) -> Tensor:
        """Latents [n, D] -> those of group 1…G [n, D_g]."""
        return z[..., (group - 1) * self.group_rank : group * self.group_rank]

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


class Linear(nn.Linear):
    """nn.Linear; with stacked weights [K, out, in] K of them, [K, n, in] -> [K, n, out]."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return super().forward(x)
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class Diagonal(nn.Module):
    """One factor per dimension, [n, k] -> [n, k]: label k is read from latent k alone, so the group is axis-aligned."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(count))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.weight[..., None, :]


def stacked(vaes: Sequence[NeuralVAE]) -> NeuralVAE:
    """K VAEs of one shape as one, each of whose weights is theirs along a new first axis; the buffers are the first's."""
    stack = copy.deepcopy(vaes[0])
    for name, own in zip(dict(stack.named_parameters()), zip(*(vae.parameters() for vae in vaes), strict=True), strict=True):
        module, _, parameter = name.rpartition(".")
        stack.get_submodule(module).register_parameter(parameter, nn.Parameter(torch.stack(own).detach()))
    return stack


@torch.no_grad()
def unstack(stack: NeuralVAE, vaes: Sequence[NeuralVAE]) -> None:
    """Gives K VAEs the weights that `stack`, made by `stacked`, has for each."""
    for weights, *own in zip(stack.parameters(), *(vae.parameters() for vae in vaes), strict=True):
        torch._foreach_copy_(own, weights.unbind())


def kl_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(q(z|x) ‖ N(0, I)) of [n, D] in nats, a mean over samples *and dimensions*; [K] of [K, n, D]."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean(dim=(-2, -1))


class LossWeights(NamedTuple):
    """Weights of the terms of A Eq. 2 beside the reconstruction: numbers, or tensors [K] for a `stacked` VAE of K. category is
    supervision_weight · category_weight of the configuration."""

    kl: float | Tensor
    pose: float | Tensor
    category: float | Tensor
    partial_correlation: float | Tensor


def loss_weights(config: VAEConfig) -> LossWeights:
    """The weights of a configuration."""
    supervision = config.supervision_weight
    return LossWeights(config.kl_weight, supervision, supervision * config.category_weight, config.pc_weight)


def training_loss(
    vae: NeuralVAE, normalised: Tensor, pose: Tensor | None, category: Tensor | None, noise: Tensor,
    *, weights: LossWeights, dataset_size: int, rows: int, shard: Shard, with_pc: bool,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The negative lower bound of A Eq. 2 on this worker's n of `rows` samples; returns it and its unweighted terms.

    normalised [n, N], pose [n, k] z-scored, category int64 [n], noise [n, D] standard normal. Means over
    samples are scaled so that their mean over workers is the global batch's. The loss holds PC only `with_pc`.
    A `stacked` VAE of K takes [K, n, …] of each and returns [K], on one worker.
    """
    share = shard.share(normalised.shape[-2], rows)
    mean, log_var = vae.encode_normalised(normalised)
    z = mean + (0.5 * log_var).exp() * noise
    terms = {"mse": share * _mean_square(vae.decode(z) - normalised), "kl": share * kl_divergence(mean, log_var)}
    loss = terms["mse"] + weights.kl * terms["kl"]
    if pose is not None:
        terms["pose"] = share * _mean_square(vae.read_pose(z) - pose)
        loss = loss + weights.pose * terms["pose"]
    if category is not None:
        logits = vae.read_category(z)
        cross_entropies = F.cross_entropy(logits.flatten(0, -2), category.flatten(), reduction="none")
        terms["category"] = share * cross_entropies.view_as(category).mean(dim=-1)
        loss = loss + weights.category * terms["category"]
    if with_pc:
        z, mean, log_var = gather(torch.cat([z, mean, log_var], dim=-1), shard, rows).chunk(3, dim=-1)
        with torch.autocast(z.device.type, enabled=False):
            z, mean, log_var = (tensor.to(normalised.dtype) for tensor in (z, mean, log_var))
            terms["pc"] = partial_correlation(z, mean, log_var, vae.group_count, dataset_size)
        loss = loss + weights.partial_correlation * terms["pc"]
    return loss, terms


def _mean_square(error: Tensor) -> Tensor:
    return error.square().mean(dim=(-2, -1))


def standard(config: VAEConfig) -> VAEConfig:
    """The standard VAE of the same size: neither supervision nor partial correlation."""
    return config.model_copy(update={"supervision_weight": 0.0, "pc_weight": 0.0})


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
