"""The gallery as a stage: its edits are those of the editor, its pictures show every one of them in its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from migvis.config import PRESETS, Configuration
from migvis.data import Dataset, load_dataset
from migvis.data.synthetic.stimuli import make_synthetic
from migvis.edit_grid import GridRow, edit_grid
from migvis.errors import InputError
from migvis.guidance import Information
from migvis.keeping import KeepingOthers, own_latents
from migvis.synthesis import Edits, GuidedEditor, shift_edits, target_edits
from migvis.weights import load_bank, load_critic_folder, load_denoiser, load_vae_folder, read_tensors
from tune.dimension_gallery import MOST_PAIRS, pairs_of
from tune.gallery import SHOWN_STIMULI, read_gallery, shown_scales
from tune.pictures import dimension_grid, gallery_grids
from tune.pipeline import ensure
from tune.stage_graph import Stage
from tune.stages import Stages
from tune.store import StageStore

QUICK = PRESETS["quick"]
TINY = Configuration(
    data=QUICK.data.model_copy(update={"stimulus_count": 256, "split": (0.4, 0.3, 0.3)}),
    vae=QUICK.vae.model_copy(update={"epochs": 4, "batch_size": 32, "group_count": 3, "group_rank": 2}),
    critic=QUICK.critic.model_copy(
        update={"infonce_batch": 16, "images_seen": 160, "minimum_steps": 10, "evaluation_candidates": 16}
    ),
    denoiser=QUICK.denoiser.model_copy(
        update={"training_steps": 4, "batch_size": 8, "base_width": 8, "memory_copies": 1, "diffusion_steps": 12}
    ),
    # Critics of ten steps know next to nothing: only the gradient, many times enlarged, tells their edits apart.
    synthesis=QUICK.synthesis.model_copy(
        update={
            "guidance": "gradient",
            "guidance_scale": 500.0,
            "sweep_scales": (2000.0, 250.0),
            "shifts": (2.0, 0.5),
            "trial_pairs": 4,
            "final_pairs": 4,
        }
    ),
)
Made = tuple[Stages, StageStore, Path, list[str]]


@pytest.fixture(scope="module")
def dataset_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(TINY.data, tmp_path_factory.mktemp("set") / "set.h5")


@pytest.fixture(scope="module")
def made(dataset_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Stages, their store, the folder of the gallery and what was told of its progress."""
    stages = Stages(dataset_file, load_dataset(dataset_file).digest, TINY, 0, threads=1)
    store, told = StageStore(tmp_path_factory.mktemp("store")), []

    def progress(stage: Stage, update: object) -> None:
        if stage.kind == "gallery":
            told.append(f"{update.name} {update.step}/{update.steps}")
            assert update.seconds > 0

    return stages, store, ensure(stages.gallery("M1", 0), store, progress=progress).path, told


def folder(store: StageStore, stage: Stage) -> Path:
    return store.path(stage.kind, stage.key)


def edited_directly(stages: Stages, store: StageStore, dataset: Dataset) -> dict[str, torch.Tensor]:
    """The rows of both grids by their labels, each edited by itself."""
    config, vae = TINY.synthesis, load_vae_folder(folder(store, stages.vae("M1", 0)))
    unet = load_denoiser(folder(store, stages.denoiser()))
    critic = load_critic_folder(folder(store, stages.critic("M1", 0)))
    bank = load_bank(ensure(stages.synthesis("M1", 0), store).path)
    with torch.no_grad():
        latents, _ = vae.encode(torch.tensor(dataset.subjects["M1"].response))
    criterion = KeepingOthers(Information(critic, bank), config.keep_weight, 2, own_latents(latents))
    editor = GuidedEditor(unet, unet.alphas, config, criterion, 1.0, unet.memory)
    stored = read_tensors(folder(store, stages.trajectory("test", config.final_pairs)) / "states.safetensors")
    source, target, every = stored["source"][:SHOWN_STIMULI], stored["target"][:SHOWN_STIMULI], torch.arange(SHOWN_STIMULI)
    images, states = dataset.images(source.numpy()), stored["states"][editor.step()][:SHOWN_STIMULI]
    spread, rows = vae.latent_scale.view(3, 2), {}
    for group, name in ((1, "group 1\n(pose)"), (2, "group 2\n(category)"), (3, "group 3")):
        for scale in (250.0, 500.0, 2000.0):
            edits = target_edits(every, group, scale, latents[target], 2, source, target)
            rows[f"{name}\nγ = {scale:g}"] = editor.edit(images, states, edits)
        for shift, sign in ((-2, ""), (-0.5, ""), (0.5, "+"), (2, "+")):
            edits = shift_edits(every, group, 500.0, latents[source], float(shift), spread, source)
            rows[f"{name}\nΔ = {sign}{shift:g}"] = editor.edit(images, states, edits)
    return rows


def test_the_pictures_show_every_edit_in_its_row(made: Made, dataset_file: Path, tmp_path: Path) -> None:
    stages, store, gallery, told = made
    assert told == ["showing edits 63/63"]
    dataset = load_dataset(dataset_file)
    direct = edited_directly(stages, store, dataset)
    shown = read_gallery(gallery)
    swept, shifted = ([label for label in direct if symbol in label] for symbol in "γΔ")
    for label, images in zip([*swept, *shifted], shown.images, strict=True):
        torch.testing.assert_close(images, direct[label], rtol=0, atol=1e-4, msg=label)
    distinct = torch.stack(list(direct.values())).flatten(1)
    assert float(torch.pdist(distinct).min()) > 0.05, "rows that look alike would hide a mistake"

    edited = dict(zip([*swept, *shifted], shown.images, strict=True))
    names = dataset.stimuli.category_names
    doses = ["source", "γ = 250", "γ = 500", "γ = 2000", "target"]
    steps = ["Δ = -2", "Δ = -0.5", "source", "Δ = +0.5", "Δ = +2"]

    def row(label: str, headers: list[str]) -> GridRow:
        images, captions = [], []
        for stimulus in range(SHOWN_STIMULI):
            for header in headers:
                if header in ("source", "target"):
                    place = int(getattr(shown, header)[stimulus])
                    images.append(dataset.images(np.array([place]))[0])
                    captions.append(names[int(dataset.stimuli.category_id[place])])
                else:
                    images.append(edited[f"{label}\n{header}"][stimulus])
                    captions.append("")
        return GridRow(label, torch.stack(images), captions)

    def grid(headers: list[str], path: Path, how: str) -> Path:
        rows = [row(label, headers) for label in ("group 1\n(pose)", "group 2\n(category)", "group 3")]
        return edit_grid(rows, path, f"M1, edit step 0.6 T: each group {how}", headers * SHOWN_STIMULI, block=5)

    expected = {
        "target_M1": grid(doses, tmp_path / "t.png", "guided to the target's"),
        "shift_M1": grid(steps, tmp_path / "s.png", "shifted by Δ sd"),
    }
    drawn = gallery_grids(dataset, gallery, tmp_path / "final", "M1", TINY.synthesis.edit_step)
    assert drawn.keys() == expected.keys()
    for name, path in drawn.items():
        assert path.name == f"{name}.png"
        assert path.read_bytes() == expected[name].read_bytes(), name


def test_a_second_final_stage_edits_nothing_again(made: Made) -> None:
    stages, store, gallery, _ = made
    again = ensure(stages.gallery("M1", 0), StageStore(store.root))
    assert again.reused
    assert again.path == gallery


def test_pairs_of_dimensions_move_those_two_alone_and_have_a_row_each(made: Made, dataset_file: Path, tmp_path: Path) -> None:
    stages, store, _, _ = made
    wider = replace(stages, configuration=TINY.model_copy(update={"vae": TINY.vae.model_copy(update={"group_rank": 3})}))
    stage = wider.dimension_gallery("M1", 0, 2)
    path = ensure(stage, store).path
    dataset, vae = load_dataset(dataset_file), load_vae_folder(folder(store, wider.vae("M1", 0)))
    unet, critic = load_denoiser(folder(store, wider.denoiser())), load_critic_folder(folder(store, wider.critic("M1", 0)))
    bank = load_bank(ensure(wider.synthesis("M1", 0), store).path)
    with torch.no_grad():
        latents, _ = vae.encode(torch.tensor(dataset.subjects["M1"].response))
    criterion = KeepingOthers(Information(critic, bank), TINY.synthesis.keep_weight, 3, own_latents(latents))
    editor = GuidedEditor(unet, unet.alphas, TINY.synthesis, criterion, 1.0, unet.memory)
    stored = read_tensors(folder(store, wider.trajectory("test", TINY.synthesis.final_pairs)) / "states.safetensors")
    source = stored["source"][:SHOWN_STIMULI]
    images, states = dataset.images(source.numpy()), stored["states"][editor.step()][:SHOWN_STIMULI]
    shown = read_tensors(path / "dimensions.safetensors")
    rows = [(pair, shift) for pair in ((1, 2), (1, 3), (2, 3)) for shift in (-2.0, -0.5, 0.5, 2.0)]
    assert [(tuple(pair), shift) for pair, shift in zip(shown["pair"].tolist(), shown["shift"].tolist(), strict=True)] == rows
    for (pair, shift), edited in zip(rows, shown["images"], strict=True):
        target = latents[source, 3:6].clone()
        for dimension in pair:
            target[:, dimension - 1] += shift * vae.latent_scale[3 + dimension - 1]
        every = torch.arange(SHOWN_STIMULI)
        edits = Edits(
            every, torch.full_like(every, 2), target, torch.full((len(every),), 500.0), source, torch.full_like(source, -1)
        )
        torch.testing.assert_close(edited, editor.edit(images, states, edits), rtol=0, atol=1e-4)
    drawn = dimension_grid(dataset, path, tmp_path / "d.png", "title")
    names = dataset.stimuli.category_names
    captions = ["", "", "source", "", ""] * SHOWN_STIMULI
    for place, row in enumerate(source.tolist()):
        captions[5 * place + 2] = names[int(dataset.stimuli.category_id[row])]
    grid = []
    for place, (a, b) in enumerate(((1, 2), (1, 3), (2, 3))):
        most, less, more, largest = shown["images"][4 * place : 4 * place + 4]
        ordered = [column[k] for k in range(SHOWN_STIMULI) for column in (most, less, images, more, largest)]
        grid.append(GridRow(f"dimensions [{a}, {b}]", torch.stack(ordered), captions))
    headers = ["Δ = -2", "Δ = -0.5", "source", "Δ = +0.5", "Δ = +2"] * SHOWN_STIMULI
    assert drawn.read_bytes() == edit_grid(grid, tmp_path / "e.png", "title", headers, block=5).read_bytes()


def test_a_group_that_does_not_exist_has_no_dimensions(made: Made) -> None:
    stages, store, _, _ = made
    with pytest.raises(InputError, match="group: expected 1…3, got 4"):
        ensure(stages.dimension_gallery("M1", 0, 4), store)


@pytest.mark.parametrize(("rank", "pairs"), [(1, [(1, 1)]), (2, [(1, 2)]), (3, [(1, 2), (1, 3), (2, 3)])])
def test_pairs_of_dimensions(rank: int, pairs: list[tuple[int, int]]) -> None:
    assert pairs_of(rank) == pairs
    assert len(pairs_of(8)) == len(set(pairs_of(8))) == MOST_PAIRS
    assert {pairs_of(8)[0], pairs_of(8)[-1]} == {(1, 2), (7, 8)}


def test_a_scale_of_the_sweep_that_looks_like_the_own_one_is_not_shown() -> None:
    assert shown_scales((5.0, 20.0, 80.0), 81.0) == [5.0, 20.0, 81.0]
    assert shown_scales((5.0, 20.0, 80.0), 20.0) == [5.0, 20.0, 80.0]
    assert shown_scales((5.0, 20.0, 80.0), 40.0) == [5.0, 20.0, 40.0, 80.0]
    assert shown_scales((0.0, 20.0), 0.0) == [0.0, 20.0]
    assert shown_scales((), 3.0) == [3.0]
