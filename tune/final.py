"""The final stage: the selected configuration with more seeds, scored once on test images, re-synthesized and exported."""

from __future__ import annotations

from pathlib import Path

import torch

from migvis.bundle import assemble_bundle
from migvis.weights import read_json
from tune.context import StudyContext
from tune.pictures import gallery_grids, scored_pictures
from tune.runner import Runner
from tune.selection import Selected
from tune.space import apply
from tune.stage_data import dataset_at
from tune.summary import git_revision
from tune.trial import means, seeds_of, stage_folders, stages_of, write_study_models
from tune.trial_result import FinalResult


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
    values: dict[tuple[str, int], dict[str, float]] = {}
    images: dict[str, Path] = {}
    runner.together(stages.vaes(seeds))
    for subject in subjects:
        for seed in seeds:
            metrics = read_json(runner(stages.representation(subject, seed, "test")).path / "metrics.json")
            synthesis = runner(stages.synthesis(subject, seed, "test", count))
            evaluation = runner(stages.evaluation(subject, seed, "test", count))
            values[subject, seed] = metrics | read_json(evaluation.path / "metrics.json")
            if seed == seeds[0]:
                title = f"selected trial {selected.trial}, {subject}: edits of test stimuli"
                pictures = scored_pictures(dataset, synthesis.path, evaluation.path, folder, subject, title)
                images |= {f"scored_{subject}": pictures.pop(f"edits_{subject}"), **pictures}
        shown = runner(stages.gallery(subject, seeds[0])).path
        images |= gallery_grids(dataset, shown, folder, subject, configuration.synthesis.edit_step)
    models = folder / "models"
    write_study_models(models, configuration, {s: stage_folders(runner, stages, s, seeds[0]) for s in subjects})
    metrics, per_seed = means(values)
    spread = {name: own for name, own in per_seed.items() if len(own) > 1 and not name.endswith("_se")}
    metrics |= {f"{name}_sd": _sd(own) for name, own in spread.items()}
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
