"""What a neural VAE keeps of the responses and how its groups are disentangled, on one split of a data set."""

from __future__ import annotations

import numpy as np
import torch

from migvis.data.dataset import Dataset
from migvis.metrics.disentanglement import mig_details, mig_equal_width, shuffled_mig
from migvis.metrics.group_disentanglement import group_mig
from migvis.metrics.reconstruction import explained_by_latents, neural_r2, neural_rmse
from migvis.vae import NeuralVAE

Metrics = dict[str, float]


@torch.no_grad()
def _fitted(vae: NeuralVAE, responses: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Posterior means [n, D], z-scored responses [n, N], and their reconstruction from the means."""
    mean, _ = vae.encode(responses)
    return mean.numpy(), vae.normalise(responses).numpy(), vae.decode(mean).numpy()


def representation_metrics(
    dataset: Dataset, subject: str, split: str, vae: NeuralVAE, standard: NeuralVAE, *, seed: int
) -> Metrics:
    """Metrics of `vae` and, prefixed standard_, of the standard VAE of the same D, on the images of `split`.

    neural_r2, neural_rmse; supervised_r2, unsupervised_r2 (ridge from groups 1 and 2, and from the rest);
    group_mig, alignment, and mig with their shuffled baselines, where labels exist: V0, whose pose is constant, is left out.
    """
    response = torch.tensor(dataset.subjects[subject].response)
    rows, train = dataset.split[split].copy(), dataset.split["train"].copy()  # read-only arrays make PyTorch warn
    latents, truth, prediction = _fitted(vae, response[rows])
    standard_latents, standard_truth, standard_prediction = _fitted(standard, response[rows])
    metrics = {
        "neural_r2": neural_r2(truth, prediction),
        "neural_rmse": neural_rmse(truth, prediction),
        "standard_neural_r2": neural_r2(standard_truth, standard_prediction),
        "standard_neural_rmse": neural_rmse(standard_truth, standard_prediction),
    }
    if vae.group_count > 2:
        train_latents, train_truth, _ = _fitted(vae, response[train])
        supervised = 2 * vae.group_rank
        for name, dimensions in (("supervised", range(supervised)), ("unsupervised", range(supervised, latents.shape[1]))):
            metrics[f"{name}_r2"] = explained_by_latents(train_latents, train_truth, latents, truth, list(dimensions))
    metrics |= disentanglement_metrics(dataset, rows, latents, vae.group_count, seed)
    plain = disentanglement_metrics(dataset, rows, standard_latents, vae.group_count, seed)
    return metrics | {f"standard_{name}": value for name, value in plain.items()}


def disentanglement_metrics(dataset: Dataset, rows: np.ndarray, latents: np.ndarray, group_count: int, seed: int) -> Metrics:
    """group_mig, alignment, mig and shuffled baselines of latents [n, D] of stimuli `rows`; empty without labels."""
    stimuli = dataset.stimuli
    category = None if stimuli.category_id is None else stimuli.category_id[rows]
    rotations = None if stimuli.pose is None else stimuli.pose[rows, :3]
    if category is None and rotations is None:
        return {}
    posed = np.ones(len(rows), dtype=bool) if stimuli.variation is None else stimuli.variation[rows] > 0
    groups = group_mig(
        latents, group_count, category, rotations,
        seed=seed, pose_rows=None if rotations is None else posed, picture=dataset.picture_id[rows],
    )  # fmt: skip
    metrics = {"group_mig": groups.value, "group_mig_shuffled": groups.shuffled}
    for factor, values in zip(groups.factors, groups.informativeness, strict=True):
        metrics |= {f"information/{factor}/group{g}": float(value) for g, value in enumerate(values, start=1)}
    if (alignment := groups.alignment()) is not None:
        metrics["alignment"] = alignment
    columns = [] if category is None else [category[posed, None].astype(float)]
    if rotations is not None:
        columns.append(rotations[posed])
    factors = np.concatenate(columns, axis=1)
    discrete = [category is not None and column == 0 for column in range(factors.shape[1])]
    metrics["mig"] = mig_details(latents[posed], factors, discrete).value
    metrics["mig_shuffled"] = shuffled_mig(latents[posed], factors, discrete, seed=seed)
    metrics["mig_equal_width"] = mig_equal_width(latents[posed], factors, discrete)
    return metrics
