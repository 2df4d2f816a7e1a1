"""The final stage: the selected configuration with more seeds, scored once on test images, re-synthesized and exported."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from migvis.bundle import assemble_bundle
from migvis.config import Configuration
from migvis.data import Dataset
from migvis.figures import GridRow, edit_grid
from migvis.synthesis import Editor, Edits, shift_edits, target_edits
from migvis.training import Progress
from migvis.weights import read_json, read_tensors
from tune.builders import editor
from tune.context import StudyContext
from tune.pictures import group_label, names_of, selectivity_picture, trial_grid
from tune.selection import Selected
from tune.space import apply
from tune.stage_data import dataset_at
from tune.summary import git_revision
from tune.trial import Runner, means, seeds_of, stage_folders, stages_of, write_study_models
from tune.trial_result import FinalResult

SHOWN_STIMULI = 3


def finish(context: StudyContext, selected: Selected) -> FinalResult:
    """Scores the selected configuration on test images, shows both protocols for all groups, and exports it.

    Test images are read here, once, and the scores are recorded whatever they are.
    """
    configuration = apply(context.config.configuration, selected.params)
    runner, stages = Runner(context, "final", "final"), stages_of(context, configuration)
    subjects, seeds = configuration.data.subjects, seeds_of(context, context.config.search.final_seeds)
    count = configuration.synthesis.final_pairs
    dataset = dataset_at(context.data_path)
    folder = context.folder / "final"
    folder.mkdir(parents=True, exist_ok=True)
    values, images = {}, {}
    runner.together(stages.vaes(seeds))
    for subject in subjects:
        for seed in seeds:
            metrics = read_json(runner(stages.representation(subject, seed, "test")).path / "metrics.json")
            synthesis = runner(stages.synthesis(subject, seed, "test", count))
            evaluation = runner(stages.evaluation(subject, seed, "test", count))
            values[subject, seed] = metrics | read_json(evaluation.path / "metrics.json")
            if seed == seeds[0]:
                title = f"selected trial {selected.trial}, {subject}: edits of test stimuli"
                images[f"scored_{subject}"] = trial_grid(dataset, synthesis.path, evaluation.path, folder, subject, title)
                picture = selectivity_picture(evaluation.path, folder, subject)
                if picture is not None:
                    images[f"selectivity_{subject}"] = picture
        images |= _show(context, runner, configuration, dataset, subject, seeds[0], folder)
    models = folder / "models"
    write_study_models(models, configuration, {s: stage_folders(runner, stages, s, seeds[0]) for s in subjects})
    metrics, per_seed = means(values)
    metrics |= {f"{name}_sd": _sd(own) for name, own in per_seed.items() if len(own) > 1}
    denoiser = stages.denoiser()
    provenance = {
        "study": context.study,
        "trial": selected.trial,
        "rule": selected.rule,
        "data_digest": context.data_digest,
        "data_source": dataset.source,
        "seed": context.seed,
        "git_revision": git_revision(),
        "scored_on": "test",
    }
    export = assemble_bundle(
        models, runner.store.path(denoiser.kind, denoiser.key), context.folder / "export", metrics, images, provenance
    )
    main = images[f"target_{subjects[0]}"]
    return FinalResult(
        metrics=metrics, export=export, images=images, artifacts={"models": models}, stages=runner.records(), main_image=main
    )


def _sd(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std())


def _show(
    context: StudyContext, runner: Runner, configuration: Configuration, dataset: Dataset, subject: str, seed: int, folder: Path
) -> dict[str, Path]:
    """Grids of all groups: `target` over a sweep of γ, and `shift` in both directions."""
    stages = stages_of(context, configuration)
    config = configuration.synthesis
    states_of = read_tensors(runner(stages.trajectory("test", config.final_pairs)).path / "states.safetensors")
    folders = [
        runner.store.path(s.kind, s.key) for s in (stages.denoiser(), stages.vae(subject, seed), stages.critic(subject, seed))
    ]
    made, latents = editor(folders[0], folders[1], folders[2], dataset, subject, config)
    source, target = (states_of[name][:SHOWN_STIMULI] for name in ("source", "target"))
    states = states_of["states"][made.step()][:SHOWN_STIMULI]
    target_rows = _target_rows(configuration, made, latents, source, target)
    shift_rows = _shift_rows(configuration, made, latents, folders[1], source)
    labels, edits = zip(*target_rows, *shift_rows, strict=True)

    def report(done: int, total: int) -> None:
        runner.reporter(Progress("final: showing edits", done, total, 0.0, 0.0, 0.0))

    pictures = made.edit(dataset.images(source.numpy()), states, Edits.join(edits), progress=report).split(len(source))
    labelled = dataset.stimuli.category_id is not None
    rows = [GridRow(_row_label(group, detail, labelled), part) for (group, detail), part in zip(labels, pictures, strict=True)]
    sources = GridRow("source", dataset.images(source.numpy()), names_of(dataset, source))
    targets = GridRow("target", dataset.images(target.numpy()), names_of(dataset, target))
    title = f"{subject}, edit step {config.edit_step:g} T"
    swept = edit_grid(
        [sources, targets, *rows[: len(target_rows)]],
        folder / f"target_{subject}.png",
        f"{title}: each group guided to the target's",
    )
    shifted = edit_grid(
        [sources, *rows[len(target_rows) :]], folder / f"shift_{subject}.png", f"{title}: each group shifted by Δ sd"
    )
    return {f"target_{subject}": swept, f"shift_{subject}": shifted}


Labelled = tuple[tuple[int, str], Edits]


def _target_rows(configuration: Configuration, made: Editor, latents: Tensor, source: Tensor, target: Tensor) -> list[Labelled]:
    config, rank, every = configuration.synthesis, configuration.vae.group_rank, torch.arange(len(source))
    scales = sorted({*config.sweep_scales, config.guidance_scale})
    return [
        ((group, f"γ = {scale:g}"), target_edits(every, group, scale, latents[target], rank, source, target))
        for group in range(1, configuration.vae.group_count + 1)
        for scale in scales
    ]


def _shift_rows(configuration: Configuration, made: Editor, latents: Tensor, vae: Path, source: Tensor) -> list[Labelled]:
    config, every = configuration.synthesis, torch.arange(len(source))
    scale = read_tensors(vae / "vae.safetensors")["latent_scale"].view(configuration.vae.group_count, -1)
    shifts = sorted({sign * size for size in config.shifts for sign in (-1.0, 1.0)})
    return [
        ((group, f"Δ = {shift:+g}"), shift_edits(every, group, config.guidance_scale, latents[source], shift, scale, source))
        for group in range(1, configuration.vae.group_count + 1)
        for shift in shifts
    ]


def _row_label(group: int, detail: str, labelled: bool) -> str:
    return f"{group_label(group, labelled)}\n{detail}"
