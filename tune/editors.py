"""The editor of a stage that edits, by the method that its configuration names, from the inputs that the method needs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from migvis.config import SynthesisConfig
from migvis.data import Dataset
from migvis.guidance import Criterion, Information
from migvis.keeping import KeepingOthers, own_latents
from migvis.synthesis import Editor, GuidedEditor, make_bank
from migvis.unet import UNet
from migvis.vae import NeuralVAE
from migvis.weights import load_critic_folder, load_denoiser, load_vae_folder
from tune.stage_data import device, training_pictures
from tune.stage_graph import StageContext


@lru_cache(maxsize=1)
def denoiser_at(folder: Path) -> UNet:
    """The frozen denoiser, read once per process: to work out what it remembers takes seconds."""
    return load_denoiser(folder).to(device())


def latents_of(context: StageContext, dataset: Dataset) -> tuple[NeuralVAE, Tensor]:
    """The VAE of a stage, and posterior means [S, D] of all stimuli."""
    vae = load_vae_folder(context.input("vae"))
    with torch.no_grad():
        latents, _ = vae.encode(torch.tensor(dataset.subjects[context.stage.config["subject"]].response))
    return vae, latents


def pixel_variance(dataset: Dataset) -> float:
    """The training images' mean variance per pixel."""
    return float(dataset.images(dataset.split["train"]).var(dim=0).mean())


def editor(context: StageContext, dataset: Dataset, latents: Tensor) -> Editor:
    """The editor of a stage, which is given posterior means [S, D] of all stimuli."""
    config = SynthesisConfig.model_validate(dict(context.stage.config["synthesis"]))
    unet = denoiser_at(context.input("denoiser"))
    if config.method == "classifier_free":
        from migvis.conditional import ClassifierFreeEditor
        from migvis.rival_weights import load_conditional

        return ClassifierFreeEditor(
            unet, unet.alphas, config, load_conditional(context.input("conditional_denoiser")).to(device())
        )
    if config.method == "decoder":
        from migvis.image_decoder import DecodingEditor
        from migvis.rival_weights import load_image_decoder_folder

        decoder = load_image_decoder_folder(context.input("image_decoder")).to(device()).requires_grad_(False)
        return DecodingEditor(unet, unet.alphas, config, decoder, latents)
    criterion = _criterion(config, context, dataset, latents)
    if config.keep_weight:
        rank = load_vae_folder(context.input("vae")).group_rank
        criterion = KeepingOthers(criterion, config.keep_weight, rank, own_latents(latents))
    return GuidedEditor(unet, unet.alphas, config, criterion, pixel_variance(dataset), unet.memory)


def _criterion(config: SynthesisConfig, context: StageContext, dataset: Dataset, latents: Tensor) -> Criterion:
    if config.method == "information":
        critic = load_critic_folder(context.input("critic")).to(device()).requires_grad_(False)
        training, picture = training_pictures(dataset)
        rows = torch.tensor(training)
        return Information(critic, make_bank(latents[rows], rows, torch.tensor(picture), config.bank_size, seed=0))
    from migvis.criteria import Activation, Likelihood
    from migvis.rival_weights import load_latent_encoder_folder, load_latent_regression_folder

    if config.method == "linear_activation":
        return Activation(load_latent_regression_folder(context.input("latent_regression")).to(device()).requires_grad_(False))
    encoder = load_latent_encoder_folder(context.input("latent_encoder")).to(device()).requires_grad_(False)
    return Likelihood(encoder) if config.method == "likelihood" else Activation(encoder)
