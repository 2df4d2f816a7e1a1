from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from migvis.config import CriticConfig
from migvis.critic import Critic, critic_state, embed_pool, fit_critic, info_nce, load_critic, mi_bound
from migvis.critic_batches import CriticBatches
from migvis.encoders import PretrainedEncoder
from migvis.errors import InputError
from migvis.training import Shard

PICTURES, SIZE, NOISE = 512, 32, 0.3


def config(**fields) -> CriticConfig:
    small = {"encoder": "cnn", "infonce_batch": 64, "images_seen": 64, "minimum_steps": 1, "training_images": "clean"}
    return CriticConfig(**(small | {"embedding_width": 16} | fields))


def blobs(u: Tensor) -> Tensor:
    """Images [n,1,32,32] of a spot whose column is 16 + 4 u_1 and whose row is 16 + 4 u_2."""
    grid = torch.arange(SIZE, dtype=u.dtype)
    column = torch.exp(-((grid - 16 - 4 * u[:, :1]) ** 2) / 18)
    row = torch.exp(-((grid - 16 - 4 * u[:, 1:]) ** 2) / 18)
    return (2 * row[:, :, None] * column[:, None, :] - 1)[:, None]


@pytest.fixture(scope="module")
def planted() -> dict[str, Tensor]:
    """Group 1's latent is the spot's column and group 2's its row, each with posterior noise."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2 * PICTURES, 2, generator=generator)
    z = u + NOISE * torch.randn(u.shape, generator=generator)
    return {"u": u, "z": z, "images": blobs(u)}


@pytest.fixture(scope="module")
def fitted(planted) -> Critic:
    mean = planted["u"][:PICTURES]
    log_var = torch.full_like(mean, math.log(NOISE**2))
    row = torch.arange(PICTURES)
    settings = config(images_seen=64 * 250, learning_rate=2e-3)
    return fit_critic(planted["images"][:PICTURES], None, mean, log_var, row, settings, 2, seed=0)[0]


def small_fit(seed: int = 0, steps: int = 12, **keywords) -> Critic:
    generator = torch.Generator().manual_seed(1)
    clean, pool = blobs(torch.randn(40, 2, generator=generator)), torch.rand(40, 2, 1, SIZE, SIZE, generator=generator)
    mean, log_var = torch.randn(60, 4, generator=generator), torch.zeros(60, 4)
    row = torch.cat([torch.arange(40), torch.arange(20)])
    settings = config(infonce_batch=16, images_seen=16 * steps, training_images="pool")
    return fit_critic(clean, pool, mean, log_var, row, settings, 2, seed=seed, **keywords)[0]


def same(a: Critic, b: Critic) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_info_nce_is_the_mean_negative_log_softmax_over_latents():
    scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3
    expected = 0.0
    for i in range(7):
        expected -= math.log(math.exp(scores[i, i]) / sum(math.exp(scores[i, j]) for j in range(7))) / 7
    assert float(info_nce(scores)) == pytest.approx(expected, abs=1e-12)
    assert float(info_nce(scores + torch.randn(7, 1, dtype=torch.float64))) == pytest.approx(expected, abs=1e-12)
    assert abs(float(info_nce(scores.T)) - expected) > 0.1


def test_info_nce_of_several_groups_is_each_groups_own():
    scores = torch.randn(3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(info_nce(scores), torch.stack([info_nce(one) for one in scores]), atol=1e-12)


def test_info_nce_of_uninformative_and_of_perfect_scores():
    assert float(info_nce(torch.zeros(32, 32))) == pytest.approx(math.log(32), rel=1e-6)
    assert float(info_nce(100 * torch.eye(32))) == pytest.approx(0, abs=1e-6)


def test_keys_of_all_groups_at_once_are_those_of_one_at_a_time_with_their_gradients():
    torch.manual_seed(0)
    critic = Critic(CriticConfig(encoder="cnn", embedding_width=5), 3, 2, 16).double()
    critic.latent_mean.normal_()
    critic.latent_scale.uniform_(0.5, 2)
    embeddings = torch.randn(7, critic.encoder.width, dtype=torch.float64, requires_grad=True)
    latents = torch.randn(4, 6, dtype=torch.float64)
    together = critic.all_keys(embeddings, latents)
    single = (
        torch.stack([critic.image_keys(embeddings, g) for g in (1, 2, 3)]),
        torch.stack([critic.latent_keys(latents[:, 2 * g - 2 : 2 * g], g) for g in (1, 2, 3)]),
    )
    weights = [embeddings, *critic.image_heads.parameters(), *critic.latent_heads.parameters()]
    gradients = []
    for keys in (together, single):
        total = keys[0].square().sum() + keys[1].sin().sum()
        gradients.append(torch.autograd.grad(total, weights, retain_graph=True))
    for at_once, alone in zip((*together, *gradients[0]), (*single, *gradients[1]), strict=True):
        assert torch.allclose(at_once, alone, atol=1e-10)


@pytest.mark.parametrize("shape", [(3, 4), (4,), (0, 0), (2, 3, 2), (2, 2, 2, 2), ()])
def test_info_nce_refuses_what_is_not_square(shape):
    with pytest.raises(InputError, match="square"):
        info_nce(torch.zeros(shape))


@pytest.mark.parametrize(("rho", "batch"), [(0.5, 512), (0.9, 512), (0.9999, 16)])
def test_the_bound_against_the_mutual_information_of_gaussians(rho, batch):
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(40, batch, generator=generator, dtype=torch.float64)
    z = rho * y + math.sqrt(1 - rho**2) * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    ratio = -((z[:, None, :] - rho * y[:, :, None]) ** 2) / (2 * (1 - rho**2)) + z[:, None, :] ** 2 / 2
    bound = math.log(batch) - float(torch.stack([info_nce(scores) for scores in ratio]).mean())
    truth = -0.5 * math.log(1 - rho**2)
    if truth < math.log(batch) - 2:
        assert bound == pytest.approx(truth, abs=0.03)
    else:
        assert bound > 0.9 * math.log(batch), "above log B the truth saturates it"
    assert bound <= math.log(batch)
    # Scores of the transposed conditional, log p(y | z) alone, are not a density ratio in z and bound less.
    without_marginal = ratio - z[:, None, :] ** 2 / 2
    assert math.log(batch) - float(torch.stack([info_nce(scores) for scores in without_marginal]).mean()) < bound + 1e-9


def test_a_batch_holds_different_pictures_with_stimuli_of_their_own():
    row = torch.tensor([2, 0, 1, 2, 2, 3, 4, 4])
    batches = CriticBatches(row, versions=3, size=4, seed=5)
    drawn, versions = set(), set()
    for step in range(60):
        batch = batches.draw(step)
        assert len(batch.pictures.unique()) == 4
        assert torch.equal(row[batch.stimuli], batch.pictures)
        parts = [batches.draw(step, Shard(rank, 2)) for rank in range(2)]
        for name in ("pictures", "stimuli", "versions"):
            assert torch.equal(torch.stack([getattr(part, name) for part in parts], dim=1).flatten(), getattr(batch, name))
        drawn |= set(batch.stimuli.tolist())
        versions |= set(batch.versions.tolist())
    assert drawn == set(range(8))
    assert versions == {0, 1, 2}


def test_a_fitted_critic_comes_close_to_the_planted_information(planted, fitted):
    truth = 0.5 * math.log(1 + 1 / NOISE**2)
    held_out, z = planted["images"][PICTURES:], planted["z"][PICTURES:]
    bounds = mi_bound(fitted, held_out, z, 256, seed=0)
    assert list(bounds) == [1, 2]
    for nats, error in bounds.values():
        assert truth - 0.35 < nats < truth + 3 * error + 0.02
        assert 0.005 < error < 0.1
    assert mi_bound(fitted, fitted.embed(held_out).detach(), z, 256, seed=0)[1][0] == pytest.approx(bounds[1][0], abs=1e-5)


def test_scores_of_a_group_depend_on_what_that_group_encodes_only(planted, fitted):
    u, z = planted["u"][PICTURES:], planted["z"][PICTURES:]
    own = mi_bound(fitted, planted["images"][PICTURES:], z, 256, seed=0)[1][0]
    rolled = u.roll(1, 0)
    other_row = mi_bound(fitted, blobs(torch.stack([u[:, 0], rolled[:, 1]], 1)), z, 256, seed=0)
    other_column = mi_bound(fitted, blobs(torch.stack([rolled[:, 0], u[:, 1]], 1)), z, 256, seed=0)
    assert other_row[1][0] > own - 0.3
    assert other_row[2][0] < 0
    assert other_column[1][0] < 0


def test_the_bound_caps_its_candidates_and_says_so(planted, fitted):
    images, z = planted["images"][:100], planted["z"][:100]
    with pytest.warns(UserWarning, match="256 candidates asked for, 100 images"):
        capped = mi_bound(fitted, images, z, 256, seed=0)
    assert capped[2] == pytest.approx(mi_bound(fitted, images, z, 100, seed=1)[2], abs=1e-5)
    scores = fitted.scores(fitted.image_keys(fitted.embed(images), 1), fitted.latent_keys(z[:, :1], 1))
    assert capped[1][0] == pytest.approx(math.log(100) - info_nce(scores).item(), abs=1e-5)
    with pytest.raises(InputError, match="z: expected shape"):
        mi_bound(fitted, images, z[:99], 50, seed=0)


def test_scores_are_rows_of_images_and_columns_of_latents(fitted, planted):
    images, z = planted["images"][:5], planted["z"][:3, :1]
    scores = fitted.scores(fitted.image_keys(fitted.embed(images), 1), fitted.latent_keys(z, 1))
    assert scores.shape == (5, 3)
    for i, j in itertools.product(range(5), range(3)):
        one = fitted.scores(fitted.image_keys(fitted.embed(images[i : i + 1]), 1), fitted.latent_keys(z[j : j + 1], 1))
        assert one.item() == pytest.approx(scores[i, j].item(), abs=1e-4)
    with pytest.raises(InputError, match=r"group: expected 1…2, got 0"):
        fitted.latent_keys(z, 0)


def test_gradient_with_respect_to_the_image_against_finite_differences():
    torch.manual_seed(6)
    critic = Critic(config(), 2, 3, SIZE).double()
    image, direction = torch.rand(2, 1, 1, SIZE, SIZE, dtype=torch.float64) - 0.5
    bank = torch.randn(20, 3, dtype=torch.float64)

    def log_probability(y: Tensor) -> Tensor:
        return critic.scores(critic.image_keys(critic.embed(y), 2), critic.latent_keys(bank, 2)).log_softmax(1)[0, 0]

    image.requires_grad_()
    (gradient,) = torch.autograd.grad(log_probability(image), image)
    step = 1e-5
    with torch.no_grad():
        rise = log_probability(image + step * direction) - log_probability(image - step * direction)
    difference = float(rise) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-6)
    assert abs(difference) > 1e-6


def test_a_fit_depends_on_its_seed_alone_and_resumes_bitwise(tmp_path: Path, killed_after):
    whole = small_fit()
    torch.rand(3)
    assert same(whole, small_fit())
    assert not same(whole, small_fit(seed=1))
    with killed_after(7, "migvis.critic"):
        small_fit(checkpoint=tmp_path / "critic.pt")
    assert same(whole, small_fit(checkpoint=tmp_path / "critic.pt"))


def test_embeddings_stand_in_for_a_frozen_encoder():
    torch.manual_seed(7)
    backbone = torch.nn.Sequential(torch.nn.AvgPool2d(28), torch.nn.Flatten(), torch.nn.Linear(192, 10))
    encoder = PretrainedEncoder(backbone, 10)
    clean, pool = torch.rand(8, 1, SIZE, SIZE), torch.rand(8, 2, 1, SIZE, SIZE)
    embeddings = embed_pool(encoder, clean, pool, batch=7)
    assert embeddings.shape == (8, 3, 10)
    torch.testing.assert_close(embeddings[4, 2], encoder(pool[4, 1:2])[0])
    mean, log_var, row = torch.randn(8, 4), torch.zeros(8, 4), torch.arange(8)
    settings = config(infonce_batch=6, images_seen=36, training_images="pool")
    computed, _ = fit_critic(clean, pool, mean, log_var, row, settings, 2, encoder=encoder, seed=0)
    looked_up, _ = fit_critic(clean, None, mean, log_var, row, settings, 2, encoder=encoder, embeddings=embeddings, seed=0)
    for a, b in zip(computed.parameters(), looked_up.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    tensors, description = critic_state(computed)
    assert not [name for name in tensors if name.startswith("encoder.")]
    assert same(load_critic(tensors, description, encoder), computed)


def test_state_goes_through_safetensors_and_json(tmp_path: Path, fitted, planted):
    tensors, description = critic_state(fitted)
    save_file(tensors, tmp_path / "critic.safetensors")
    loaded = load_critic(load_file(tmp_path / "critic.safetensors"), json.loads(json.dumps(description)))
    assert same(loaded, fitted)
    assert torch.equal(loaded.embed(planted["images"][:4]), fitted.embed(planted["images"][:4]))
    with pytest.raises(InputError, match="latent_scale is missing"):
        load_critic({k: v for k, v in tensors.items() if k != "latent_scale"}, description)


def test_bad_arguments_are_refused():
    good = {"clean": torch.zeros(8, 1, SIZE, SIZE), "pool": None, "mean": torch.zeros(9, 4), "log_var": torch.zeros(9, 4)}
    good |= {"picture_row": torch.tensor([*range(8), 0]), "config": config(infonce_batch=8), "group_count": 2, "seed": 0}
    for change, message in (
        ({"config": config(infonce_batch=9)}, r"critic.infonce_batch: 9 exceeds the 8 different training pictures"),
        ({"config": config(infonce_batch=8, training_images="pool")}, "needs a pool"),
        ({"picture_row": torch.zeros(9, dtype=torch.int64)}, "picture_row"),
        ({"picture_row": torch.arange(8)}, "picture_row"),
        ({"group_count": 3}, "mean, log_var"),
        ({"pool": torch.zeros(8, 2, 1, 16, 16)}, "pool"),
        ({"embeddings": torch.zeros(8, 1, 5)}, "embeddings cannot stand in"),
    ):
        with pytest.raises(InputError, match=message):
            fit_critic(**(good | change))
