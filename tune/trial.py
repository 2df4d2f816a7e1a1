"""One trial of the search, and what comes before it: the data set and the shared stages.

A trial fits each configured subject for each seed; its objectives and its constraint are means over both.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

from migvis.bundle import write_models
from migvis.config import Configuration
from migvis.weights import load_bank, load_critic_folder, load_vae_folder, read_json, save_vae
from tune.context import StudyContext
from tune.notes import cautions
from tune.pictures import scored_pictures
from tune.pipeline import Stage, StageResult
from tune.runner import Runner
from tune.stage_data import dataset_at
from tune.stages import Stages
from tune.stores import is_object_store
from tune.trial_result import Prepared, TrialResult

EXPECTED_SECONDS = {"prepare": 120.0, "trial": 8.0, "final": 40.0}
"""Seconds of the quick preset's phases on 2 CPU cores."""


_BEGUN: set[str] = set()
"""Keys of the stages that `begin` built in this process: `prepare` finds them, but they were not there before."""


def check_encoder(configuration: Configuration) -> None:
    """Raises InputError where a pretrained encoder cannot be loaded: critics are fitted after the longest fit of all."""
    if configuration.critic.encoder == "dino":
        from migvis.encoders import build_encoder

        build_encoder(configuration.critic, configuration.data.image_size)


def stages_of(context: StudyContext, configuration: Configuration, *, ray_train: bool = False) -> Stages:
    """The stages of a configuration in a study."""
    search = context.config.search
    return Stages(
        context.data_path,
        context.data_digest,
        configuration,
        context.seed,
        rendered=context.rendered,
        threads=search.threads_per_trial,
        workers=context.workers,
        # Its workers may be on any host, and read and write the builder's folders.
        ray_train=ray_train and not is_object_store(context.stages_root),
    )


def prepare(context: StudyContext) -> Prepared:
    """Builds the stages that all trials share: denoiser, pool, instruments, trajectory, embeddings."""
    from tune.placing import near_gpus
    from tune.trial_processes import start_processes

    check_encoder(context.config.configuration)
    reporter = context.reporter("prepare")
    stages = stages_of(context, context.config.configuration, ray_train=True)
    for caution in cautions(context.config.configuration, dataset_at(context.data_path)):
        reporter.line(f"note: {caution}")
    artifacts = {}
    for stage in stages.study_stages():
        if stage.kind == "denoiser" and context.store().peek(stage.kind, stage.key) is None:
            start_processes(context)
        # The denoiser's workers take GPUs of their own, wherever they are started from.
        result = shared_stage(context, stage) if stage.kind == "denoiser" else near_gpus(shared_stage, context, stage)
        reused = result.reused and stage.key not in _BEGUN
        note = f"{stage.kind}: {'reused' if reused else f'built in {result.seconds:.0f} s'}"
        if stage.kind == "instruments":
            calibration = read_json(result.path / "instrument.json").get("calibration", {})
            note += "; on held-out stimuli " + ", ".join(
                f"{name} {value:.3g}" for name, value in calibration.items() if value is not None
            )
        if stage.kind == "trajectory":
            note += f"; inversion MSE at 0.9 T {read_json(result.path / 'trajectory.json')['inversion_mse_0.9T']:.2g}"
        reporter.line(note)
        if stage.kind == "denoiser":
            artifacts["denoiser"] = result.path
    return Prepared(stages=Runner(context, "prepare", "prepare").records(), artifacts=artifacts)


def begin(context: StudyContext) -> None:
    """Builds the shared stages that come before the first long fit, in this process."""
    stages = stages_of(context, context.config.configuration).study_stages()
    for stage in takewhile(lambda stage: stage.kind != "denoiser", stages):
        if not shared_stage(context, stage).reused:
            _BEGUN.add(stage.key)


def shared_stage(context: StudyContext, stage: Stage) -> StageResult:
    """A stage of those that all trials share; built, if it is missing, in the process that calls this."""
    return Runner(context, "prepare", "prepare")(stage)


def seeds_of(context: StudyContext, count: int) -> range:
    """The seeds of `count` fits: the study's own, and those after it."""
    return range(context.seed, context.seed + count)


def run_trial(
    context: StudyContext, configuration: Configuration, params: Mapping[str, Any], number: int, vae_only: bool = False
) -> TrialResult:
    """Fits, edits and evaluates one configuration; ends right after the VAE if neural_r2 falls short, or if that is all that is
    asked for."""
    runner, stages = Runner(context, f"trial {number}", f"trial-{number:03d}"), stages_of(context, configuration)
    subjects, seeds = configuration.data.subjects, seeds_of(context, context.config.search.seeds_per_trial)
    fits = [(subject, seed) for subject in subjects for seed in seeds]
    values: dict[tuple[str, int], dict[str, float]] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    runner.together(stages.vaes(seeds))
    for subject, seed in fits:
        runner(stages.standard_vae(subject, seed))  # what it costs is told of every trial alike, whoever built it
        values[subject, seed] = read_json(runner(stages.representation(subject, seed)).path / "metrics.json")
        curves |= named_curves(f"{subject}/vae/seed{seed}", runner(stages.vae(subject, seed)))
        values[subject, seed] |= saturation(curves, f"{subject}/vae/seed{seed}")
    margin = context.config.search.r2_margin
    constraint = fmean(metrics["standard_neural_r2"] - margin - metrics["neural_r2"] for metrics in values.values())
    folder = context.trial_folder(number)
    models, pruned = folder / "models", vae_only or constraint > 0
    images: dict[str, Path] = {}
    if pruned:
        for subject in subjects:
            save_vae(models / subject, load_vae_folder(runner(stages.vae(subject, seeds[0])).path))
    else:
        for subject, seed in fits:
            critic = runner(stages.critic(subject, seed))
            curves |= named_curves(f"{subject}/critic/seed{seed}", critic)
            for group, (bound, error) in read_json(critic.path / "bounds.json").items():
                values[subject, seed] |= {f"mi_bound/group{group}": bound, f"mi_bound_error/group{group}": error}
            synthesis, evaluation = runner(stages.synthesis(subject, seed)), runner(stages.evaluation(subject, seed))
            values[subject, seed] |= read_json(evaluation.path / "metrics.json")
            if seed == seeds[0]:
                title = f"trial {number}, {subject}: " + ", ".join(f"{name} {value:g}" for name, value in params.items())
                dataset = dataset_at(context.data_path)
                images |= scored_pictures(dataset, synthesis.path, evaluation.path, folder, subject, title)
        write_study_models(models, configuration, {name: stage_folders(runner, stages, name, seeds[0]) for name in subjects})
    metrics, per_seed = means(values)
    return TrialResult(
        metrics=metrics,
        constraint=constraint,
        pruned=pruned,
        per_seed=per_seed,
        curves=curves,
        images=images,
        artifacts={"models": models},
        stages=runner.records(),
        seconds=runner.seconds(),
    )


def named_curves(name: str, result: StageResult) -> dict[str, list[tuple[int, float]]]:
    """The training curves in a stage's log, by name."""
    return {
        f"{name}/{term}": [(int(step), float(value)) for step, value in curve]
        for term, curve in result.log.get("curves", {}).items()
    }


def saturation(curves: Mapping[str, list[tuple[int, float]]], name: str) -> dict[str, float]:
    """pc_saturation at the end of a VAE's fit: above 0.8 the partial correlation has no gradient left."""
    curve = curves.get(f"{name}/pc_saturation")
    return {"pc_saturation": curve[-1][1]} if curve else {}


def means(values: Mapping[tuple[str, int], Mapping[str, float]]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Means over subjects and seeds, means per subject, and the values of each seed."""
    names = list(dict.fromkeys(name for metrics in values.values() for name in metrics))
    subjects = list(dict.fromkeys(subject for subject, _ in values))
    total = {name: fmean(metrics[name] for metrics in values.values() if name in metrics) for name in names}
    per_seed = {}
    for subject in subjects:
        own = [metrics for (who, _), metrics in values.items() if who == subject]
        for name in names:
            per_seed[f"{subject}/{name}"] = [metrics[name] for metrics in own if name in metrics]
            if len(subjects) > 1:
                total[f"{subject}/{name}"] = fmean(per_seed[f"{subject}/{name}"])
    return total, per_seed


def stage_folders(runner: Runner, stages: Stages, subject: str, seed: int) -> tuple[Path, Path, Path]:
    """Folders of a subject's VAE, critic and edits (with the bank)."""
    vae, critic, synthesis = stages.vae(subject, seed), stages.critic(subject, seed), stages.synthesis(subject, seed)
    path = runner.store.path
    return path(vae.kind, vae.key), path(critic.kind, critic.key), path(synthesis.kind, synthesis.key)


def write_study_models(out: Path, configuration: Configuration, folders: Mapping[str, tuple[Path, Path, Path]]) -> None:
    """A configuration's own models as files: VAE, critic and bank per subject, and configuration.json."""
    variance = 0.0
    subjects = {}
    for subject, (vae, critic, synthesis) in folders.items():
        subjects[subject] = (load_vae_folder(vae), load_critic_folder(critic), load_bank(synthesis))
        variance = float(read_json(synthesis / "synthesis.json")["pixel_variance"])
    write_models(out, configuration, subjects, variance)
