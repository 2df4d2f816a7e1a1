"""What the method must find on the synthetic set, where the truth is planted. Run with -s to see the figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge

from migvis.config import PRESETS, VAEConfig
from migvis.data import Dataset, load_dataset
from migvis.data.synthetic.stimuli import make_synthetic
from migvis.metrics.representation import representation_metrics
from migvis.vae import NeuralVAE, standard
from migvis.vae_fit import fit_vae

pytestmark = pytest.mark.slow
SEEDS = range(5)
CONFIG = PRESETS["quick"].vae


@dataclass(frozen=True)
class Fits:
    dataset: Dataset
    supervised: list[NeuralVAE]
    standard: list[NeuralVAE]
    metrics: list[dict[str, float]]


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Fits:
    dataset = load_dataset(make_synthetic(PRESETS["quick"].data, tmp_path_factory.mktemp("data") / "set.h5"))
    rows, stimuli = dataset.split["train"], dataset.stimuli
    arguments = (
        torch.tensor(dataset.subjects["M1"].response[rows]),
        torch.tensor(stimuli.pose[rows]),
        torch.tensor(stimuli.category_id[rows]),
    )

    def fit(config: VAEConfig, seed: int) -> NeuralVAE:
        return fit_vae(*arguments, config, category_count=8, seed=seed)[0]

    full, plain = [fit(CONFIG, seed) for seed in SEEDS], [fit(standard(CONFIG), seed) for seed in SEEDS]
    metrics = [representation_metrics(dataset, "M1", "test", *pair, seed=0) for pair in zip(full, plain, strict=True)]
    return Fits(dataset, full, plain, metrics)


def responses(fits: Fits, split: str) -> np.ndarray:
    train, rows = (fits.dataset.subjects["M1"].response[fits.dataset.split[name]] for name in ("train", split))
    return (rows - train.mean(0)) / train.std(0)


def test_the_standard_vae_keeps_what_pca_of_its_rank_keeps(fits: Fits) -> None:
    train, test = responses(fits, "train"), responses(fits, "test")
    _, _, directions = np.linalg.svd(train, full_matrices=False)
    kept = directions[: CONFIG.group_count * CONFIG.group_rank]
    residual = ((test - test @ kept.T @ kept) ** 2).sum(0) / ((test - test.mean(0)) ** 2).sum(0)
    pca = 1 - residual.mean()
    values = [metrics["standard_neural_r2"] for metrics in fits.metrics]
    print(f"\nR2: PCA {pca:.3f}, standard VAE {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
    assert abs(np.mean(values) - pca) <= 0.03


def test_supervision_costs_little_reconstruction(fits: Fits) -> None:
    difference = [metrics["standard_neural_r2"] - metrics["neural_r2"] for metrics in fits.metrics]
    print(f"\nR2: full {np.mean([m['neural_r2'] for m in fits.metrics]):.3f}, standard less full {np.mean(difference):.4f}")
    assert np.mean(difference) <= 0.03


def test_the_supervised_groups_hold_what_the_responses_hold(fits: Fits) -> None:
    stimuli, split = fits.dataset.stimuli, fits.dataset.split
    category, pose = stimuli.category_id, stimuli.pose[:, :3]
    own: dict[str, list[float]] = {"category": [], "pose": []}
    train, test = responses(fits, "train"), responses(fits, "test")
    raw = {
        "category": LogisticRegression(max_iter=500).fit(train, category[split["train"]]).score(test, category[split["test"]]),
        "pose": Ridge(1.0).fit(train, pose[split["train"]]).score(test, pose[split["test"]]),
    }
    for vae in fits.supervised:
        with torch.no_grad():
            latents = {
                name: vae.encode(torch.tensor(fits.dataset.subjects["M1"].response[split[name]]))[0] for name in ("train", "test")
            }
        first = {name: vae.group(z, 1).numpy() for name, z in latents.items()}
        second = {name: vae.group(z, 2).numpy() for name, z in latents.items()}
        own["pose"].append(Ridge(1.0).fit(first["train"], pose[split["train"]]).score(first["test"], pose[split["test"]]))
        model = LogisticRegression(max_iter=500).fit(second["train"], category[split["train"]])
        own["category"].append(model.score(second["test"], category[split["test"]]))
    for name in ("category", "pose"):
        print(f"\n{name}: own group {np.mean(own[name]):.3f}, raw responses {raw[name]:.3f}")
        assert np.mean(own[name]) >= raw[name] - 0.05


def test_supervision_disentangles_the_groups(fits: Fits) -> None:
    full = np.array([metrics["group_mig"] - metrics["group_mig_shuffled"] for metrics in fits.metrics])
    plain = np.array([metrics["standard_group_mig"] - metrics["standard_group_mig_shuffled"] for metrics in fits.metrics])
    difference = full - plain
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference))
    low, high = difference.mean() - half, difference.mean() + half
    print(
        f"\ngroup_mig less shuffled: full {full.mean():.3f}, standard {plain.mean():.3f}; paired difference {low:.3f}…{high:.3f}"
    )
    for name in ("mig", "standard_mig"):
        print(f"{name}: {np.mean([metrics[name] for metrics in fits.metrics]):.3f}")
    assert plain.mean() <= 0.1
    assert full.mean() >= 0.25
    assert low > 0.1
