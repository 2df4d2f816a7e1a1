"""Fits of 32 VAEs as one batched program, against 32 separate fits, one after another.

They differ in β and seed, as those of a search do; the quick preset's VAE on one subject of its data set, for fewer epochs.
On a CPU a profile of the 32 says what bounds them: the share of matrix products and of softmax, and the ratio if all else were
free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks._frame import Options, Result, Row, interleaved
from benchmarks._material import configuration, synthetic
from migvis.config import VAEConfig
from migvis.vae import NeuralVAE
from migvis.vae_fit import fit_vae, fit_vaes
from tune.stage_data import device

SEEDS_OF_A_TRIAL = 5
NEEDED = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "softmax": ("aten::_softmax", "aten::_log_softmax", "aten::_log_softmax_backward_data"),
}
"""What a batched fit has to do, however its other operations are arranged."""


def run(options: Options) -> Result:
    """Rows: 32 fits (8 weights of the partial correlation × 4 seeds), and the seeds of one trial."""
    config = configuration(options.small)
    dataset = synthetic(config)
    rows, stimuli = dataset.split["train"], dataset.stimuli
    assert stimuli.pose is not None
    assert stimuli.category_id is not None
    responses = torch.tensor(dataset.subjects["M1"].response[rows])
    pose, category = torch.tensor(stimuli.pose[rows]), torch.tensor(stimuli.category_id[rows])
    settings: dict[str, Any] = {"category_count": len(stimuli.category_names), "device": device()}
    vae = config.vae.model_copy(update={"epochs": 1 if options.small else 4})
    rounds = 1 if options.small else 3

    def separately(configs: list[VAEConfig], seeds: list[int]) -> list[NeuralVAE]:
        fits = zip(configs, seeds, strict=True)
        return [fit_vae(responses, pose, category, one, seed=seed, **settings)[0] for one, seed in fits]

    def together(configs: list[VAEConfig], seeds: list[int]) -> list[NeuralVAE]:
        return [fitted for fitted, _ in fit_vaes(responses, pose, category, configs, seeds, **settings)]

    search = [vae.model_copy(update={"pc_weight": 10.0**-power}) for power in range(1, 9)]
    jobs = {
        "32 fits: 8 β × 4 seeds": (search * 4, [seed for seed in range(4) for _ in search]),
        f"{SEEDS_OF_A_TRIAL} fits: the seeds of a trial": ([vae] * SEEDS_OF_A_TRIAL, list(range(SEEDS_OF_A_TRIAL))),
    }
    result, difference = [], 0.0
    for name, job in jobs.items():
        fitted = {"together": together(*job), "separately": separately(*job)}
        for pair in zip(*fitted.values(), strict=True):
            weights = zip(*(vae.state_dict().values() for vae in pair), strict=True)
            difference = max(difference, *(float((ours - theirs).abs().max()) for ours, theirs in weights))
        ways = {"together": lambda _, job=job: together(*job), "separately": lambda _, job=job: separately(*job)}
        seconds = interleaved(ways, rounds)
        result.append(Row(name, seconds["together"], seconds["separately"]))
    figures = {"largest_weight_difference": difference}
    if device() == "cpu":
        many = result[0]
        shares = _shares(lambda: together(*jobs[many.name]))
        figures |= {**shares, "ratio_if_all_else_were_free": many.ratio / sum(shares.values())}
    return Result(result, figures)


def _shares(run: Callable[[], object]) -> dict[str, float]:
    """Shares of NEEDED in the seconds of all operations on the processor."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    seconds = {one.key: one.self_cpu_time_total for one in profiled.key_averages()}
    needed = {name: sum(seconds.get(one, 0.0) for one in operations) for name, operations in NEEDED.items()}
    return {f"share_of_{name}": part / sum(seconds.values()) for name, part in needed.items()}
