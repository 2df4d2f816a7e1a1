"""What all stages read of a data set, once per process, and where they compute."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from migvis.data import Dataset, load_dataset


@lru_cache(maxsize=2)
def dataset_at(path: Path) -> Dataset:
    """The data set, read once per process."""
    return load_dataset(path)


def device() -> str:
    """Where fits and synthesis run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def training_pictures(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Training stimuli [n] (rows) and, per stimulus, the index of its picture among the distinct training pictures."""
    rows = dataset.split["train"].copy()  # the data set's arrays are read-only, which PyTorch warns of
    _, picture = np.unique(dataset.picture_id[rows], return_inverse=True)
    return rows, picture


def clean_pictures(dataset: Dataset) -> Tensor:
    """The distinct training pictures [P, 1, H, W] in [−1, 1], in the order of training_pictures."""
    rows, picture = training_pictures(dataset)
    _, first = np.unique(picture, return_index=True)
    return dataset.images(rows[first])
