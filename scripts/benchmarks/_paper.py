"""What stages of the paper preset cost, extrapolated from a few steps of each part on this machine.

Nothing is fitted to its end: seconds of a step, of an edit, of a picture are measured and multiplied by the preset's numbers
of them, for both subjects and five seeds. Stand-ins, whose values do not matter to the time: DINO's weights are random (the
true ones have to be downloaded), so are the cached embeddings and the denoiser's; the fits of the VAEs that are judged are
short; and edits that the oracle reads are renders. Writing to the stage store is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from migvis.config import PRESETS, Configuration
from migvis.diffusion import max_edit_index
from migvis.metrics.instrument import CALIBRATION_STIMULI
from tune.builders import COMPARED_STEP, trial_edits
from tune.factorial import FactorialTable
from tune.study_config import STUDY_PRESETS

SEEDS = STUDY_PRESETS["paper"].search.seeds_per_trial

Params = Mapping[str, Any]
Shape = tuple[int, int]
"""Group count and rank of a VAE."""


@dataclass(frozen=True)
class Measured:
    """Seconds of one of each, on this machine.

    vae, standard_vae: a step of the fits of all seeds and subjects, by shape. representation: metrics of one fit, by shape.
    critic: a step, by batch and shape. edit: a diffusion step of one guided edit. denoiser: an image in a training step.
    denoised, embedded, read: one picture, through the U-Net, through DINO and by the oracle. compared: an edit with one
    training picture. bank: the oracle's renders.
    pictures, validation: distinct training and validation pictures. vae_steps: of a fit. steps: how many were measured of what.
    """

    vae: Mapping[Shape, float]
    standard_vae: Mapping[Shape, float]
    representation: Mapping[Shape, float]
    critic: Mapping[tuple[int, int, int], float]
    edit: float
    denoiser: float
    denoised: float
    embedded: float
    read: float
    compared: float
    bank: float
    pictures: int
    validation: int
    vae_steps: int
    steps: Mapping[str, int]


def configuration(small: bool) -> Configuration:
    """The preset "paper"; small: few and small stimuli, and a narrow denoiser."""
    paper = PRESETS["paper"]
    if not small:
        return paper
    sections: dict[str, dict[str, Any]] = {
        "data": {"stimulus_count": 640, "image_size": 32},
        "denoiser": {"base_width": 8, "diffusion_steps": 10},
    }
    return paper.model_copy(
        update={section: getattr(paper, section).model_copy(update=values) for section, values in sections.items()}
    )


def stage_seconds(measured: Measured, config: Configuration, kind: str, params: Params) -> float:
    """Seconds of all fits of a kind that a trial of the paper preset makes: both subjects, five seeds."""
    shape = (params["group_count"], params["group_rank"])
    fits = SEEDS * len(config.data.subjects)
    pairs, groups = config.synthesis.trial_pairs, params["group_count"]
    if kind in ("vae", "standard_vae"):
        return float(getattr(measured, kind)[shape] * measured.vae_steps)
    if kind == "representation":
        return fits * measured.representation[shape]
    if kind == "critic":
        batch = params["infonce_batch"]
        steps = max(config.critic.minimum_steps, math.ceil(config.critic.images_seen / batch))
        return fits * (steps * measured.critic[batch, *shape] + measured.validation * measured.embedded)
    if kind == "synthesis":
        edits = len(trial_edits(torch.zeros(pairs, groups), 1, torch.arange(pairs), torch.arange(pairs), 1.0)[0])
        return fits * edits * round(params["edit_step"] * config.denoiser.diffusion_steps) * measured.edit
    if kind == "evaluation":
        return fits * (2 * pairs * measured.read + 3 * pairs * measured.pictures * measured.compared)
    raise ValueError(f"{kind}: not a stage of a trial")


def study_seconds(measured: Measured, config: Configuration) -> dict[str, float]:
    """Seconds of the stages that all trials share, by kind."""
    steps, pairs, draws = config.denoiser.diffusion_steps, config.synthesis.trial_pairs, config.critic.pool_draws
    inverted = 1 + (max_edit_index(steps) - 1) * max(1, config.synthesis.inversion_corrections)
    return {
        "denoiser": config.denoiser.training_steps * config.denoiser.batch_size * measured.denoiser,
        "pool": draws * measured.pictures * measured.denoised,
        "embeddings": (1 + draws) * measured.pictures * measured.embedded,
        "instruments": measured.bank + CALIBRATION_STIMULI * measured.read,
        "trajectory": pairs * (inverted + round(COMPARED_STEP * steps)) * measured.denoised,
    }


def priced(table: FactorialTable, measured: Measured, config: Configuration) -> FactorialTable:
    """The table's outcomes at the costs of the paper preset; the study's stages are there before and cost nothing."""
    seconds = dict.fromkeys(table.seconds, 0.0)
    study = study_seconds(measured, config)
    for row in table.rows:
        for kind, key in row.stages:
            if kind not in study:
                seconds[kind, key] = stage_seconds(measured, config, kind, row.params)
    return replace(table, seconds=seconds)
