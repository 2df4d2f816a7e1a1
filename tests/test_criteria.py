"""The rivals of mutual information as criteria, each where the answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import Ridge
from torch import Tensor

from migvis.config import CriticConfig, SynthesisConfig
from migvis.criteria import Activation, Likelihood
from migvis.diffusion import noise_schedule, predict_clean
from migvis.edits import Edits
from migvis.errors import InputError
from migvis.guidance import guide
from migvis.latent_encoder import LatentEncoder, fit_latent_encoder, log_density
from migvis.latent_regression import PENALTIES, LatentRegression, fit_latent_regression
from migvis.memory import StimulusMemory
from migvis.synthesis import GuidedEditor

SIZE, GROUPS, RANK = 16, 3, 2
CONFIG = CriticConfig(
    encoder="cnn", infonce_batch=64, training_images="clean", learning_rate=4e-3, embedding_dropout=0.0
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edits_of(n: int, seed: int = 3) -> Edits:
    rows, group = torch.arange(n), torch.arange(n) % GROUPS + 1
    return Edits(rows % 2, group, normal(n, RANK, seed=seed), torch.full((n,), 2.0), rows, torch.full((n,), -1))


@pytest.fixture(scope="module")
def encoder() -> LatentEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = LatentEncoder(CONFIG, GROUPS, RANK, SIZE).eval().requires_grad_(False)
    made.latent_mean.copy_(normal(GROUPS, RANK, seed=2))
    made.latent_scale.copy_(normal(GROUPS, RANK, seed=4).abs() + 0.3)
    return made


@pytest.fixture(scope="module")
def world() -> dict[str, Tensor]:
    """Latents that are linear in the pixels, but for noise of a tenth of their sd; two stimuli show each picture."""
    images, weight = 0.3 * normal(700, 1, SIZE, SIZE, seed=5), normal(GROUPS * RANK, SIZE * SIZE, seed=6) / SIZE
    row = torch.arange(700).repeat(2)
    clear = images.flatten(1) @ weight.T / 0.3
    mean = (clear[row] + 0.1 * normal(1400, GROUPS * RANK, seed=7)) * 2 + 5
    return {"images": images, "weight": weight, "mean": mean, "log_var": torch.full_like(mean, -6.0), "row": row}


@pytest.fixture(scope="module")
def regression(world: dict[str, Tensor]) -> LatentRegression:
    return fit_latent_regression(world["images"], world["mean"], world["log_var"], world["row"], CONFIG, GROUPS)


def test_the_likelihood_is_the_normal_density_of_the_target(encoder: LatentEncoder) -> None:
    edits, images = edits_of(5), normal(5, 1, SIZE, SIZE)
    values = Likelihood(encoder).objective(edits)(images)
    mean, log_var = encoder(images)
    for edit in range(5):
        g = int(edits.group[edit]) - 1
        centre = mean[edit, g] * encoder.latent_scale[g] + encoder.latent_mean[g]
        deviation = (0.5 * log_var[edit, g]).exp() * encoder.latent_scale[g]
        expected = norm.logpdf(edits.target[edit].numpy(), centre.numpy(), deviation.numpy()).sum()
        assert float(values[edit]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["likelihood", "activation", "linear"])
def test_the_values_at_pictures_are_the_objective_at_each(
    kind: str, encoder: LatentEncoder, regression: LatentRegression, monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion = {"likelihood": Likelihood(encoder), "activation": Activation(encoder), "linear": Activation(regression)}[kind]
    edits, pictures = edits_of(7), normal(9, 1, SIZE, SIZE, seed=8)
    monkeypatch.setattr("migvis.criteria.IMAGES_AT_ONCE", 4)
    table = criterion.at(edits, pictures)
    assert table.shape == (7, 9)
    for column in range(9):
        expected = criterion.objective(edits)(pictures[column].expand(7, 1, SIZE, SIZE))
        assert torch.allclose(table[:, column], expected, atol=1e-4)


def test_pictures_are_read_once_for_all_edits(encoder: LatentEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    read = encoder.encoder.forward
    monkeypatch.setattr(encoder.encoder, "forward", lambda images: seen.append(len(images)) or read(images))
    Likelihood(encoder).at(edits_of(7), normal(9, 1, SIZE, SIZE))
    assert seen == [9]


def test_the_activation_has_the_gradient_of_its_linear_form(world: dict[str, Tensor], regression: LatentRegression) -> None:
    """Wᵀz*, whatever the image: of first order, with no optimum at the target."""
    edits = edits_of(6)
    goal = (edits.target - regression.latent_mean[edits.group - 1]) / regression.latent_scale[edits.group - 1]
    of_group = regression.weight.view(GROUPS, RANK, -1)[edits.group - 1]
    expected = torch.einsum("nd,ndf->nf", goal, of_group)
    for images in (normal(6, 1, SIZE, SIZE, seed=9), 5 * normal(6, 1, SIZE, SIZE, seed=10)):
        variable = images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(Activation(regression).objective(edits)(variable).sum(), variable)
        assert torch.allclose(gradient.flatten(1), expected, atol=1e-5)


def test_the_regression_recovers_a_linear_world(world: dict[str, Tensor], regression: LatentRegression) -> None:
    truth = world["weight"] / 0.3 * 2 / regression.latent_scale.flatten()[:, None]
    cosine = torch.cosine_similarity(regression.weight, truth, dim=1)
    assert bool((cosine > 0.97).all()), cosine
    images = 0.3 * normal(200, 1, SIZE, SIZE, seed=11)
    expected = (images.flatten(1) @ world["weight"].T / 0.3 * 2 + 5 - regression.latent_mean.flatten()) / (
        regression.latent_scale.flatten()
    )
    explained = 1 - (regression.means(images).flatten(1) - expected).square().mean() / expected.var()
    assert float(explained) > 0.95


def test_penalties_are_chosen_by_pictures_that_were_left_out() -> None:
    """Ten stimuli show each of few pictures: leaving out one of ten leaves the picture in, and asks for no penalty at all."""
    images, row = normal(24, 1, 8, 8, seed=21), torch.arange(24).repeat_interleave(torch.arange(1, 25) % 10 + 1)
    mean = normal(24, 4, seed=22)[row] + 0.1 * normal(len(row), 4, seed=23)
    fitted = fit_latent_regression(images, mean, torch.full_like(mean, -30.0), row, CONFIG, 2)
    seen, latents = images.flatten(1)[row].double().numpy(), mean.double()
    wanted = ((latents - latents.mean(0)) / latents.std(0, correction=0)).numpy()

    def error(penalty: float) -> np.ndarray:
        total = np.zeros(4)
        for picture in range(24):
            held = row.numpy() == picture
            model = Ridge(alpha=penalty).fit(seen[~held], wanted[~held])
            total += ((model.predict(seen[held]) - wanted[held]) ** 2).sum(0)
        return total

    best = np.argmin([error(penalty) for penalty in PENALTIES], axis=0)
    for dimension, choice in enumerate(best):
        expected = Ridge(alpha=PENALTIES[choice]).fit(seen, wanted[:, dimension])
        assert np.allclose(fitted.weight[dimension].numpy(), expected.coef_, atol=1e-5)
        assert float(fitted.bias[dimension]) == pytest.approx(expected.intercept_, abs=1e-5)


def test_guidance_by_a_regression_moves_a_picture_along_its_weights(regression: LatentRegression) -> None:
    edits, alphas = edits_of(6), noise_schedule(10)
    t, noisy = torch.full((6,), 6), normal(6, 1, SIZE, SIZE, seed=12)

    def noise(noisy: Tensor, t: Tensor) -> Tensor:
        return 0.5 * noisy

    guided = guide(noise, Activation(regression).objective(edits), edits.scale, alphas)
    alpha = alphas[t][:, None, None, None]
    moved = (predict_clean(noisy, guided(noisy, t), alpha) - predict_clean(noisy, noise(noisy, t), alpha)).flatten(1)
    goal = (edits.target - regression.latent_mean[edits.group - 1]) / regression.latent_scale[edits.group - 1]
    along = torch.einsum("nd,ndf->nf", goal, regression.weight.view(GROUPS, RANK, -1)[edits.group - 1])
    assert torch.allclose(torch.cosine_similarity(moved, along), torch.ones(6), atol=1e-4)


def test_a_frozen_encoder_needs_its_embeddings(world: dict[str, Tensor]) -> None:
    config = CONFIG.model_copy(update={"encoder": "dino"})
    with pytest.raises(InputError, match="embeddings"):
        fit_latent_regression(world["images"], world["mean"], world["log_var"], world["row"], config, GROUPS)


def test_the_fitted_encoder_beats_the_marginal_and_knows_its_own_error() -> None:
    """A spot whose column is group 1 and whose row is group 2, with posteriors of sd 0.3: H(z | y) is known."""
    u, grid = normal(900, 2, seed=13), torch.arange(16.0)
    column, line = (torch.exp(-((grid - 8 - 2 * u[:, axis : axis + 1]) ** 2) / 6) for axis in (0, 1))
    images = (2 * line[:, :, None] * column[:, None, :] - 1)[:, None]
    log_var, row = torch.full((600, 2), 2 * math.log(0.3)), torch.arange(600)
    settings = CONFIG.model_copy(update={"images_seen": 64 * 100, "minimum_steps": 1})
    fitted, result = fit_latent_encoder(images[:600], None, u[:600], log_var, row, settings, 2, seed=0)
    z = (u[600:] + 0.3 * normal(300, 2, seed=14))[:, :, None]
    with torch.no_grad():
        own = log_density((z - fitted.latent_mean) / fitted.latent_scale, *fitted(images[600:])).mean(0)
    scale = fitted.latent_scale.flatten()
    marginal = -0.5 * (math.log(2 * math.pi) + 1)
    best = -(0.5 * (math.log(2 * math.pi) + 1) + math.log(0.3)) + scale.log()
    assert bool((own > marginal + 0.5).all()), own
    assert bool((own < best + 0.15).all()), (own, best)
    assert result.curves["negative_log_likelihood_2"][-1][1] < -marginal - 0.3


def test_both_guidances_take_any_criterion(encoder: LatentEncoder) -> None:
    alphas, memory = noise_schedule(10), StimulusMemory(1, 16, 10.0, SIZE)
    memory.remember(normal(20, 1, SIZE, SIZE, seed=15).clamp(-1, 1))
    images, edits, results = memory.images[:2], replace(edits_of(6), scale=torch.full((6,), 500.0)), []
    for guidance in ("gradient", "memory"):
        for criterion in (Likelihood(encoder), Activation(encoder)):
            config = SynthesisConfig(guidance=guidance, edit_step=0.6)
            editor = GuidedEditor(lambda noisy, t: 0.3 * noisy, alphas, config, criterion, 0.2, memory)
            together = editor.edit(images, editor.invert(images), edits)
            alone = editor.edit(images, editor.invert(images), edits.rows(torch.tensor([4])))
            assert torch.allclose(together[4:5], alone, atol=1e-4)
            results.append(together)
    distinct = torch.stack(results).flatten(1)
    assert float(torch.pdist(distinct).min()) > 1e-2
