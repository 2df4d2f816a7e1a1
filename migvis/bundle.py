"""The bundle: a fitted configuration as a folder that stands on its own, and the object that reads and edits with it.

    bundle.json              format, version, subjects, SHA-256 of every file
    configuration.json       the configuration, the pixel variance of the training images, what else is needed
    normalisation.json       the statistics that turn raw responses and labels into the models' units
    denoiser.safetensors     with denoiser.json
    subjects/<name>/         vae, critic and bank as .safetensors, descriptions as .json
    metrics.json  provenance.json  grids/*.png  README.md (the model card)

No pickle is written or read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from migvis import weights
from migvis.arguments import array_argument, number_argument, shift_argument, whole_argument
from migvis.bundle_files import (
    CONFIGURATION,
    DENOISER_FILES,
    FORMAT,
    MANIFEST,
    MODEL_FILES,
    VERSION,
    check_subject_name,
    copy_files,
    digest,
    file_name,
    plain_json,
    read_configuration,
    verify,
    written_aside,
)
from migvis.config import Configuration
from migvis.critic import Critic
from migvis.encoders import build_encoder
from migvis.errors import InputError
from migvis.guidance import Information, LatentBank
from migvis.keeping import KeepingOthers
from migvis.model_card import model_card
from migvis.synthesis import CHUNK, GuidedEditor, shift_edits, target_edits
from migvis.unet import UNet
from migvis.vae import NeuralVAE

_NOTHING: Mapping[str, Any] = {}


def write_models(
    folder: Path,
    configuration: Configuration,
    subjects: Mapping[str, tuple[NeuralVAE, Critic, LatentBank]],
    pixel_variance: float,
) -> None:
    """Writes a configuration's own models: `<subject>/` as migvis.weights does, and configuration.json."""
    for name, (vae, critic, bank) in subjects.items():
        subject = folder / check_subject_name(name)
        weights.save_vae(subject, vae)
        weights.save_critic(subject, critic)
        weights.save_bank(subject, bank)
    content = {"configuration": configuration.model_dump(mode="json"), "pixel_variance": float(pixel_variance)}
    weights.save_json(folder / CONFIGURATION, content)


def save_bundle(
    folder: Path,
    *,
    configuration: Configuration,
    unet: UNet,
    subjects: Mapping[str, tuple[NeuralVAE, Critic, LatentBank]],
    pixel_variance: float,
    metrics: Mapping[str, Any] = _NOTHING,
    images: Mapping[str, Path] = _NOTHING,
    provenance: Mapping[str, Any] = _NOTHING,
) -> Path:
    """Writes a bundle from models in memory; see `assemble_bundle`."""
    with tempfile.TemporaryDirectory() as aside:
        write_models(Path(aside) / "models", configuration, subjects, pixel_variance)
        weights.save_denoiser(Path(aside) / "denoiser", unet)
        return assemble_bundle(Path(aside) / "models", Path(aside) / "denoiser", folder, metrics, images, provenance)


def assemble_bundle(
    models: Path,
    denoiser: Path,
    out: Path,
    metrics: Mapping[str, Any] = _NOTHING,
    images: Mapping[str, Path] = _NOTHING,
    provenance: Mapping[str, Any] = _NOTHING,
) -> Path:
    """Writes the bundle `out` from folders of models, as write_models and save_denoiser write them; returns `out`.

    metrics: by name, their instruments' accuracy among them; images: pictures by name, copied to grids/; provenance:
    what they come from (study, trial, data digest, git revision, …). Written aside and renamed, so that `out` is whole
    or not there; an older bundle there is replaced. Raises InputError for models that are missing, damaged or do not fit
    together, and for an `out` that is something else or cannot be written.
    """
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists and is no bundle, so it is left as it is")
    configuration, pixel_variance = read_configuration(models / CONFIGURATION)
    names = sorted(path.name for path in models.iterdir() if path.is_dir())
    if not names:
        raise InputError(f"{models}: no subject's models in it")
    with written_aside(out) as aside:
        copy_files(denoiser, aside, DENOISER_FILES)
        for name in names:
            copy_files(models / name, aside / "subjects" / check_subject_name(name), MODEL_FILES)
        unet = weights.load_denoiser(aside)
        for key, path in images.items():
            copy_files(path.parent, aside / "grids", (path.name,), f"{file_name(key)}{path.suffix}")
        needs = "weights of DINO ViT-S/16" if configuration.critic.encoder == "dino" else None
        content = {"configuration": configuration.model_dump(mode="json"), "pixel_variance": pixel_variance}
        weights.save_json(aside / CONFIGURATION, {**content, "image_size": unet.image_size, "needs": needs})
        vaes = {name: weights.load_vae_folder(aside / "subjects" / name) for name in names}
        weights.save_json(aside / "normalisation.json", {name: _statistics(vae) for name, vae in vaes.items()})
        weights.save_json(aside / "metrics.json", plain_json(metrics))
        weights.save_json(aside / "provenance.json", plain_json(provenance))
        units = {name: vae.unit_count for name, vae in vaes.items()}
        card = model_card(configuration, units, unet.image_size, plain_json(metrics), plain_json(provenance), sorted(images))
        (aside / "README.md").write_text(card, encoding="utf-8")
        files = {path.relative_to(aside).as_posix(): digest(path) for path in sorted(aside.rglob("*")) if path.is_file()}
        weights.save_json(aside / MANIFEST, {"format": FORMAT, "version": VERSION, "subjects": names, "files": files})
        if configuration.critic.encoder != "dino":
            _open(aside, verify(aside), unet)
    return out


@dataclass(frozen=True)
class Bundle:
    """A fitted configuration: responses to latents, and stimuli to edits.

    vaes, editors and the banks of their guidance by subject; metrics and provenance as they were exported.
    """

    folder: Path
    configuration: Configuration
    image_size: int
    vaes: Mapping[str, NeuralVAE]
    editors: Mapping[str, GuidedEditor]
    banks: Mapping[str, LatentBank]
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects' names."""
        return tuple(self.vaes)

    def encode(self, responses: np.ndarray | Tensor, subject: str | None = None) -> Tensor:
        """Posterior means [n, D] of raw responses [n, N] of a subject (may be left out if there is one).

        Raises InputError for an unknown subject, another number of units, or values that are not finite.
        """
        vae = self.vaes[self._subject(subject)]
        raw = array_argument("responses", responses, (None, vae.unit_count)).to(vae.response_mean.dtype)
        with torch.no_grad():
            return vae.encode(raw)[0]

    def edit(
        self,
        images: np.ndarray | Tensor,
        *,
        group: int,
        subject: str | None = None,
        target: np.ndarray | Tensor | None = None,
        shift: float | Sequence[float] | np.ndarray | Tensor | None = None,
        latents: np.ndarray | Tensor | None = None,
        dimensions: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        edit_step: float | None = None,
    ) -> Tensor:
        """Edits of images [n, 1, H, W] in [−1, 1] towards a state of latent group 1…G: float32 of the same shape.

        Either target [n, D_g], latents of that group to go to; or shift, added to the stimuli's own latents [n, D] (as
        `encode` gives them) in sd of each dimension's posterior means over training images: a number or [D_g], restricted
        to `dimensions` (1…D_g) of the group. guidance_scale (γ ≥ 0) and edit_step (t′ as a fraction of T, in (0, 0.95])
        default to the configuration's. `latents` beside `target` keep the stimuli's own out of the denominator; a
        configuration that keeps what the other groups say (keep_weight) needs them.
        Deterministic. Raises InputError for anything else, in one line that names the argument and the value.
        """
        name = self._subject(subject)
        vae, editor, bank = self.vaes[name], self.editors[name], self.banks[name]
        pictures = array_argument("images", images, (None, 1, self.image_size, self.image_size))
        if float(pictures.abs().max()) > 1 + 1e-5:
            raise InputError(f"images: expected values in [−1, 1], got {float(pictures.min()):g}…{float(pictures.max()):g}")
        n = len(pictures)
        group = whole_argument("group", group, 1, vae.group_count)
        default = self.configuration.synthesis.guidance_scale
        scale = default if guidance_scale is None else number_argument("guidance_scale", guidance_scale)
        if scale < 0:
            raise InputError(f"guidance_scale: expected 0 or more, got {scale:g}")
        step = None if edit_step is None else number_argument("edit_step", edit_step)
        editor.step(step)
        if (target is None) == (shift is None):
            raise InputError(f"edit: expected either target or shift, got {'neither' if target is None else 'both'}")
        own = None if latents is None else array_argument("latents", latents, (n, vae.latent_count))
        keep_weight = self.configuration.synthesis.keep_weight
        if keep_weight and own is None:
            raise InputError(
                "latents: these edits keep what the other groups say of the stimuli (synthesis.keep_weight), which takes their "
                "own latents [n, D]; give those that encode returns"
            )
        columns = slice((group - 1) * vae.group_rank, group * vae.group_rank)
        own_rows = _bank_rows(bank, own, slice(None)) if own is not None else torch.full((n,), -1)
        if target is not None:
            if dimensions is not None:
                raise InputError("dimensions: only a shift can be restricted to dimensions of the group, got a target")
            goal = array_argument("target", target, (n, vae.group_rank))
            full = torch.zeros(n, vae.latent_count)
            full[:, columns] = goal
            goal_rows = _bank_rows(bank, goal, columns)
            edits = target_edits(torch.arange(n), group, scale, full, vae.group_rank, own_rows, goal_rows)
        else:
            if own is None:
                raise InputError("latents: a shift starts from the stimuli's own latents [n, D]; give those that encode returns")
            assert shift is not None
            delta = shift_argument(shift, vae.group_rank)
            if dimensions is not None and not len(dimensions):
                raise InputError("dimensions: expected at least one dimension of the group, got none")
            if dimensions is not None:
                dimensions = [whole_argument("dimensions", dimension, 1, vae.group_rank) for dimension in dimensions]
            spread = vae.latent_scale.float().view(vae.group_count, vae.group_rank)
            edits = shift_edits(torch.arange(n), group, scale, own, delta, spread, own_rows, dimensions)
        parts = []
        for rows in torch.arange(n).split(CHUNK):
            part = replace(edits.rows(rows), source=torch.arange(len(rows)))
            if own is not None and keep_weight:
                editor = _keeping(self.editors[name], keep_weight, vae.group_rank, own[rows])
            parts.append(editor.edit(pictures[rows], editor.invert(pictures[rows], edit_step=step), part, edit_step=step))
        return torch.cat(parts)

    def _subject(self, subject: str | None) -> str:
        known = ", ".join(self.vaes)
        if subject is None:
            if len(self.vaes) != 1:
                raise InputError(f"subject: the bundle has {len(self.vaes)} ({known}); name one")
            return next(iter(self.vaes))
        if subject not in self.vaes:
            raise InputError(f"subject: expected one of {known}, got {subject!r}")
        return subject


def load(folder: str | Path, encoder_weights: str | Path | None = None) -> Bundle:
    """Reads a bundle. encoder_weights: a file of DINO weights, where the bundle's critic needs them and another place has them.

    Raises InputError for a folder that is no bundle, a version that is not known, and files that are missing, altered
    or do not fit together.
    """
    names = verify(Path(folder))
    return _open(Path(folder), names, weights.load_denoiser(Path(folder)), encoder_weights)


def _open(folder: Path, names: Sequence[str], unet: UNet, encoder_weights: str | Path | None = None) -> Bundle:
    configuration, pixel_variance = read_configuration(folder / CONFIGURATION)
    encoder = None
    if configuration.critic.encoder == "dino":
        source = {} if encoder_weights is None else {"encoder_weights": str(encoder_weights)}
        encoder = build_encoder(configuration.critic.model_copy(update=source), unet.image_size)
    vaes, editors, banks = {}, {}, {}
    for name in names:
        own = folder / "subjects" / name
        vae, critic = weights.load_vae_folder(own), weights.load_critic_folder(own, encoder).requires_grad_(False)
        bank = weights.load_bank(own)
        sizes = (critic.group_count, critic.group_rank, critic.image_size, bank.latents.shape[1])
        if sizes != (vae.group_count, vae.group_rank, unet.image_size, vae.latent_count):
            raise InputError(f"{own}: VAE, critic, bank and denoiser do not fit together")
        vaes[name] = vae
        banks[name] = bank
        information, synthesis = Information(critic, bank), configuration.synthesis
        editors[name] = GuidedEditor(unet, unet.alphas, synthesis, information, pixel_variance, unet.memory)
    metrics, provenance = weights.read_json(folder / "metrics.json"), weights.read_json(folder / "provenance.json")
    return Bundle(folder, configuration, unet.image_size, vaes, editors, banks, metrics, provenance)


def _statistics(vae: NeuralVAE) -> dict[str, list[float]]:
    names = ("response_mean", "response_scale", "pose_mean", "pose_scale", "latent_scale")
    return {name: getattr(vae, name).tolist() for name in names}


def _keeping(editor: GuidedEditor, weight: float, group_rank: int, own: Tensor) -> GuidedEditor:
    """The editor, keeping what other groups say of the stimuli whose latents [n, D] are `own`."""
    kept = KeepingOthers(editor.criterion, weight, group_rank, lambda edits: own.to(edits.target)[edits.source])
    return replace(editor, criterion=kept)


def _bank_rows(bank: LatentBank, latents: Tensor, columns: slice) -> Tensor:
    """Which stimulus of the bank has these latents [n, …], [n]; −1 for none: a latent is not its own negative."""
    candidates = bank.latents[:, columns]
    same = torch.isclose(latents[:, None], candidates[None], rtol=1e-4, atol=1e-6).all(2)
    return torch.where(same.any(1), bank.rows[same.int().argmax(1)], -1)
