"""Many VAEs fitted at once: each equals its separate fit, and what cannot be fitted together is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from migvis import randomness
from migvis.config import VAEConfig
from migvis.errors import InputError
from migvis.optimizer import Adam
from migvis.partial_correlation import partial_correlation
from migvis.training import FitError
from migvis.vae import standard, vae_state
from migvis.vae_fit import fit_vae, fit_vaes

CONFIG = VAEConfig(group_count=3, group_rank=2, hidden_width=16, batch_size=25, epochs=15, pc_weight=1e-3)
CONFIGS = [
    CONFIG,
    CONFIG.model_copy(update={"pc_weight": 0.05, "kl_weight": 0.01}),
    CONFIG.model_copy(update={"pc_weight": 0.0, "supervision_weight": 1.0}),
    CONFIG.model_copy(update={"category_weight": 0.7, "learning_rate": 3e-3}),
]
SEEDS = [5, 5, 6, 7]


def normal(stream: str, count: int, *shape: int) -> Tensor:
    return randomness.normal(0, stream, 0, torch.arange(count), shape).double()


@pytest.fixture(scope="module")
def stimuli() -> tuple[Tensor, Tensor, Tensor]:
    """Responses [160, 20] in float64, pose [160, 6] and category [160]."""
    factors = normal("factors", 160, 5)
    category = (factors[:, 3] > 0).long() + (factors[:, 4] > 0).long()
    responses = factors @ normal("weights", 5, 20) + 0.3 * normal("trials", 160, 20)
    return responses, 20 * normal("pose", 160, 6) + 30 * factors[:, :1], category


def closest(pair: tuple[dict[str, Tensor], dict[str, Tensor]], **tolerance: float) -> None:
    assert pair[0].keys() == pair[1].keys()
    for name, tensor in pair[0].items():
        torch.testing.assert_close(tensor, pair[1][name], **tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_each_of_many_is_its_separate_fit(stimuli: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype, tolerance: float) -> None:
    responses, pose, category = stimuli
    fitted = fit_vaes(responses.to(dtype), pose, category, CONFIGS, SEEDS, category_count=3)
    for config, seed, (vae, result) in zip(CONFIGS, SEEDS, fitted, strict=True):
        alone, expected = fit_vae(responses.to(dtype), pose, category, config, category_count=3, seed=seed)
        assert vae.config == config
        assert not vae.training
        closest((vae_state(vae)[0], vae_state(alone)[0]), rtol=0, atol=tolerance)
        # Without β a fit alone computes PC at logged steps only; with others it does so at every step.
        assert result.curves.keys() == expected.curves.keys()
        for name, curve in expected.curves.items():
            assert [at for at, _ in result.curves[name]] == [at for at, _ in curve]
            assert [value for _, value in result.curves[name]] == pytest.approx([value for _, value in curve], rel=1e-3)
    first, second = (vae_state(vae)[0]["decoder.0.weight"] for vae, _ in fitted[:2])
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("labels", ["both", "pose", "category"])
@pytest.mark.parametrize("changes", [{}, {"readout": "diagonal", "group_rank": 3}])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_few_steps_of_each_are_its_own_whatever_it_learns(
    stimuli: tuple[Tensor, Tensor, Tensor], labels: str, changes: dict[str, Any], count: int, precision: Literal["fp32", "bf16"]
) -> None:
    responses, pose, category = stimuli
    data = responses.float(), None if labels == "category" else pose, None if labels == "pose" else category
    configs = [config.model_copy(update={"epochs": 2, **changes}) for config in CONFIGS[:count]]
    fitted = fit_vaes(*data, configs, SEEDS[:count], category_count=3, precision=precision)
    for config, seed, (vae, _) in zip(configs, SEEDS, fitted, strict=False):
        alone, _ = fit_vae(*data, config, category_count=3, seed=seed, precision=precision)
        # In bf16 a step may round to the other side, and Adam's first steps are as long as the learning rate.
        closest((vae_state(vae)[0], vae_state(alone)[0]), rtol=0, atol=1e-6 if precision == "fp32" else 3e-3)


def test_standard_vaes_and_data_without_labels_are_fitted_together(stimuli: tuple[Tensor, Tensor, Tensor]) -> None:
    responses, pose, category = stimuli
    for labels in ((pose, category), (None, None)):
        configs = [standard(CONFIG), standard(CONFIG.model_copy(update={"kl_weight": 0.1}))]
        for config, (vae, result) in zip(configs, fit_vaes(responses, *labels, configs, [0, 0], category_count=3), strict=True):
            alone, _ = fit_vae(responses, *labels, config, category_count=3, seed=0)
            assert set(result.curves) == {"loss", "mse", "kl", "pc", "pc_saturation"}
            closest((vae_state(vae)[0], vae_state(alone)[0]), rtol=0, atol=1e-10)


def test_resumed_fit_of_many_is_bitwise_the_uninterrupted_one(
    stimuli: tuple[Tensor, Tensor, Tensor], tmp_path: Path, killed_after: Callable[[int, str], AbstractContextManager[None]]
) -> None:
    arguments = (*stimuli, CONFIGS, SEEDS)
    whole = fit_vaes(*arguments, category_count=3)
    checkpoint = tmp_path / "vaes.pt"
    with killed_after(47, "migvis.vae_fit"):
        fit_vaes(*arguments, category_count=3, checkpoint=checkpoint)
    resumed = fit_vaes(*arguments, category_count=3, checkpoint=checkpoint)
    for (vae, result), (expected, uninterrupted) in zip(resumed, whole, strict=True):
        assert result.start_step == 47
        assert result.curves == uninterrupted.curves
        closest((vae_state(vae)[0], vae_state(expected)[0]), rtol=0, atol=0)


def test_what_cannot_be_fitted_together_is_refused(stimuli: tuple[Tensor, Tensor, Tensor]) -> None:
    for other in ({"group_rank": 3}, {"batch_size": 20}, {"supervision_weight": 0.0}, {"category_weight": 0.0}):
        with pytest.raises(InputError, match=r"fit_vaes: the configurations may differ in category_weight, .* only"):
            fit_vaes(*stimuli, [CONFIG, CONFIG.model_copy(update=other)], [0, 1], category_count=3)
    with pytest.raises(InputError, match="expected a seed for each configuration, got 2 and 1"):
        fit_vaes(*stimuli, [CONFIG, CONFIG], [0], category_count=3)


def test_a_loss_that_is_not_finite_names_the_fit_it_is_of(stimuli: tuple[Tensor, Tensor, Tensor]) -> None:
    responses, *labels = stimuli
    configs = [CONFIG, CONFIG.model_copy(update={"kl_weight": 1e39})]  # beyond float32
    with pytest.raises(FitError, match=r"fit vae second: the loss is inf at step 0 \(mse \d"):
        fit_vaes(responses.float(), *labels, configs, [0, 0], category_count=3, names=["first", "second"])


def test_partial_correlation_of_many_models_is_that_of_each() -> None:
    shape = (3, 20, 6)
    arguments = [normal(name, 3, 20, 6).requires_grad_() for name in ("z", "mean", "log_var")]
    assert arguments[0].shape == shape
    weights = torch.tensor([1.0, -2.0, 0.5]).double()
    together = partial_correlation(*arguments, 3, 50)
    alone = torch.stack([partial_correlation(*one, 3, 50) for one in zip(*arguments, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad((weights * value).sum(), arguments) for value in (together, alone))
    for ours, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("models_at_a_time", [1, 2, 3])
def test_partial_correlation_does_not_depend_on_how_many_models_are_worked_on_at_once(
    monkeypatch: pytest.MonkeyPatch, models_at_a_time: int
) -> None:
    arguments = [normal(name, 5, 20, 6) for name in ("z", "mean", "log_var")]

    def value_and_gradients() -> tuple[Tensor, ...]:
        leaves = [argument.clone().requires_grad_() for argument in arguments]
        value = partial_correlation(*leaves, 3, 50)
        return value.detach(), *torch.autograd.grad(value.sum(), leaves)

    expected = value_and_gradients()
    monkeypatch.setattr("migvis.partial_correlation.CHUNK_NUMBERS", models_at_a_time * 3 * 20**2)
    for ours, theirs in zip(value_and_gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_adam_with_a_rate_for_each_model_is_adam_on_each() -> None:
    rates = torch.tensor([1e-3, 5e-2, 7e-3]).double()
    stacked = normal("weights", 3, 4, 2)
    separate = [weight.clone() for weight in stacked]
    together, alone = Adam([stacked]), [Adam([weight]) for weight in separate]
    for step in range(5):
        stacked.grad = normal(f"gradient {step}", 3, 4, 2)
        together.step(rates)
        for weight, adam, rate, gradient in zip(separate, alone, rates, stacked.grad, strict=True):
            weight.grad = gradient.clone()
            adam.step(float(rate))
    torch.testing.assert_close(stacked, torch.stack(separate), rtol=1e-13, atol=1e-13)


def test_normal_of_each_draws_what_normal_draws() -> None:
    samples = torch.stack([torch.arange(7), torch.arange(30, 37), torch.arange(7)])
    drawn = randomness.normal_of_each([3, 4, 9], "noise", 11, samples, (5,))
    for seed, sample, row in zip([3, 4, 9], samples, drawn, strict=True):
        assert torch.equal(row, randomness.normal(seed, "noise", 11, sample, (5,)))
