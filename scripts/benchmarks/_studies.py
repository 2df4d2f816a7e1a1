"""Studies whose trials run one after another in this process, for benchmarks that look at trials one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from migvis.config import Configuration
from tune.context import DataSummary, StudyContext
from tune.study_config import StudyConfig
from tune.trial import prepare

SMALL_BATCH, SMALL_PAIRS = 16, 4


def small_study(config: StudyConfig, small: Configuration) -> StudyConfig:
    """The study of a tiny configuration: few steps of the denoiser, few pairs."""
    sections: dict[str, Any] = {name: getattr(small, name) for name in Configuration.model_fields}
    sections["denoiser"] = small.denoiser.model_copy(update={"training_steps": 2})
    sections["synthesis"] = small.synthesis.model_copy(update={"trial_pairs": SMALL_PAIRS, "final_pairs": SMALL_PAIRS})
    sections["search"] = config.search.model_copy(update={"infonce_batch": (SMALL_BATCH,)})
    return config.model_copy(update=sections)


def opened(config: StudyConfig, data: DataSummary, storage: Path, study: str) -> StudyContext:
    """A study over a data set; its stages are kept in the storage folder."""
    return StudyContext(
        storage=storage,
        study=study,
        folder=storage / study,
        config=config,
        data_path=data.path,
        data_digest=data.digest,
        rendered=data.rendered,
        seed=0,
        stages_root=storage / "stages",
        workers=1,
    )


def build_study_stages(context: StudyContext) -> None:
    """Builds the stages that all trials share, with a local Ray, through which the denoiser is fitted."""
    import ray

    from tune.ray_connection import connect

    connect(None, None)
    try:
        prepare(context)
    finally:
        ray.shutdown()
