"""The three fits as stages: each is one job, run in this process or through Ray Train on any number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from migvis.config import CriticConfig, DenoiserConfig, VAEConfig
from migvis.diffusion import fit_denoiser
from migvis.training import WHOLE, Progress, Shard
from migvis.weights import load_critic_folder, load_vae_folder, read_tensors, save_critic, save_denoiser, save_json, save_vae
from tune.stage_data import clean_pictures, dataset_at, device, training_pictures
from tune.stage_graph import StageContext


def precision() -> Literal["fp32", "bf16"]:
    """What fits compute in: bfloat16 on a GPU; on a CPU autocast makes them no faster."""
    return "bf16" if device() == "cuda" else "fp32"


def denoiser_precision() -> Literal["fp32", "bf16"]:
    """As `precision`, but bfloat16 on a CPU that multiplies in it, too: a study has one denoiser, so its trials compare."""
    natively = any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16" if natively else precision()


_LONG_FIT = 5_000
"""Steps from which on compiling the denoiser pays: it takes a minute, and saved 17 of 83 ms a step on a CPU."""


@dataclass(frozen=True)
class Workers:
    """How a fit is run: in this process, or through Ray Train by `count` workers of `threads` CPU threads each."""

    count: int = 1
    threads: int = 2
    ray_train: bool = False


def run_fit(
    name: str, job: Callable[..., dict[str, Any]], arguments: dict[str, Any], context: StageContext, workers: Workers
) -> None:
    """Calls job(**arguments, checkpoint=…, folder=…, shard=…, progress=…) where `workers` says, and keeps the log it returns."""
    arguments = {**arguments, "checkpoint": context.scratch / f"{name}.pt", "folder": context.folder}
    if not workers.ray_train:
        context.log.update(job(**arguments, progress=context.progress))
        return
    from tune.training_jobs import fit_with_ray_train

    context.progress(Progress(f"{name} (starting Ray Train)", 0, 1, 0.0, 0.0, 0.0))
    log = fit_with_ray_train(
        job,
        arguments,
        workers=workers.count,
        threads_per_worker=workers.threads,
        folder=context.scratch,
        run_name=name,
        progress=context.progress,
    )
    context.log.update(log)


def denoiser_job(
    data_path: Path,
    fields: dict[str, Any],
    seed: int,
    checkpoint: Path,
    folder: Path,
    *,
    shard: Shard = WHOLE,
    progress: Any = None,
) -> dict[str, Any]:
    """Fits the denoiser in this process or as one of several workers; rank 0 writes it to `folder`."""
    images = clean_pictures(dataset_at(data_path))
    config = DenoiserConfig.model_validate(fields)
    unet, result = fit_denoiser(
        images,
        config,
        seed=seed,
        shard=shard,
        checkpoint=checkpoint,
        progress=progress,
        device=device(),
        precision=denoiser_precision(),
        compile_network=config.training_steps >= _LONG_FIT,
    )
    if shard.rank == 0:
        save_denoiser(folder, unet.cpu())
    return {"curves": result.curves}


def build_denoiser(data_path: Path, context: StageContext, *, workers: Workers) -> None:
    """Fits ε_θ."""
    arguments = {"data_path": data_path, "fields": dict(context.stage.config["denoiser"]), "seed": _seed(context)}
    run_fit("denoiser", denoiser_job, arguments, context, workers)


_VAEMaterial = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, dict[str, Any]]


def _vae_material(data_path: Path, subject: str) -> _VAEMaterial:
    """Training responses, pose and category of one subject, and the options that all of its fits share."""
    dataset = dataset_at(data_path)
    rows, stimuli = dataset.split["train"], dataset.stimuli
    responses = torch.tensor(dataset.subjects[subject].response[rows])
    pose = None if stimuli.pose is None else torch.tensor(stimuli.pose[rows])
    category = None if stimuli.category_id is None else torch.tensor(stimuli.category_id[rows])
    count = 0 if category is None else len(stimuli.category_names)
    return responses, pose, category, {"category_count": count, "device": device(), "precision": precision()}


def vae_job(
    data_path: Path,
    subject: str,
    fields: dict[str, Any],
    seed: int,
    checkpoint: Path,
    folder: Path,
    *,
    shard: Shard = WHOLE,
    progress: Any = None,
) -> dict[str, Any]:
    """Fits a VAE in this process or as one of several workers; rank 0 writes it to `folder`."""
    from migvis.vae_fit import fit_vae

    responses, pose, category, options = _vae_material(data_path, subject)
    config = VAEConfig.model_validate(fields)
    vae, result = fit_vae(
        responses, pose, category, config, seed=seed, shard=shard, checkpoint=checkpoint, progress=progress, **options
    )
    if shard.rank == 0:
        save_vae(folder, vae.cpu())
    return {"curves": result.curves}


def build_vae(data_path: Path, context: StageContext, *, workers: Workers) -> None:
    """Fits a VAE (neural or standard) of one subject."""
    config = context.stage.config
    arguments = {"data_path": data_path, "subject": config["subject"], "fields": dict(config["vae"]), "seed": _seed(context)}
    run_fit("vae", vae_job, arguments, context, workers)


def build_vaes(data_path: Path, contexts: Sequence[StageContext]) -> None:
    """Fits VAEs of one subject at once, in this process: the same as `build_vae` for each, up to rounding."""
    from migvis.vae_fit import fit_vaes

    responses, pose, category, options = _vae_material(data_path, contexts[0].stage.config["subject"])
    configs = [VAEConfig.model_validate(dict(context.stage.config["vae"])) for context in contexts]
    # The name tells of which fits it is, so that another set of them does not resume it.
    keys = hashlib.sha256(" ".join(context.stage.key for context in contexts).encode()).hexdigest()[:12]
    fitted = fit_vaes(
        responses,
        pose,
        category,
        configs,
        [_seed(context) for context in contexts],
        names=[context.stage.label for context in contexts],
        checkpoint=contexts[0].scratch / f"vaes-{keys}.pt",
        progress=contexts[0].progress,
        **options,
    )
    for context, (vae, result) in zip(contexts, fitted, strict=True):
        save_vae(context.folder, vae.cpu())
        context.log["curves"] = result.curves


def latent_material(data_path: Path, subject: str, vae: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Posterior means and log-variances [n, D] of a subject's training stimuli, the picture [n] each shows, and G."""
    dataset, model = dataset_at(data_path), load_vae_folder(vae)
    rows, picture = training_pictures(dataset)
    with torch.no_grad():
        mean, log_var = model.encode(torch.tensor(dataset.subjects[subject].response[rows]))
    return mean, log_var, torch.tensor(picture), model.group_count


def stored_images(inputs: Mapping[str, Path]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The pool of denoised pictures and the embeddings, where a fit has them among its inputs."""
    pool, embeddings = (
        read_tensors(inputs[name] / f"{name}.safetensors")[name] if name in inputs else None for name in ("pool", "embeddings")
    )
    return pool, embeddings


def critic_job(
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
    """Fits the critic of a subject from the folders `inputs` (vae; pool, embeddings where there are); rank 0 writes it."""
    from migvis.critic import fit_critic

    mean, log_var, picture, group_count = latent_material(data_path, subject, inputs["vae"])
    pool, embeddings = stored_images(inputs)
    critic, result = fit_critic(
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
        save_critic(folder, critic.cpu())
    return {"curves": result.curves}


def build_critic(data_path: Path, context: StageContext, encoder_weights: str | None = None, *, workers: Workers) -> None:
    """Fits the critic of one subject; its bounds of mutual information on validation pictures stand beside it."""
    from migvis.critic import mi_bound

    config, dataset, seed = context.stage.config, dataset_at(data_path), _seed(context)
    fields = {**config["critic"], "encoder_weights": encoder_weights}
    inputs = {name: context.input(name) for name in context.stage.inputs}
    arguments = {"data_path": data_path, "subject": config["subject"], "fields": fields, "inputs": inputs, "seed": seed}
    run_fit("critic", critic_job, arguments, context, workers)
    critic, vae = load_critic_folder(context.folder), load_vae_folder(context.input("vae"))
    held_out = dataset.split["validation"].copy()
    _, first = np.unique(dataset.picture_id[held_out], return_index=True)
    responses = torch.tensor(dataset.subjects[config["subject"]].response[held_out[first]])
    with torch.no_grad():
        latents, _ = vae.encode(responses)
        bounds = mi_bound(critic, dataset.images(held_out[first]), latents, critic.config.evaluation_candidates, seed)
    save_json(context.folder / "bounds.json", {str(group): list(bound) for group, bound in bounds.items()})


def _seed(context: StageContext) -> int:
    assert context.stage.seed is not None
    return context.stage.seed
