"""Fits of the denoiser: what they reach, how they resume, and in what they compute."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from migvis.config import DenoiserConfig
from migvis.diffusion import denoising_loss, fit_denoiser, noise_schedule
from migvis.training import FitError
from migvis.unet import UNet, bfloat16_convolutions

TINY = DenoiserConfig(
    base_width=8, width_multipliers=(1, 2), stem_patch=2, diffusion_steps=10, batch_size=8, training_steps=12, learning_rate=3e-3
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_fit_lowers_the_loss_and_resumes_to_the_same_weights(tmp_path: Path, killed_after: Callable[..., Any]) -> None:
    axis = torch.linspace(-1, 1, 16)
    distance = (axis[:, None, None] - axis[:, None]).abs() + (axis[:, None, None] - axis).abs()
    images = torch.where(distance < 0.6, 0.7, -0.7)[:, None]
    long = TINY.model_copy(update={"training_steps": 80})
    fitted, result = fit_denoiser(images, long, seed=1)
    noise, t = normal(16, 1, 16, 16, seed=9), torch.arange(16) % 9 + 1
    untrained = UNet(TINY, 16, noise_schedule(10)).requires_grad_(False)
    untrained.normalise_to(images)
    before = denoising_loss(untrained, images, noise, t)
    assert float(denoising_loss(fitted, images, noise, t)) < 0.8 * float(before)
    assert result.curves["loss"][-1][0] == 80
    assert not fitted.training
    assert not any(weight.requires_grad for weight in fitted.parameters())

    whole, _ = fit_denoiser(images, TINY, seed=1)
    with killed_after(7, "migvis.diffusion"):
        fit_denoiser(images, TINY, seed=1, checkpoint=tmp_path / "checkpoint.pt")
    resumed, after = fit_denoiser(images, TINY, seed=1, checkpoint=tmp_path / "checkpoint.pt")
    assert after.start_step == 7
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_bfloat16_convolutions_round_what_convolutions_multiply_and_nothing_else() -> None:
    unet = UNet(TINY, 16, noise_schedule(10))
    convolutions = [module for module in unet.modules() if isinstance(module, nn.Conv2d)]
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    layers = [module for module in unet.modules() if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm)]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.weight.copy_(normal(*layer.weight.shape, seed=number) / layer.weight[0].numel() ** 0.5)
            layer.register_forward_hook(lambda layer, inputs, output: seen.update({layer: (inputs[0], output)}))
    noisy, t = normal(3, 1, 16, 16), torch.tensor([1, 5, 9])
    exact = unet(noisy, t)
    with bfloat16_convolutions(unet):
        unet(noisy, t).square().mean().backward()
    found = {layer: seen[layer] for layer in layers}
    assert torch.equal(unet(noisy, t), exact), "it ends with the context"
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in unet.parameters())
    assert len(convolutions) > 10
    for layer, (given, output) in found.items():
        assert given.dtype == output.dtype == torch.float32
        in_float32 = copy.deepcopy(layer).forward(given)
        if layer not in convolutions:
            assert torch.equal(output, in_float32)
            continue
        rounded = copy.deepcopy(layer)
        with torch.no_grad():
            for weight in rounded.parameters():
                weight.copy_(weight.bfloat16())
        assert torch.equal(output, output.bfloat16().float())
        assert torch.allclose(output, rounded.forward(given.bfloat16().float()), rtol=2**-7, atol=1e-3)
        assert not torch.equal(output, in_float32)


def test_a_fit_in_bfloat16_is_near_that_in_float32_and_resumes_to_the_same_weights(tmp_path: Path, killed_after) -> None:
    images = normal(16, 1, 16, 16).clamp(-1, 1)
    exact, of_exact = fit_denoiser(images, TINY, seed=1)
    rounded, of_rounded = fit_denoiser(images, TINY, seed=1, precision="bf16")
    (_, last), (_, last_rounded) = of_exact.curves["loss"][-1], of_rounded.curves["loss"][-1]
    assert last_rounded != last
    assert last_rounded == pytest.approx(last, rel=0.01)
    for ours, theirs in zip(rounded.parameters(), exact.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, theirs, atol=1.5e-2)
    with killed_after(7, "migvis.diffusion"):
        fit_denoiser(images, TINY, seed=1, precision="bf16", checkpoint=tmp_path / "checkpoint.pt")
    resumed, after = fit_denoiser(images, TINY, seed=1, precision="bf16", checkpoint=tmp_path / "checkpoint.pt")
    assert after.start_step == 7
    assert all(map(torch.equal, rounded.state_dict().values(), resumed.state_dict().values()))
    noise = normal(16, 1, 16, 16, seed=3)
    ours = resumed(noise, torch.full((16,), 5))
    resumed.load_state_dict(exact.state_dict())
    assert torch.equal(resumed(noise, torch.full((16,), 5)), exact(noise, torch.full((16,), 5))), "a fitted one is in float32"
    assert not torch.equal(ours, exact(noise, torch.full((16,), 5)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_fit_has_the_weights_of_a_plain_one_and_needs_no_compiler(tmp_path: Path, monkeypatch) -> None:
    import torch._dynamo
    import torch._inductor.config as inductor

    images = normal(16, 1, 16, 16).clamp(-1, 1)
    few = TINY.model_copy(update={"training_steps": 3})
    plain, _ = fit_denoiser(images, few, seed=1)
    torch._dynamo.utils.counters.clear()
    fitted, _ = fit_denoiser(images, few, seed=1, compile_network=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert "network" not in vars(fitted), "what compiled code there is ends with the fit"
    for ours, theirs in zip(fitted.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    # Without a compiler, and without what an earlier one left on the disk.
    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", (str(tmp_path / "none"),))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    without, _ = fit_denoiser(images, few, seed=1, compile_network=True)
    assert all(map(torch.equal, without.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize("recall", [0.0, 0.5, 1.0])
def test_a_fit_leaves_each_picture_out_of_what_is_remembered(recall: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all draws but a share `memory_recall`, in which nothing is left out (−1)."""
    images = normal(20, 1, 16, 16).clamp(-1, 1).mul(127.5).add(127.5).round().div(127.5).sub(1)
    asked = []

    def loss(unet: UNet, batch: Tensor, noise: Tensor, t: Tensor, own: Tensor) -> Tensor:
        asked.append((batch, own))
        return denoising_loss(unet, batch, noise, t, own)

    monkeypatch.setattr("migvis.diffusion.denoising_loss", loss)
    fields = {"memory_copies": 2, "training_steps": 8, "memory_recall": recall}
    unet, _ = fit_denoiser(images, TINY.model_copy(update=fields), seed=1)
    assert unet.memory is not None
    known = unet.memory.images
    assert len(asked) == 8
    left_out = torch.cat([own for _, own in asked]) >= 0
    assert float(left_out.float().mean()) == pytest.approx(1 - recall, abs=0.0 if recall != 0.5 else 0.2)
    for batch, own in asked:
        for image, row in zip(batch[own >= 0], own[own >= 0], strict=True):
            assert any(torch.allclose(image, same, atol=1e-5) for same in (known[row], known[row].flip(-1)))


def test_a_fit_to_broken_images_stops_with_its_step() -> None:
    images = torch.full((8, 1, 16, 16), float("nan"))
    with pytest.raises(FitError, match="fit denoiser: the loss is nan at step 0"):
        fit_denoiser(images, TINY, seed=0)
