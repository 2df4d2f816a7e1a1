"""How each stage is built: reads its inputs' folders, calls migvis, writes its own folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from migvis.config import CriticConfig
from migvis.diffusion import (
    Denoise,
    clip_clean,
    ddim_invert,
    ddim_sample,
    denoised_pool,
    dequantise,
    max_edit_index,
)
from migvis.guidance import Information
from migvis.keeping import KeepingOthers
from migvis.metrics.edit_scores import evaluation_pairs, load_instrument, make_instrument, score_edits
from migvis.metrics.representation import representation_metrics
from migvis.synthesis import Edits, GuidedEditor, target_edits
from migvis.training import Progress
from migvis.weights import (
    load_vae_folder,
    read_tensors,
    save_bank,
    save_json,
    save_tensors,
)
from tune.editors import denoiser_at, editor, latents_of, pixel_variance
from tune.stage_data import clean_pictures, dataset_at, device, training_pictures
from tune.stage_graph import StageContext

SHOWN_PAIRS = 2
"""Pairs for which a trial also edits the groups that are not scored, and returns the source unguided."""
COMPARED_STEP = 0.9
"""Fraction of T at which the inversion error of all trials is compared."""


def build_pool(data_path: Path, context: StageContext) -> None:
    """pool.safetensors: pool [P, draws, 1, H, W]."""
    unet = denoiser_at(context.input("denoiser"))
    clean = clean_pictures(dataset_at(data_path)).to(device())
    assert context.stage.seed is not None

    def without(rows: Tensor) -> Denoise:
        return clip_clean(unet.without(rows), unet.alphas)

    pool = denoised_pool(without, clean, unet.alphas, context.stage.config["draws"], context.stage.seed)
    save_tensors(context.folder / "pool.safetensors", {"pool": pool})


def build_embeddings(data_path: Path, context: StageContext, encoder_weights: str | None = None) -> None:
    """embeddings.safetensors: [P, 1 + draws, E] of clean and pool pictures by a frozen encoder."""
    from migvis.critic import embed_pool
    from migvis.encoders import build_encoder

    dataset = dataset_at(data_path)
    pool = read_tensors(context.input("pool") / "pool.safetensors")["pool"] if "pool" in context.stage.inputs else None
    encoder = build_encoder(CriticConfig(encoder="dino", encoder_weights=encoder_weights), dataset.image_size).to(device())
    embeddings = embed_pool(encoder, clean_pictures(dataset).to(device()), None if pool is None else pool.to(device()))
    save_tensors(context.folder / "embeddings.safetensors", {"embeddings": embeddings})


def build_instruments(data_path: Path, context: StageContext) -> None:
    """The instrument that judges edits: tensors and calibration."""
    pool = read_tensors(context.input("pool") / "pool.safetensors")["pool"] if "pool" in context.stage.inputs else None
    rows, picture = training_pictures(dataset_at(data_path))
    _, first = np.unique(picture, return_index=True)
    assert context.stage.seed is not None
    tensors, description = make_instrument(dataset_at(data_path), rows[first], pool, context.stage.seed)
    if tensors:
        save_tensors(context.folder / "instrument.safetensors", tensors)
    save_json(context.folder / "instrument.json", description)
    context.log.update({"calibration": description.get("calibration", {})})


def build_trajectory(data_path: Path, context: StageContext) -> None:
    """states [⌊0.95 T⌋ + 1, n, 1, H, W] of the sources of the evaluation pairs; source, target [n] stimulus rows."""
    config, dataset = context.stage.config, dataset_at(data_path)
    assert context.stage.seed is not None
    source, target = evaluation_pairs(dataset, config["split"], config["pairs"], context.stage.seed)
    unet = denoiser_at(context.input("denoiser"))
    clipped, limit = clip_clean(unet, unet.alphas), max_edit_index(len(unet.alphas) - 1)
    images = dataset.images(source.numpy()).to(device())
    with torch.no_grad():
        start = dequantise(images, unet.alphas, config["dequantisation"])
        states = ddim_invert(clipped, start, unet.alphas, limit, trajectory=True, corrections=config["corrections"])
        step = round(COMPARED_STEP * (len(unet.alphas) - 1))
        returned = ddim_sample(clipped, states[step], unet.alphas, step).clamp(-1, 1)
    error = float((returned - images).square().mean())
    context.log["inversion_mse_0.9T"] = error
    save_tensors(context.folder / "states.safetensors", {"states": states, "source": source, "target": target})
    save_json(context.folder / "trajectory.json", {"inversion_mse_0.9T": error})


def build_representation(data_path: Path, context: StageContext) -> None:
    """metrics.json: what the VAE and the standard VAE keep of the responses, and how they are disentangled."""
    config = context.stage.config
    metrics = representation_metrics(
        dataset_at(data_path),
        config["subject"],
        config["split"],
        load_vae_folder(context.input("vae")),
        load_vae_folder(context.input("standard_vae")),
        seed=_seed(context),
    )
    save_json(context.folder / "metrics.json", metrics)


def trial_edits(latents: Tensor, group_rank: int, source: Tensor, target: Tensor, scale: float) -> tuple[Edits, Tensor]:
    """Edits of a trial and their pairs [n]: groups 1 and 2 for all pairs, the others for SHOWN_PAIRS, then those at γ = 0."""
    parts, pairs = [], []
    every = torch.arange(len(source))
    groups = latents.shape[1] // group_rank
    shown = every[:SHOWN_PAIRS]
    plan = [(g, every if g <= 2 else shown, scale) for g in range(1, groups + 1)] + [(1, shown, 0.0)]
    for group, rows, gamma in plan:
        parts.append(target_edits(rows, group, gamma, latents[target[rows]], group_rank, source[rows], target[rows]))
        pairs.append(rows)
    return Edits.join(parts), torch.cat(pairs)


def build_synthesis(data_path: Path, context: StageContext) -> None:
    """edits.safetensors: images, group, pair, scale per edit; source and target rows per pair. synthesis.json.

    bank.safetensors, where there is a bank.
    """
    dataset = dataset_at(data_path)
    vae, latents = latents_of(context, dataset)
    made = editor(context, dataset, latents)
    stored = read_tensors(context.input("trajectory") / "states.safetensors")
    source, target = stored["source"], stored["target"]
    edits, pair = trial_edits(latents, vae.group_rank, source, target, made.config.guidance_scale)
    stimuli = dataset.images(source.numpy())
    images = made.edit(stimuli, stored["states"][made.step()], edits, progress=edit_progress(context, "synthesis"))
    criterion = made.criterion if isinstance(made, GuidedEditor) else None
    if isinstance(criterion, KeepingOthers):
        criterion = criterion.criterion
    if isinstance(criterion, Information):
        save_bank(context.folder, criterion.bank)
    save_tensors(
        context.folder / "edits.safetensors",
        {"images": images, "group": edits.group, "pair": pair, "scale": edits.scale, "source": source, "target": target},
    )
    save_json(context.folder / "synthesis.json", {"pixel_variance": pixel_variance(dataset)})


def build_evaluation(data_path: Path, context: StageContext) -> None:
    """metrics.json and readings of the scored edits."""
    instrument = load_instrument(context.input("instruments"))
    edits = read_tensors(context.input("synthesis") / "edits.safetensors")
    metrics, readings = score_edits(dataset_at(data_path), instrument, edits)
    save_json(context.folder / "metrics.json", metrics)
    save_tensors(context.folder / "readings.safetensors", readings)


def edit_progress(context: StageContext, name: str) -> Callable[[int, int], None]:
    """What Editor.edit tells of its progress, passed on under a name with the time left."""
    begin = time.perf_counter()

    def report(done: int, count: int) -> None:
        seconds = time.perf_counter() - begin
        context.progress(Progress(name, done, count, 0.0, seconds, seconds / done * (count - done)))

    return report


def _seed(context: StageContext) -> int:
    assert context.stage.seed is not None
    return context.stage.seed
