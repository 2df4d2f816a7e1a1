"""The edits of 16 stimuli x 4 groups x 3 scales x 2 directions together, against one edit at a time.

Together, one inversion of the stimuli serves all edits, and a batch per diffusion step holds all of them. One at a time,
each edit inverts its own stimulus and is sampled alone; a sample of the edits, spread over stimuli, groups, scales and
directions, is timed, and its mean stands for each of the others.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from benchmarks._frame import Options, Result, Row
from benchmarks._material import configuration, synthetic
from migvis.config import Configuration
from migvis.critic import fit_critic
from migvis.data import Dataset
from migvis.diffusion import fit_denoiser
from migvis.guidance import Information
from migvis.synthesis import Editor, Edits, GuidedEditor, make_bank, shift_edits
from migvis.vae_fit import fit_vae
from tune.fits import precision
from tune.stage_data import clean_pictures, device, training_pictures

STIMULI, SAMPLED = 16, 8
FITTED_STEPS = 20
"""Of the denoiser: edits are as fast with it as with one that is fitted in full."""
TOLERANCE = 1e-3
"""Of the median edit's largest difference of a pixel in [−1, 1]. The largest of all is reported, too, but no error: where an
edit wavers between remembered pictures, 90 steps amplify what batches of different sizes round differently."""


def run(options: Options) -> Result:
    """Edits by the quick preset's guidance, which is the figure, and by the gradient of A Eq. 6.

    Raises RuntimeError if an edit depends on its neighbours.
    """
    config = configuration(options.small)
    dataset = synthetic(config)
    editor, latents, spread = _editor(config, dataset, 1 if options.small else FITTED_STEPS)
    count, sampled = (2, 2) if options.small else (STIMULI, SAMPLED)
    rows = torch.tensor(dataset.split["validation"][:count])
    edits = _grid(config, rows, latents, spread)
    rows_by_guidance: list[Row] = []
    differences: list[float] = []
    for guidance in ("memory", "gradient"):
        guided = replace(editor, config=config.synthesis.model_copy(update={"guidance": guidance}))
        row, of_edits = _compare(guided, dataset.images(rows.numpy()), edits, sampled)
        rows_by_guidance.append(row)
        differences += of_edits
        if median(of_edits) > TOLERANCE:
            raise RuntimeError(f"guidance={guidance}: edits made together differ from those made alone by {median(of_edits):.3g}")
    figures = {"median_pixel_difference": median(differences), "largest_pixel_difference": max(differences)}
    return Result(rows_by_guidance, figures)


def _compare(editor: Editor, images: Tensor, edits: Edits, sampled: int) -> tuple[Row, list[float]]:
    """Both ways, half of the edits that are made alone before and half after the whole; and how far each of them differs."""
    # a step that is coprime to every factor of the grid
    chosen = [(number * (len(edits) // sampled | 1)) % len(edits) for number in range(sampled)]
    alone: dict[int, Tensor] = {}

    def make_alone(numbers: list[int]) -> float:
        began = time.perf_counter()
        for number in numbers:
            edit = edits.rows(torch.tensor([number]))
            image = images[edit.source]
            alone[number] = editor.edit(image, editor.invert(image), replace(edit, source=torch.tensor([0])))
        return time.perf_counter() - began

    make_alone(chosen[:1])  # what is paid once is paid by neither
    seconds_alone = make_alone(chosen[: sampled // 2])
    began = time.perf_counter()
    together = editor.edit(images, editor.invert(images), edits)
    seconds = time.perf_counter() - began
    seconds_alone += make_alone(chosen[sampled // 2 :])
    differences = [float((together[number] - alone[number][0]).abs().max()) for number in chosen]
    name = f"{len(edits)} edits, guidance={editor.config.guidance}; one at a time from {sampled} of them"
    return Row(name, seconds, seconds_alone / sampled * len(edits)), differences


def _grid(config: Configuration, rows: Tensor, latents: Tensor, spread: Tensor) -> Edits:
    """Every stimulus × group × scale × direction: shifts of its own latents by ±1 sd."""
    sources = torch.arange(len(rows))
    return Edits.join(
        [
            shift_edits(sources, group, scale, latents[rows], shift, spread, rows)
            for group in range(1, config.vae.group_count + 1)
            for scale in config.synthesis.sweep_scales
            for shift in (1.0, -1.0)
        ]
    )


def _editor(config: Configuration, dataset: Dataset, steps: int) -> tuple[Editor, Tensor, Tensor]:
    """An editor with a denoiser of `steps` training steps, the posterior means [S, D], and their sd [G, D_g]."""
    place, stimuli = device(), dataset.stimuli
    training, picture = training_pictures(dataset)
    assert stimuli.pose is not None
    assert stimuli.category_id is not None
    responses = torch.tensor(dataset.subjects[config.data.subjects[0]].response)
    vae, _ = fit_vae(
        responses[training],
        torch.tensor(stimuli.pose[training]),
        torch.tensor(stimuli.category_id[training]),
        config.vae,
        category_count=len(stimuli.category_names),
        seed=0,
    )
    with torch.no_grad():
        latents, log_var = vae.encode(responses)
    pictures = clean_pictures(dataset)
    critic, _ = fit_critic(
        pictures,
        None,
        latents[training],
        log_var[training],
        torch.tensor(picture),
        config.critic,
        config.vae.group_count,
        seed=0,
        device=place,
    )
    denoiser = config.denoiser.model_copy(update={"training_steps": steps})
    unet, _ = fit_denoiser(pictures, denoiser, seed=0, device=place, precision=precision())
    bank = make_bank(latents[training], torch.tensor(training), torch.tensor(picture), config.synthesis.bank_size, seed=0)
    variance = float(dataset.images(training).var(dim=0).mean())
    information = Information(critic.requires_grad_(False), bank)
    editor = GuidedEditor(unet, unet.alphas, config.synthesis, information, variance, unet.memory)
    spread = vae.latent_scale.float().view(config.vae.group_count, config.vae.group_rank)
    return editor, latents, spread
