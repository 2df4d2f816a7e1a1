"""The fits of the rivals of mutual information as stages, each one job as those of tune.fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from migvis.config import CriticConfig
from migvis.rival_weights import save_conditional, save_image_decoder, save_latent_encoder, save_latent_regression
from migvis.training import WHOLE, Shard
from migvis.weights import load_denoiser
from tune.fits import Workers, latent_material, precision, run_fit, stored_images
from tune.stage_data import clean_pictures, dataset_at, device
from tune.stage_graph import StageContext


def latent_encoder_job(
    data_path: Path,
    subject: str,
    fields: dict[str, Any],
    inputs: Mapping[str, Path],
    seed: int,
    checkpoint: Path,
    folder: Path,
    *,
    shard: Shard = WHOLE,
    progress: Any = None,
) -> dict[str, Any]:
    """Fits q(z | y) of a subject from the folders `inputs` (vae; pool, embeddings where there are); rank 0 writes it."""
    from migvis.latent_encoder import fit_latent_encoder

    mean, log_var, picture, group_count = latent_material(data_path, subject, inputs["vae"])
    pool, embeddings = stored_images(inputs)
    model, result = fit_latent_encoder(
        clean_pictures(dataset_at(data_path)),
        pool,
        mean,
        log_var,
        picture,
        CriticConfig.model_validate(fields),
        group_count,
        embeddings=embeddings,
        seed=seed,
        shard=shard,
        checkpoint=checkpoint,
        progress=progress,
        device=device(),
        precision=precision(),
    )
    if shard.rank == 0:
        save_latent_encoder(folder, model.cpu())
    return {"curves": result.curves}


def build_latent_encoder(data_path: Path, context: StageContext, encoder_weights: str | None = None, *, workers: Workers) -> None:
    """Fits the probabilistic image encoder of one subject."""
    fields = {**context.stage.config["critic"], "encoder_weights": encoder_weights}
    run_fit("latent-encoder", latent_encoder_job, _arguments(data_path, context) | {"fields": fields}, context, workers)


def build_latent_regression(data_path: Path, context: StageContext, encoder_weights: str | None = None) -> None:
    """Regresses the latents of one subject on the training pictures."""
    from migvis.latent_regression import fit_latent_regression

    inputs = {name: context.input(name) for name in context.stage.inputs}
    mean, log_var, picture, group_count = latent_material(data_path, context.stage.config["subject"], inputs["vae"])
    _, embeddings = stored_images(inputs)
    clean = clean_pictures(dataset_at(data_path))
    config = CriticConfig(encoder=context.stage.config["encoder"], encoder_weights=encoder_weights)
    first = None if embeddings is None else embeddings[:, 0]
    save_latent_regression(
        context.folder, fit_latent_regression(clean, mean, log_var, picture, config, group_count, embeddings=first)
    )


def conditional_job(
    data_path: Path,
    subject: str,
    steps: int,
    inputs: Mapping[str, Path],
    seed: int,
    checkpoint: Path,
    folder: Path,
    *,
    shard: Shard = WHOLE,
    progress: Any = None,
) -> dict[str, Any]:
    """Trains the denoiser in `inputs` on with the latents of a subject; rank 0 writes it."""
    from migvis.conditional import fit_conditional_denoiser

    mean, log_var, picture, group_count = latent_material(data_path, subject, inputs["vae"])
    conditional, result = fit_conditional_denoiser(
        load_denoiser(inputs["denoiser"]),
        clean_pictures(dataset_at(data_path)),
        mean,
        log_var,
        picture,
        group_count,
        steps=steps,
        seed=seed,
        shard=shard,
        checkpoint=checkpoint,
        progress=progress,
        device=device(),
        precision=precision(),
    )
    if shard.rank == 0:
        save_conditional(folder, conditional.cpu())
    return {"curves": result.curves}


def build_conditional(data_path: Path, context: StageContext, *, workers: Workers) -> None:
    """Fits the conditional denoiser of one subject."""
    arguments = _arguments(data_path, context) | {"steps": context.stage.config["steps"]}
    run_fit("conditional-denoiser", conditional_job, arguments, context, workers)


def image_decoder_job(
    data_path: Path,
    subject: str,
    fields: dict[str, Any],
    inputs: Mapping[str, Path],
    seed: int,
    checkpoint: Path,
    folder: Path,
    *,
    shard: Shard = WHOLE,
    progress: Any = None,
) -> dict[str, Any]:
    """Fits the decoder from a subject's latents to images; rank 0 writes it."""
    from migvis.image_decoder import fit_image_decoder

    mean, log_var, picture, _ = latent_material(data_path, subject, inputs["vae"])
    decoder, result = fit_image_decoder(
        clean_pictures(dataset_at(data_path)),
        mean,
        log_var,
        picture,
        CriticConfig.model_validate(fields),
        seed=seed,
        shard=shard,
        checkpoint=checkpoint,
        progress=progress,
        device=device(),
        precision=precision(),
    )
    if shard.rank == 0:
        save_image_decoder(folder, decoder.cpu())
    return {"curves": result.curves}


def build_image_decoder(data_path: Path, context: StageContext, *, workers: Workers) -> None:
    """Fits the image decoder of one subject."""
    arguments = _arguments(data_path, context) | {"fields": dict(context.stage.config["critic"])}
    run_fit("image-decoder", image_decoder_job, arguments, context, workers)


def _arguments(data_path: Path, context: StageContext) -> dict[str, Any]:
    assert context.stage.seed is not None
    inputs = {name: context.input(name) for name in context.stage.inputs}
    return {"data_path": data_path, "subject": context.stage.config["subject"], "inputs": inputs, "seed": context.stage.seed}
