"""Pretrained image networks through timm: from a file, or from timm's hub and its local cache."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from migvis.errors import InputError

SIDE = 224


def read_weights(path: str | Path, field: str) -> dict[str, Tensor]:
    """Tensors by name of a `.safetensors` file, or of a PyTorch file read without running any code in it.

    Raises InputError naming `field` and the file if it is missing or cannot be read as either.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{field}: no file {file}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(file))
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise InputError(f"{field}: {file} is neither safetensors nor a PyTorch file of tensors") from error
    except Exception as error:  # safetensors has an exception class of its own, outside its Python interface
        raise InputError(f"{field}: {file} cannot be read ({type(error).__name__})") from error
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(f"{field}: {file} does not hold tensors by name")
    return stored


def load_backbone(name: str, weights: str | Path | None, field: str) -> nn.Module:
    """timm's network `name` without classifier, frozen, in evaluation mode: images [n,3,224,224] -> features [n,E].

    weights: a file of that network's weights (a classifier in it is ignored); none: timm's hub or its local
    cache. Raises InputError naming the configuration `field` if neither gives weights that fit.
    """
    stored = None if weights is None else read_weights(weights, field)
    import timm

    if stored is None:
        try:
            model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
        except Exception as error:  # the hub raises many kinds: no network, no cache, no permission
            raise InputError(
                f"{field}: no weights of {name} in timm's hub or its local cache ({type(error).__name__}); give a file"
            ) from error
    else:
        model = timm.create_model(name, pretrained=False, num_classes=0)
        expected = model.state_dict()
        wrong = [key for key, value in expected.items() if key not in stored or stored[key].shape != value.shape]
        if wrong:
            raise InputError(f"{field}: {weights} does not fit {name}: tensor {wrong[0]} is missing or of another shape")
        model.load_state_dict({key: stored[key] for key in expected})
    return model.requires_grad_(False).eval()


class PretrainedEncoder(nn.Module):
    """A frozen backbone with its preprocessing: grey images [n,1,H,W] in [−1, 1] -> features [n, width].

    [−1, 1] -> [0, 1] -> bicubic to 224 px (antialiased when that shrinks) -> three equal channels -> ImageNet
    mean and standard deviation. Frozen, but differentiable with respect to the images.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.width = width
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """Stays in evaluation mode: its statistics are those it was trained with."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        unit = (images + 1) / 2
        sized = interpolate(unit, size=(SIDE, SIDE), mode="bicubic", align_corners=False, antialias=max(images.shape[-2:]) > SIDE)
        features: Tensor = self.backbone((sized.expand(-1, 3, -1, -1) - self.mean) / self.deviation)
        return features
