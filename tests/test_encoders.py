from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from migvis.config import CriticConfig
from migvis.encoders import DINO, SmallCNN, build_encoder, is_frozen
from migvis.errors import InputError
from migvis.pretrained import PretrainedEncoder, read_weights

SQUARES = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


@pytest.mark.parametrize("size", [32, 40, 64, 128])
def test_the_small_encoder_has_one_width_at_every_image_size(size):
    encoder = build_encoder(CriticConfig(encoder="cnn"), size)
    assert encoder(torch.zeros(2, 1, size, size)).shape == (2, encoder.width)
    assert encoder.width == 1024
    assert not is_frozen(encoder)


def test_the_small_encoder_keeps_where_things_are():
    torch.manual_seed(0)
    encoder = SmallCNN(32)
    left, right = torch.zeros(2, 1, 1, 32, 32)
    left[..., 12:20, 4:12] = 1
    right[..., 12:20, 20:28] = 1
    blank = encoder(torch.zeros(1, 1, 32, 32))
    change_left, change_right = ((encoder(image) - blank).detach().unflatten(1, (-1, 4, 4)) for image in (left, right))
    assert change_left[..., :2].abs().sum() > 5 * change_left[..., 3:].abs().sum()
    assert change_right[..., 2:].abs().sum() > 5 * change_right[..., :1].abs().sum()


def test_preprocessing_is_that_of_imagenet_and_keeps_the_gradient():
    encoder = PretrainedEncoder(SQUARES, 3)
    grey = torch.full((2, 1, 32, 32), -1.0)
    grey[1] = 1.0
    expected = (torch.tensor([[0.0], [1.0]]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(encoder(grey), expected, atol=1e-4, rtol=1e-4)
    grey.requires_grad_()
    encoder(grey).sum().backward()
    assert grey.grad is not None
    assert float(grey.grad.abs().min()) > 0
    assert encoder(torch.zeros(1, 1, 300, 300)).shape == (1, 3)


def test_a_pretrained_encoder_stays_frozen_and_in_evaluation_mode():
    encoder = PretrainedEncoder(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 224**2, 2), torch.nn.Dropout()), 2)
    assert is_frozen(encoder)
    encoder.train()
    assert not any(module.training for module in encoder.modules())


def test_dino_is_loaded_from_a_file(tmp_path: Path):
    import timm

    torch.manual_seed(1)
    model = timm.create_model(DINO, pretrained=False, num_classes=7).eval()
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, tmp_path / "dino.safetensors")
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    unit = torch.nn.functional.interpolate((images + 1) / 2, size=(224, 224), mode="bicubic", align_corners=False)
    coloured = unit.repeat(1, 3, 1, 1).sub(torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
    tokens = model.forward_features(coloured / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
    encoder = build_encoder(CriticConfig(encoder_weights=str(tmp_path / "dino.safetensors")), 32)
    assert encoder.width == 384
    torch.testing.assert_close(encoder(images), tokens[:, 0], atol=1e-4, rtol=1e-4)
    weights["pos_embed"] = weights["pos_embed"][:, :5].clone()
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"critic.encoder_weights: .* does not fit .* tensor pos_embed"):
        build_encoder(CriticConfig(encoder_weights=str(tmp_path / "other.safetensors")), 32)


def test_no_weights_anywhere_is_one_line_that_asks_for_a_file(monkeypatch):
    import timm

    def offline(*_, pretrained: bool, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"critic.encoder_weights: no weights of .*; give a file") as caught:
        build_encoder(CriticConfig(), 32)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_weights_are_refused(tmp_path: Path):
    for name in ("x.safetensors", "x.pth"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(InputError, match=r"field: .*x"):
            read_weights(tmp_path / name, "field")
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pth")
    assert torch.equal(read_weights(tmp_path / "good.pth", "field")["a"], torch.ones(2))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="does not hold tensors by name"):
        read_weights(tmp_path / "list.pth", "field")
    with pytest.raises(InputError, match="no file"):
        read_weights(tmp_path / "absent.pth", "field")
