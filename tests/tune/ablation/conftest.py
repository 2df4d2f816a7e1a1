from __future__ import annotations

from pathlib import Path

import pytest
import yaml

TINY = {
    "preset": "quick",
    "data": {"stimulus_count": 256, "split": [0.4, 0.3, 0.3]},
    "vae": {"epochs": 4, "batch_size": 32, "group_count": 3, "group_rank": 2},
    "critic": {"infonce_batch": 16, "images_seen": 160, "minimum_steps": 10, "evaluation_candidates": 16},
    "denoiser": {"training_steps": 4, "batch_size": 8, "base_width": 8, "memory_copies": 1, "diffusion_steps": 12},
    "synthesis": {"trial_pairs": 4, "final_pairs": 4, "sweep_scales": [5.0], "shifts": [1.0]},
}


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A study configuration of fits that take no time."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def own_study(tmp_path) -> Path:
    """A user's own ablation, in a file outside the package."""
    path = tmp_path / "mine.py"
    path.write_text(
        """
from tune.ablation.algebra import FULL, case
from tune.ablation.figures import intervals
from tune.ablation.study import Column, Study, representation

mine = Study("mine", "Is the KL term needed?", (FULL, *case("without KL", {"vae.kl_weight": 0.0})), representation,
             (Column("neural_r2", "R²"), Column("mig", "MIG")), figures=(intervals,))
"""
    )
    return path
