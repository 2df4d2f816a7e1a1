"""Real studies whose fits take no time, for tests that run their phases one by one, without Ray."""

from __future__ import annotations

from tune.context import StudyContext
from tune.runner import Runner
from tune.trial import prepare, stages_of
from tune.trial_result import Prepared

TINY = [
    "data.stimulus_count=192",
    "vae.epochs=4",
    "vae.batch_size=32",
    "critic.infonce_batch=16",
    "critic.images_seen=160",
    "critic.minimum_steps=10",
    "critic.evaluation_candidates=32",
    "denoiser.training_steps=4",
    "denoiser.batch_size=8",
    "denoiser.base_width=8",
    "denoiser.memory_copies=2",
    "denoiser.diffusion_steps=20",
    "synthesis.trial_pairs=4",
    "synthesis.final_pairs=4",
    "synthesis.sweep_scales=[1.0]",
    "synthesis.shifts=[1.0]",
    "search.final_seeds=1",
    "search.threads_per_trial=1",
    "search.r2_margin=9",
]


def prepared(context: StudyContext) -> Prepared:
    """The shared stages, built one by one, since `prepare` would fit the denoiser through Ray; then what it says of them."""
    runner = Runner(context, "prepare", "prepare")
    for stage in stages_of(context, context.config.configuration).study_stages():
        runner(stage)
    return prepare(context)
