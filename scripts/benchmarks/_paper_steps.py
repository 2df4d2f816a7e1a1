"""Seconds of single steps of the paper preset's parts, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._material import synthetic
from benchmarks._paper import SEEDS, Measured, Shape
from migvis.config import Configuration
from migvis.critic import Critic, fit_critic
from migvis.data import Dataset
from migvis.data.synthetic.renderer import render
from migvis.diffusion import clip_clean, denoiser_step, noise_schedule
from migvis.encoders import DINO, DINO_WIDTH
from migvis.guidance import Information
from migvis.metrics.novelty import training_distance
from migvis.metrics.render_fit import build_bank, fit_renders
from migvis.metrics.representation import representation_metrics
from migvis.pretrained import PretrainedEncoder
from migvis.randomness import normal
from migvis.synthesis import GuidedEditor, make_bank
from migvis.training import fit
from migvis.unet import UNet
from migvis.vae import NeuralVAE, standard
from migvis.vae_fit import fit_vaes
from tune.builders import trial_edits
from tune.factorial import FactorialTable
from tune.fits import precision
from tune.stage_data import device, training_pictures

EPOCHS, CRITIC_STEPS = 3, 40
"""How much of the small fits is measured, after some that are not: epochs of the VAEs, steps of the critics."""


@dataclass(frozen=True)
class Amount:
    """How much of the large networks is measured.

    pictures: that are embedded, denoised and read by the oracle. pairs, steps: whose edits are made, over how many diffusion
    steps. batch, fitted: images in a training step of the denoiser, and how many such steps.
    """

    pictures: int
    pairs: int
    steps: int
    batch: int
    fitted: int


AMOUNT = {"cpu": Amount(pictures=4, pairs=2, steps=2, batch=2, fitted=2), "cuda": Amount(64, 16, 10, 64, 10)}
"""A CPU takes as long for one picture as for its share of many; a GPU has to be filled."""


def measure(table: FactorialTable, config: Configuration, say: Callable[[str], None]) -> Measured:
    """Measures all that the table's configurations need; `say` is told what comes next."""
    # Whatever does not look at pictures is the same with small ones, which are rendered in seconds.
    dataset = synthetic(config.model_copy(update={"data": config.data.model_copy(update={"image_size": 32})}))
    rows, picture = training_pictures(dataset)
    amount = AMOUNT[device()]
    shapes = sorted({(row.params["group_count"], row.params["group_rank"]) for row in table.rows})
    vae, plain, judged, critic = {}, {}, {}, {}
    per_epoch = len(rows) // min(config.vae.batch_size, len(rows))
    for shape in shapes:
        say(f"VAEs of {shape[0]} groups of rank {shape[1]}")
        vae[shape], fitted = _vae_step(dataset, config, shape, neural=True)
        plain[shape], reference = _vae_step(dataset, config, shape, neural=False)
        began = time.perf_counter()
        representation_metrics(dataset, config.data.subjects[0], "validation", fitted, reference, seed=0)
        judged[shape] = time.perf_counter() - began
        for batch in sorted({row.params["infonce_batch"] for row in table.rows}):
            critic[batch, *shape] = _critic_step(config, batch, shape, rows, torch.tensor(picture))
    say("renders and the oracle")
    stimuli = dataset.stimuli
    assert stimuli.object_id is not None
    assert stimuli.pose is not None
    shown = dataset.split["validation"][: amount.pictures].copy()
    renders = render(torch.tensor(stimuli.object_id[shown]), torch.tensor(stimuli.pose[shown]), config.data.image_size)
    began = time.perf_counter()
    bank = build_bank()
    bank_seconds = time.perf_counter() - began
    others = renders.repeat(16, 1, 1, 1)
    say("the denoiser, DINO and edits")
    edit, denoiser, denoised, embedded = _networks(config, renders.float())
    return Measured(
        vae=vae,
        standard_vae=plain,
        representation=judged,
        critic=critic,
        edit=edit,
        denoiser=denoiser,
        denoised=denoised,
        embedded=embedded,
        read=_seconds(lambda: fit_renders(renders, bank)) / len(renders),
        compared=_seconds(lambda: training_distance(renders, others)) / (len(renders) * len(others)),
        bank=bank_seconds,
        pictures=int(picture.max()) + 1,
        validation=len(set(dataset.picture_id[dataset.split["validation"]].tolist())),
        vae_steps=config.vae.epochs * per_epoch,
        steps={"vae": EPOCHS * per_epoch, "critic": CRITIC_STEPS, "denoiser": amount.fitted, "edit": amount.steps},
    )


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    began = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()


def _vae_step(dataset: Dataset, config: Configuration, shape: Shape, *, neural: bool) -> tuple[float, NeuralVAE]:
    """Seconds of a step of all seeds' fits, fitted together, of all subjects; and one of the VAEs."""
    own = config.vae.model_copy(update={"group_count": shape[0], "group_rank": shape[1]})
    if not neural:
        own = standard(own).model_copy(update={"group_count": shape[0] * shape[1], "group_rank": 1})
    rows, stimuli = dataset.split["train"].copy(), dataset.stimuli
    assert stimuli.pose is not None
    assert stimuli.category_id is not None
    pose, category = torch.tensor(stimuli.pose[rows]), torch.tensor(stimuli.category_id[rows])
    seconds, fitted = 0.0, []
    for subject in config.data.subjects[::-1]:
        responses = torch.tensor(dataset.subjects[subject].response[rows])

        def fits(epochs: int, responses: Tensor = responses) -> list[NeuralVAE]:
            configs = [own.model_copy(update={"epochs": epochs})] * SEEDS
            count = len(stimuli.category_names)
            options: dict[str, Any] = {"category_count": count, "device": device(), "precision": precision()}
            return [vae for vae, _ in fit_vaes(responses, pose, category, configs, range(SEEDS), **options)]

        fits(1)
        began = time.perf_counter()
        fitted = fits(EPOCHS)
        seconds += (time.perf_counter() - began) / (EPOCHS * (len(rows) // min(own.batch_size, len(rows))))
    return seconds, fitted[0].cpu()


def _critic_step(config: Configuration, batch: int, shape: Shape, rows: np.ndarray, picture: Tensor) -> float:
    """Seconds of a step of the critics on cached embeddings; B is at most the number of pictures, as in a study."""
    pictures = int(picture.max()) + 1
    mean = normal(0, "benchmark latents", 0, torch.arange(len(rows)), (shape[0] * shape[1],))
    known = normal(0, "benchmark embeddings", 0, torch.arange(pictures), (1 + config.critic.pool_draws, DINO_WIDTH))
    batch = min(batch, pictures)

    def fits(steps: int) -> None:
        own = config.critic.model_copy(update={"infonce_batch": batch, "images_seen": batch * steps, "minimum_steps": 1})
        blank = torch.zeros(pictures, 1, 32, 32)
        encoder = PretrainedEncoder(torch.nn.Identity(), DINO_WIDTH)
        fit_critic(
            blank, None, mean, torch.full_like(mean, -2.0), picture, own, shape[0], embeddings=known, encoder=encoder, seed=0,
            device=device(), precision=precision(),
        )  # fmt: skip

    fits(2)
    return _seconds(lambda: fits(CRITIC_STEPS)) / CRITIC_STEPS


def _networks(config: Configuration, pictures: Tensor) -> tuple[float, float, float, float]:
    """Seconds of an edit's diffusion step, of an image in a training step, of a U-Net's evaluation and of an embedding."""
    import timm

    place, count = device(), len(pictures)
    amount = AMOUNT[place]
    pictures = pictures.to(place)
    encoder = PretrainedEncoder(timm.create_model(DINO, pretrained=False, num_classes=0), DINO_WIDTH).to(place)
    alphas = noise_schedule(config.denoiser.diffusion_steps)
    unet = UNet(config.denoiser, config.data.image_size, alphas).to(place)
    unet.normalise_to(pictures)
    own = config.denoiser.model_copy(update={"batch_size": min(amount.batch, count)})

    def train(steps: int) -> None:
        fit(unet, denoiser_step(unet, pictures, own, 0), name="denoiser", steps=steps,
            learning_rate=own.learning_rate, ema_decay=own.ema_decay, precision=precision())  # fmt: skip

    train(1)
    training = _seconds(lambda: train(amount.fitted)) / (amount.fitted * own.batch_size)
    unet.eval().requires_grad_(False)
    clipped, t = clip_clean(unet, unet.alphas), torch.full((count,), 1, device=place)
    with torch.no_grad():
        denoised = _seconds(lambda: clipped(pictures, t)) / count
        encoder(pictures)
        embedded = _seconds(lambda: encoder(pictures)) / count
    vae = config.vae
    critic = Critic(config.critic, vae.group_count, vae.group_rank, config.data.image_size, encoder).to(place)
    rows = torch.arange(config.synthesis.bank_size)
    latents = normal(0, "benchmark latents", 0, rows, (vae.group_count * vae.group_rank,))
    bank = make_bank(latents, rows, rows, len(rows), seed=0)
    editor = GuidedEditor(unet, unet.alphas, config.synthesis, Information(critic.requires_grad_(False), bank), 1.0)
    pairs = torch.arange(min(amount.pairs, count))
    edits, _ = trial_edits(latents, vae.group_rank, pairs, pairs + 1, config.synthesis.guidance_scale)
    steps = amount.steps / config.denoiser.diffusion_steps

    def edited(step: float) -> None:
        editor.edit(pictures, pictures, edits, edit_step=step)

    edited(1 / config.denoiser.diffusion_steps)
    return _seconds(lambda: edited(steps)) / (len(edits) * amount.steps), training, denoised, embedded
