"""Transfer between subjects: the matrix says which edited group told which of the reader's groups more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tune.ablation.transfer as transfer
from migvis.guidance import LatentBank
from migvis.weights import save_bank, save_tensors
from tune.ablation.algebra import FULL
from tune.ablation.outcome import Cell, Outcome
from tune.ablation.study import Reading, Study
from tune.ablation.transfer import transfer_tables, transferred
from tune.context import StudyContext
from tune.stage_graph import Stage
from tune.study_config import STUDY_PRESETS

GROUPS, PAIRS = 2, 3


class KnownCritic(nn.Module):
    """s(z_g, y) = z_g · (the picture's g-th pixel): group g is told by pixel g alone."""

    group_rank = 1

    def embed(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :GROUPS]

    def image_keys(self, embeddings: Tensor, group: int) -> Tensor:
        return embeddings[:, group - 1 : group]

    def latent_keys(self, latents: Tensor, group: int) -> Tensor:
        return latents

    def scores(self, keys_image: Tensor, keys_latent: Tensor) -> Tensor:
        return keys_image @ keys_latent.T


@pytest.fixture
def outcome(tmp_path, monkeypatch) -> Outcome:
    """Two subjects with the same latents; edits of group 1 raise pixel 1, edits of group 2 leave the picture as it was."""
    context = StudyContext(tmp_path, "t", tmp_path, STUDY_PRESETS["quick"], tmp_path / "s", "d", True, 0, tmp_path / "stages", 1)
    latents = torch.ones(2 * PAIRS, GROUPS)
    vae = SimpleNamespace(group_count=GROUPS, encode=lambda x: (latents, None), group=lambda z, g: z[:, g - 1 : g])
    monkeypatch.setattr(transfer, "load_critic_folder", lambda path: KnownCritic())
    monkeypatch.setattr(transfer, "load_vae_folder", lambda path: vae)
    stages = SimpleNamespace(
        critic=lambda s, seed: Stage("critic", {"s": s}, print), vae=lambda s, seed: Stage("vae", {"s": s}, print)
    )
    study = Study("t", "?", (FULL,), lambda *_: [], ())
    found = Outcome(study, context, (FULL,), ("M1", "M2"), (0,), {"full": stages}, {})
    subject = SimpleNamespace(response=np.zeros((2 * PAIRS, 1), np.float32))
    found.__dict__["dataset"] = SimpleNamespace(
        subjects={"M1": subject, "M2": subject}, images=lambda rows: torch.zeros(len(rows), 1, 2, 2)
    )
    for name in ("M1", "M2"):
        for stage in (stages.critic(name, 0), stages.vae(name, 0)):
            found.store.path(stage.kind, stage.key).mkdir(parents=True)
        edited = Stage("synthesis", {"s": name}, print)
        folder = found.store.path(edited.kind, edited.key)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        images = torch.zeros(2 * PAIRS, 1, 2, 2)
        images[:PAIRS, 0, 0, 0] = 1.0
        pair, group = torch.arange(PAIRS).repeat(2), torch.tensor([1] * PAIRS + [2] * PAIRS)
        tensors = {"images": images, "pair": pair, "group": group, "source": torch.arange(PAIRS)}
        save_tensors(folder / "edits.safetensors", {**tensors, "target": torch.arange(PAIRS) + PAIRS})
        save_bank(folder, LatentBank(-torch.ones(4, GROUPS), torch.full((4,), 99), torch.full((4,), -1)))
        found.readings[Cell("full", name, 0)] = [Reading(edited)]
    return found


def test_only_what_an_edit_shows_is_gained_in_its_column(outcome) -> None:
    """log p(z = 1 | pixel v) against four bank latents of −1 is v − log(e^v + 4·e^−v): its gain from 0 to 1 is known."""
    gain = (1 - np.log(np.e + 4 / np.e)) - (0 - np.log(5))
    for reader in ("M1", "M2"):
        matrix = transferred(outcome, "M1", reader, 0)
        assert matrix == pytest.approx(np.array([[gain, 0.0], [0.0, 0.0]]), abs=1e-6)
    (table,) = transfer_tables(outcome)
    assert [row[:2] for row in table.rows][:3] == [
        ["M1, group 1", "M1's critic"],
        ["M1, group 2", "M1's critic"],
        ["M1, group 1", "M2's critic"],
    ]
    assert table.rows[2][2:] == [f"{gain:.2f}", "0.00"]


def test_a_subject_without_edits_is_left_out(outcome) -> None:
    outcome.readings.pop(Cell("full", "M2", 0))
    assert transferred(outcome, "M2", "M1", 0) is None
    (table,) = transfer_tables(outcome)
    assert {row[0].split(",")[0] for row in table.rows} == {"M1"}
    assert isinstance(outcome.context.folder, Path)
