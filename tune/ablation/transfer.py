"""One subject's edits read by the critic of another: do the groups of two subjects encode the same?"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import torch

from migvis.figures import selectivity_matrix
from migvis.guidance import mutual_information
from migvis.statistics import Interval, t_interval
from migvis.weights import load_bank, load_critic_folder, load_vae_folder, read_tensors
from tune.ablation.figures import Pictures
from tune.ablation.outcome import Cell, Outcome
from tune.ablation.study import Column
from tune.ablation.tables import mean_sd
from tune.pages.table import NOTHING, Table


@torch.no_grad()
def transferred(outcome: Outcome, editor: str, reader: str, seed: int) -> np.ndarray | None:
    """How much more of a target's latents the edits of one subject show to the critic of another, in nats, [2, G].

    Row g: edits of `editor`'s group g = 1, 2 towards their targets. Column h: log p(z_h of the target | edit) less that of the
    stimulus before the edit, by `reader`'s critic for `reader`'s own latents of the target. None where stages are missing.
    """
    case, dataset = outcome.cases[0].name, outcome.dataset
    edited, own = Cell(case, editor, seed), Cell(case, reader, seed)
    synthesis, bank_at = outcome.path(edited, "synthesis"), outcome.path(own, "synthesis")
    if synthesis is None or bank_at is None:
        return None
    stages = outcome.stages[case]
    critic_at, vae_at = (
        outcome.store.path(stage.kind, stage.key) for stage in (stages.critic(reader, seed), stages.vae(reader, seed))
    )
    if not (critic_at.is_dir() and vae_at.is_dir()):
        return None
    critic, vae = load_critic_folder(critic_at), load_vae_folder(vae_at)
    bank = load_bank(bank_at)
    latents, _ = vae.encode(torch.tensor(dataset.subjects[reader].response))
    edits = read_tensors(synthesis / "edits.safetensors")
    scored = 2 * len(edits["source"])
    source, target = (edits[name][edits["pair"][:scored]] for name in ("source", "target"))
    before, after = dataset.images(source.numpy()), edits["images"][:scored]
    allowed = bank.allowed(source, target)
    gain = torch.empty(scored, vae.group_count)
    for group in range(1, vae.group_count + 1):
        groups = torch.full((scored,), group)
        objective = mutual_information(critic, groups, vae.group(latents[target], group), bank, allowed)
        gain[:, group - 1] = objective(after) - objective(before)
    return np.stack([gain[edits["group"][:scored] == group].mean(0).numpy() for group in (1, 2)])


def _transfers(outcome: Outcome) -> dict[tuple[str, str], np.ndarray]:
    """By (editor, reader): [seeds, 2, G], where every seed has its stages."""
    found = {}
    for editor, reader in product(outcome.subjects, outcome.subjects):
        seeds = [transferred(outcome, editor, reader, seed) for seed in outcome.seeds]
        known = [matrix for matrix in seeds if matrix is not None]
        if known:
            found[editor, reader] = np.stack(known)
    return found


def transfer_tables(outcome: Outcome) -> list[Table]:
    """Nats gained about the target's latents, by the critic of the edited and of the other subject."""
    rows, header = [], ["edits of", "read by"]
    for (editor, reader), seeds in _transfers(outcome).items():
        groups = seeds.shape[2]
        header = ["edits of", "read by", *(f"group {h}" for h in range(1, groups + 1))]
        for g in (1, 2):
            intervals: list[Interval] = [t_interval(seeds[:, g - 1, h].tolist()) for h in range(groups)]
            texts = [mean_sd(interval, Column("", "", digits=2)) for interval in intervals]
            rows.append([f"{editor}, group {g}", f"{reader}'s critic", *texts])
    note = (
        "Nats that an edit adds to what it tells about the target's latents in each of the reader's groups, mean ± sd over "
        "seeds. Edits are guided by their own subject's critic, so its readings flatter them. The other subject's critic has not "
        "guided them, but it was fitted on the same pictures, near which edits end: a gain in every column is no transfer, a "
        "gain in the column of the edited group is."
    )
    return [Table("edits of one subject read by the critic of another", "transfer", header, rows or [[NOTHING] * 2], note)]


def transfer_pictures(outcome: Outcome, folder: Path) -> Pictures:
    """The same as matrices, each scaled to its largest entry."""
    found: Pictures = {}
    for (editor, reader), seeds in _transfers(outcome).items():
        mean = seeds.mean(axis=0)
        largest = float(np.abs(mean).max()) or 1.0
        found[f"edits of {editor}'s groups read by {reader}'s critic, as a share of the largest entry ({largest:.2f} nats)"] = (
            selectivity_matrix(
                mean / largest,
                [f"edits of group {g}" for g in (1, 2)],
                [f"group {h}" for h in range(1, mean.shape[1] + 1)],
                folder / f"transfer_{editor}_{reader}.png",
                f"{editor}'s edits, {reader}'s critic",
            )
        )
    return found
