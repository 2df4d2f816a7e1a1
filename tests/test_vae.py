"""The neural VAE: its terms, and its fit on planted populations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from migvis import randomness
from migvis.config import VAEConfig
from migvis.errors import InputError
from migvis.training import Progress, Shard
from migvis.vae import NeuralVAE, kl_divergence, load_vae, loss_weights, partial_correlation, standard, training_loss, vae_state
from migvis.vae_fit import fit_vae


def normal(stream: str, count: int, *shape: int) -> Tensor:
    return randomness.normal(0, stream, 0, torch.arange(count), shape).double()


def test_kl_divergence_is_the_mean_over_samples_and_dimensions() -> None:
    mean = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    log_var = torch.tensor([[0.0, 0.0], [2.0, -2.0]])
    terms = [0.0, 2.0, 0.5 * (math.exp(2) - 1 - 2), 0.5 * (math.exp(-2) - 1 + 2)]
    assert float(kl_divergence(mean, log_var)) == pytest.approx(sum(terms) / 4)


CATEGORIES = 4


def planted_population(count: int = 600, unit_count: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Responses linear in 3 angles, the category's one-hot code and 2 nuisances; pose [n, 6] in degrees; category."""
    angles = 30 * normal("angles", count, 3).float()
    category = randomness.integers(0, "category", 0, torch.arange(count), 0, CATEGORIES - 1)
    nuisance = normal("nuisance", count, 2).float()
    factors = torch.cat([angles / 30, 2 * torch.eye(CATEGORIES)[category], nuisance], dim=1)
    responses = factors @ normal("weights", factors.shape[1], unit_count).float()
    responses += 0.3 * normal("trials", count, unit_count).float()
    pose = torch.cat([angles, torch.full((count, 3), 7.0)], dim=1)  # size and position are constant, as in V0
    return 5 + 3 * responses, pose, category


def r_squared(predicted: Tensor, truth: Tensor) -> float:
    return float(1 - (predicted - truth).square().mean(dim=0).div(truth.var(dim=0, correction=0)).mean())


TRAIN, HELD_OUT = slice(0, 400), slice(400, 600)
SMALL = VAEConfig(group_count=3, group_rank=3, batch_size=64, epochs=60)


@pytest.fixture(scope="module")
def supervised() -> NeuralVAE:
    responses, pose, category = planted_population()
    config = SMALL.model_copy(update={"epochs": 120})
    vae, result = fit_vae(responses[TRAIN], pose[TRAIN], category[TRAIN], config, category_count=CATEGORIES, seed=0)
    assert set(result.curves) == {"loss", "mse", "kl", "pose", "category", "pc", "pc_saturation"}
    for (at, pc), (same, saturation) in zip(result.curves["pc"], result.curves["pc_saturation"], strict=True):
        assert at == same
        assert saturation == pytest.approx(pc / (2 * math.log(400)))
    return vae


def test_standard_vae_reconstructs_like_pca_of_the_same_rank() -> None:
    responses, pose, category = planted_population()
    config = standard(SMALL.model_copy(update={"group_rank": 2, "epochs": 120}))
    vae, result = fit_vae(responses[TRAIN], pose[TRAIN], category[TRAIN], config, category_count=CATEGORIES, seed=0)
    assert set(result.curves) == {"loss", "mse", "kl", "pc", "pc_saturation"}
    train, held_out = vae.normalise(responses[TRAIN]), vae.normalise(responses[HELD_OUT])
    basis = torch.linalg.svd(train, full_matrices=False).Vh[:6]
    with torch.no_grad():
        reached = r_squared(vae.decode(vae.encode(responses[HELD_OUT])[0]), held_out)
    assert reached > r_squared(held_out @ basis.T @ basis, held_out) - 0.03


def test_supervised_groups_read_out_their_labels(supervised: NeuralVAE) -> None:
    responses, pose, category = planted_population()
    with torch.no_grad():
        mean, _ = supervised.encode(responses[HELD_OUT])
        angles = supervised.read_pose(mean) * supervised.pose_scale + supervised.pose_mean
        right = (supervised.read_category(mean).argmax(dim=1) == category[HELD_OUT]).float().mean()
    assert r_squared(angles, pose[HELD_OUT, :3]) > 0.85
    assert right > 0.9


def test_normalisation_and_latent_scale_are_those_of_the_training_stimuli(supervised: NeuralVAE) -> None:
    responses, pose, _ = planted_population()
    normalised = supervised.normalise(responses[TRAIN])
    torch.testing.assert_close(normalised.mean(dim=0), torch.zeros(30), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std(dim=0, correction=0), torch.ones(30), atol=1e-4, rtol=0)
    torch.testing.assert_close(supervised.pose_mean, pose[TRAIN, :3].mean(dim=0))
    with torch.no_grad():
        mean, _ = supervised.encode(responses[TRAIN])
    torch.testing.assert_close(supervised.latent_scale, mean.std(dim=0, correction=0))


def test_groups_are_contiguous_columns(supervised: NeuralVAE) -> None:
    z = torch.arange(18.0).reshape(2, 9)
    assert supervised.group(z, 1)[0].tolist() == [0, 1, 2]
    assert supervised.group(z, 3)[0].tolist() == [6, 7, 8]
    # Read-outs see their own group alone.
    other = z.clone()
    other[:, 3:] = 0
    assert torch.equal(supervised.read_pose(z), supervised.read_pose(other))
    other = torch.zeros_like(z)
    other[:, 3:6] = z[:, 3:6]
    assert torch.equal(supervised.read_category(z), supervised.read_category(other))


def test_saved_and_loaded_vae_is_the_same(supervised: NeuralVAE) -> None:
    tensors, config = vae_state(supervised)
    loaded = load_vae(tensors, json.loads(json.dumps(config)))
    responses = planted_population()[0][:5]
    with torch.no_grad():
        assert torch.equal(loaded.encode(responses)[0], supervised.encode(responses)[0])
        assert torch.equal(loaded.decode(torch.ones(1, 9)), supervised.decode(torch.ones(1, 9)))
    assert torch.equal(loaded.latent_scale, supervised.latent_scale)
    assert loaded.config == supervised.config
    with pytest.raises(InputError, match="vae: its tensors and its configuration do not fit together"):
        load_vae(tensors, config | {"unit_count": 31})
    with pytest.raises(InputError, match="vae: its tensors and its configuration do not fit together"):
        load_vae(tensors, {"vae": {}})


def test_resumed_fit_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    responses, pose, category = planted_population()
    config = SMALL.model_copy(update={"epochs": 85, "batch_size": 16})  # 510 steps, checkpoints at 500 and at the end
    arguments = (responses[:100], pose[:100], category[:100], config)
    torch.manual_seed(1)
    whole, _ = fit_vae(*arguments, category_count=CATEGORIES, seed=4)

    class Interrupted(Exception):
        pass

    def interrupt(progress: Progress) -> None:
        if progress.step == 500:
            raise Interrupted

    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    with pytest.raises(Interrupted):
        fit_vae(*arguments, category_count=CATEGORIES, seed=4, checkpoint=tmp_path / "vae.pt", progress=interrupt)
    resumed, result = fit_vae(*arguments, category_count=CATEGORIES, seed=4, checkpoint=tmp_path / "vae.pt")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert result.start_step == 500
    tensors = vae_state(resumed)[0]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in vae_state(whole)[0].items())
    other, _ = fit_vae(*arguments[:3], SMALL.model_copy(update={"epochs": 2}), category_count=CATEGORIES, seed=5)
    assert not torch.equal(other.decoder[0].weight, whole.decoder[0].weight)


def test_a_fit_in_bfloat16_keeps_its_partial_correlation_in_float32() -> None:
    """As a GPU would run it; here on the CPU."""
    responses, pose, category = planted_population()
    arguments = (responses[TRAIN], pose[TRAIN], category[TRAIN], SMALL)
    exact, reference = fit_vae(*arguments, category_count=CATEGORIES, seed=4)
    rounded, result = fit_vae(*arguments, category_count=CATEGORIES, seed=4, precision="bf16")
    assert all(weight.dtype == torch.float32 for weight in rounded.parameters())
    for term in ("mse", "pc"):
        assert result.curves[term][-1][1] == pytest.approx(reference.curves[term][-1][1], rel=0.05)
    assert not torch.equal(*(next(vae.parameters()) for vae in (exact, rounded)))


def test_diagonal_readout_aligns_group_1_with_the_angles() -> None:
    responses, pose, category = planted_population()
    config = SMALL.model_copy(update={"readout": "diagonal", "epochs": 120})
    vae, _ = fit_vae(responses[TRAIN], pose[TRAIN], category[TRAIN], config, category_count=CATEGORIES, seed=0)
    with torch.no_grad():
        latents = vae.group(vae.encode(responses[HELD_OUT])[0], 1)
    together = torch.corrcoef(torch.cat([latents, pose[HELD_OUT, :3]], dim=1).T)[:3, 3:].abs()
    assert together.diagonal().min() > 0.9
    assert (together - together.diagonal().diag()).max() < 0.3
    with pytest.raises(InputError, match=r"vae\.readout: diagonal needs group_rank 3 = number of pose labels 6"):
        NeuralVAE(config, 30, 6, 0)


def test_absent_labels_and_zero_weights_have_no_readout() -> None:
    responses, pose, category = planted_population()
    config = SMALL.model_copy(update={"epochs": 2})
    unlabelled, result = fit_vae(responses, None, None, config, category_count=0, seed=0)
    assert "pose" not in result.curves
    assert "category" not in result.curves
    with pytest.raises(InputError, match="without pose labels"):
        unlabelled.read_pose(torch.zeros(1, 9))
    with pytest.raises(InputError, match="without category labels"):
        unlabelled.read_category(torch.zeros(1, 9))
    only_category, _ = fit_vae(responses, None, category, config, category_count=CATEGORIES, seed=0)
    assert only_category.read_category(torch.zeros(1, 9)).shape == (1, CATEGORIES)
    assert (only_category.pose_count, only_category.category_count) == (0, CATEGORIES)
    plain, _ = fit_vae(responses, pose, category, standard(config), category_count=CATEGORIES, seed=0)
    assert (plain.pose_count, plain.category_count) == (0, 0)
    every, _ = fit_vae(responses, pose, None, config.model_copy(update={"pose_labels": "all"}), category_count=0, seed=0)
    assert every.pose_count == 6
    assert every.pose_scale[3:].tolist() == [1, 1, 1]  # constant labels


def test_loss_is_the_weighted_sum_of_its_terms_and_uses_the_sampled_latents() -> None:
    responses, pose, category = planted_population()
    config = SMALL.model_copy(update={"pc_weight": 0.01, "epochs": 2})
    vae, _ = fit_vae(responses, pose, category, config, category_count=CATEGORIES, seed=0)
    x, noise = vae.normalise(responses[:32]), normal("noise", 32, 9).float()
    labels = (pose[:32, :3] - vae.pose_mean) / vae.pose_scale
    settings = {"weights": loss_weights(config), "dataset_size": 600, "rows": 32, "shard": Shard(), "with_pc": True}
    loss, terms = training_loss(vae, x, labels, category[:32], noise, **settings)
    mean, log_var = vae.encode_normalised(x)
    z = mean + (0.5 * log_var).exp() * noise
    expected = {
        "mse": (vae.decode(z) - x).square().mean(),
        "kl": kl_divergence(mean, log_var),
        "pose": (vae.read_pose(z) - labels).square().mean(),
        "category": -vae.read_category(z).log_softmax(dim=1)[torch.arange(32), category[:32]].mean(),
        "pc": partial_correlation(z, mean, log_var, 3, 600),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    weights = {"mse": 1, "kl": 2e-3, "pose": 0.2, "category": 0.02, "pc": 0.01}
    torch.testing.assert_close(loss, sum(weights[name] * value for name, value in expected.items()))


def test_partial_correlation_weight_lowers_the_partial_correlation() -> None:
    responses, _, _ = planted_population()
    reached = []
    for pc_weight in (0.0, 0.05):
        config = SMALL.model_copy(update={"pc_weight": pc_weight, "kl_weight": 0.05, "epochs": 50})
        _, result = fit_vae(responses[TRAIN], None, None, config, category_count=0, seed=0)
        reached.append(result.curves["pc"][-1][1])
    assert reached[1] < 0.5 * reached[0]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("constant", "responses: unit 3 is constant over the 600 training stimuli"),
        ("nan", "responses: they hold values that are not finite"),
        ("pose", r"pose: expected \[600, 3 or 6\], got shape \(599, 6\)"),
        ("pose_nan", "pose: it holds values that are not finite"),
        ("category", r"category: values 0…4 lie outside 0…3"),
        ("category_length", r"category: expected shape \(600,\), got \(599,\)"),
    ],
)
def test_bad_training_data_is_named(field: str, message: str) -> None:
    responses, pose, category = planted_population()
    if field == "constant":
        responses[:, 3] = 2.0
    elif field == "nan":
        responses[5, 2] = math.nan
    elif field == "pose":
        pose = pose[:-1]
    elif field == "pose_nan":
        pose[0, 0] = math.nan
    elif field == "category":
        category[9] = 4
    else:
        category = category[:-1]
    with pytest.raises(InputError, match=message):
        fit_vae(responses, pose, category, SMALL, category_count=CATEGORIES, seed=0)
