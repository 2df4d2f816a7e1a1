"""Fitted models as files: tensors as safetensors, descriptions as JSON beside them. Nothing here reads or writes a pickle.

The stage store, a trial's artifacts and the exported bundle all hold models in these files, one folder per model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from migvis.config import DenoiserConfig
from migvis.critic import Critic, critic_state, load_critic
from migvis.diffusion import noise_schedule
from migvis.encoders import Encoder
from migvis.errors import InputError
from migvis.guidance import LatentBank
from migvis.unet import UNet
from migvis.vae import NeuralVAE, load_vae, vae_state


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as safetensors; the folder is made if needed."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, str(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU. Raises InputError if it is missing, damaged, or holds NaN or infinity."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        tensors = load_file(str(path))
    except Exception as error:  # safetensors has an exception class of its own, outside its Python interface
        raise InputError(f"{path}: not a readable safetensors file ({type(error).__name__})") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{path}: tensor {name} holds values that are not finite")
    return tensors


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object; the folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError if it is missing or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def save_denoiser(folder: Path, unet: UNet) -> None:
    """Writes denoiser.safetensors and denoiser.json (its configuration and the image size) into `folder`."""
    save_tensors(folder / "denoiser.safetensors", unet.state_dict())
    save_json(folder / "denoiser.json", {"denoiser": unet.config.model_dump(mode="json"), "image_size": unet.image_size})


def load_denoiser(folder: Path) -> UNet:
    """The U-Net that save_denoiser wrote, frozen, in evaluation mode on the CPU. Raises InputError for damaged files."""
    tensors, description = read_tensors(folder / "denoiser.safetensors"), read_json(folder / "denoiser.json")
    try:
        config = DenoiserConfig.model_validate(description["denoiser"])
        with torch.random.fork_rng(devices=[]):
            unet = UNet(config, int(description["image_size"]), noise_schedule(config.diffusion_steps))
        if unet.memory is not None:
            unet.memory.remember(tensors["memory.pictures"][:, None].float() / 127.5 - 1)
        unet.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError) as error:
        raise _misfit(folder / "denoiser.safetensors", error) from error
    return unet.eval().requires_grad_(False)


def save_vae(folder: Path, vae: NeuralVAE) -> None:
    """Writes vae.safetensors and vae.json into `folder`."""
    tensors, description = vae_state(vae)
    save_tensors(folder / "vae.safetensors", tensors)
    save_json(folder / "vae.json", description)


def load_vae_folder(folder: Path) -> NeuralVAE:
    """The VAE that save_vae wrote, in evaluation mode on the CPU. Raises InputError for damaged files."""
    tensors, description = read_tensors(folder / "vae.safetensors"), read_json(folder / "vae.json")
    try:
        return load_vae(tensors, description)
    except (InputError, ValueError, AttributeError) as error:
        raise _misfit(folder / "vae.safetensors", error) from error


def save_critic(folder: Path, critic: Critic) -> None:
    """Writes critic.safetensors and critic.json into `folder`. A frozen encoder is named there, its weights are not stored."""
    tensors, description = critic_state(critic)
    save_tensors(folder / "critic.safetensors", tensors)
    save_json(folder / "critic.json", description)


def load_critic_folder(folder: Path, encoder: Encoder | None = None) -> Critic:
    """The critic that save_critic wrote, in evaluation mode on the CPU; `encoder` stands in for building a frozen one.

    Raises InputError for damaged files, and if a frozen encoder's weights are not to be found.
    """
    tensors, description = read_tensors(folder / "critic.safetensors"), read_json(folder / "critic.json")
    try:
        with torch.random.fork_rng(devices=[]):
            return load_critic(tensors, description, encoder)
    except InputError as error:
        if str(error).startswith("critic.encoder_weights"):
            raise
        raise _misfit(folder / "critic.safetensors", error) from error
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError) as error:
        raise _misfit(folder / "critic.safetensors", error) from error


def save_bank(folder: Path, bank: LatentBank) -> None:
    """Writes bank.safetensors: the latents in the denominator of the guidance, of which stimuli and pictures they are."""
    save_tensors(folder / "bank.safetensors", {"latents": bank.latents, "rows": bank.rows, "pictures": bank.pictures})


def load_bank(folder: Path) -> LatentBank:
    """The bank that save_bank wrote. Raises InputError for a damaged file."""
    path = folder / "bank.safetensors"
    tensors = read_tensors(path)
    if set(tensors) != {"latents", "rows", "pictures"}:
        raise InputError(f"{path}: expected the tensors latents, rows and pictures, got {', '.join(sorted(tensors)) or 'none'}")
    latents, numbers = tensors["latents"], (tensors["rows"], tensors["pictures"])
    if latents.ndim != 2 or not len(latents) or any(n.shape != latents.shape[:1] or n.dtype != torch.int64 for n in numbers):
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise InputError(f"{path}: {shapes} do not fit together")
    return LatentBank(latents, *numbers)


def _misfit(path: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return InputError(f"{path}: does not fit {path.with_suffix('.json').name} ({reason})")
