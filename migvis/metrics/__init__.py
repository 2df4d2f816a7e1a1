"""Metrics, one definition each, used by the search, the final stage and the ablations alike."""

from __future__ import annotations

from migvis.metrics.disentanglement import mig_details, mig_equal_width, mutual_information_gap, shuffled_mig
from migvis.metrics.group_disentanglement import GroupInformation, group_mig
from migvis.metrics.reconstruction import explained_by_latents, neural_r2, neural_rmse

__all__ = [
    "GroupInformation",
    "explained_by_latents",
    "group_mig",
    "mig_details",
    "mig_equal_width",
    "mutual_information_gap",
    "neural_r2",
    "neural_rmse",
    "shuffled_mig",
]
