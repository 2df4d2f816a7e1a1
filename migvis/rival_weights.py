"""Fitted rivals of the critic as files, in the manner of migvis.weights: one folder per model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from migvis.conditional import ConditionalDenoiser
from migvis.errors import InputError
from migvis.image_decoder import ImageDecoder, image_decoder_state, load_image_decoder
from migvis.latent_encoder import LatentEncoder, latent_encoder_state, load_latent_encoder
from migvis.latent_regression import LatentRegression, latent_regression_state, load_latent_regression
from migvis.weights import load_denoiser, read_json, read_tensors, save_denoiser, save_json, save_tensors

Model = TypeVar("Model")


def save_latent_encoder(folder: Path, model: LatentEncoder) -> None:
    """Writes latent_encoder.safetensors and .json. A frozen encoder is named there, its weights are not stored."""
    _save(folder, "latent_encoder", *latent_encoder_state(model))


def load_latent_encoder_folder(folder: Path) -> LatentEncoder:
    """What save_latent_encoder wrote, on the CPU. Raises InputError for damaged files, and without a frozen encoder's weights."""
    return _load(folder, "latent_encoder", load_latent_encoder)


def save_latent_regression(folder: Path, model: LatentRegression) -> None:
    """Writes latent_regression.safetensors and .json, without the weights of a frozen encoder."""
    _save(folder, "latent_regression", *latent_regression_state(model))


def load_latent_regression_folder(folder: Path) -> LatentRegression:
    """What save_latent_regression wrote, on the CPU. Raises InputError as load_latent_encoder_folder does."""
    return _load(folder, "latent_regression", load_latent_regression)


def save_image_decoder(folder: Path, model: ImageDecoder) -> None:
    """Writes image_decoder.safetensors and .json."""
    _save(folder, "image_decoder", *image_decoder_state(model))


def load_image_decoder_folder(folder: Path) -> ImageDecoder:
    """What save_image_decoder wrote, on the CPU. Raises InputError for damaged files."""
    return _load(folder, "image_decoder", load_image_decoder)


def save_conditional(folder: Path, model: ConditionalDenoiser) -> None:
    """Writes the U-Net as save_denoiser does, and what embeds the latents as condition.safetensors and .json."""
    save_denoiser(folder, model.unet)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("unet.")}
    _save(folder, "condition", tensors, {"group_count": model.group_count, "group_rank": model.group_rank})


def load_conditional(folder: Path) -> ConditionalDenoiser:
    """What save_conditional wrote, frozen, in evaluation mode on the CPU. Raises InputError for damaged files."""
    unet = load_denoiser(folder)

    def made(tensors: dict[str, Tensor], description: dict[str, Any]) -> ConditionalDenoiser:
        conditional = ConditionalDenoiser(unet, int(description["group_count"]), int(description["group_rank"]))
        of_unet = {f"unet.{name}": tensor for name, tensor in unet.state_dict().items()}
        conditional.load_state_dict({**tensors, **of_unet})
        return conditional.eval().requires_grad_(False)

    return _load(folder, "condition", made)


def _save(folder: Path, name: str, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    save_tensors(folder / f"{name}.safetensors", tensors)
    save_json(folder / f"{name}.json", description)


def _load(folder: Path, name: str, make: Callable[[dict[str, Tensor], dict[str, Any]], Model]) -> Model:
    path = folder / f"{name}.safetensors"
    tensors, description = read_tensors(path), read_json(path.with_suffix(".json"))
    try:
        with torch.random.fork_rng(devices=[]):
            return make(tensors, description)
    except (InputError, KeyError, TypeError, ValueError, ValidationError, RuntimeError) as error:
        if str(error).startswith("critic.encoder_weights"):
            raise
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"{path}: does not fit {name}.json ({reason})") from error
