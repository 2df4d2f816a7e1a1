"""The quick preset's configuration and synthetic data set, as the benchmarks use them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from migvis.config import PRESETS, Configuration
from migvis.data import Dataset, load_dataset
from migvis.data.synthetic.stimuli import make_synthetic
from tune.factorial import FactorialTable

SMALL_STIMULI = 160


def configuration(small: bool) -> Configuration:
    """The preset "quick"; small: fewer stimuli, fewer diffusion steps, a smaller memory, and the shortest fits."""
    quick = PRESETS["quick"]
    if not small:
        return quick
    sections = {
        "data": {"stimulus_count": SMALL_STIMULI},
        "vae": {"epochs": 1},
        "critic": {"infonce_batch": 16, "images_seen": 16, "minimum_steps": 1},
        "denoiser": {"diffusion_steps": 10, "base_width": 8, "memory_copies": 2},
    }
    return quick.model_copy(
        update={section: getattr(quick, section).model_copy(update=values) for section, values in sections.items()}
    )


def synthetic(config: Configuration) -> Dataset:
    """The synthetic data set that a configuration describes."""
    with tempfile.TemporaryDirectory() as folder:
        return load_dataset(make_synthetic(config.data, Path(folder) / "set.h5"))


def factorial() -> FactorialTable:
    """The evaluated configurations of the quick preset, from its own seed."""
    return factorials()[0]


def factorials() -> list[FactorialTable]:
    """The same configurations from several seeds, of which 0 is the first."""
    return [FactorialTable.load(path) for path in sorted(Path(__file__).parent.glob("factorial-*.json"))]
