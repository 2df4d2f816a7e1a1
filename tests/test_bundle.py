from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import migvis
from migvis.bundle import Bundle, assemble_bundle, load, save_bundle, write_models
from migvis.config import Configuration, CriticConfig, DenoiserConfig, SynthesisConfig, VAEConfig
from migvis.critic import Critic
from migvis.diffusion import noise_schedule
from migvis.errors import InputError
from migvis.guidance import Information
from migvis.keeping import KeepingOthers
from migvis.synthesis import Editor, GuidedEditor, make_bank, shift_edits, target_edits
from migvis.unet import UNet
from migvis.vae import NeuralVAE
from migvis.weights import load_denoiser, save_denoiser

CONFIGURATION = Configuration(
    vae=VAEConfig(group_count=3, group_rank=2),
    critic=CriticConfig(encoder="cnn", infonce_batch=8),
    denoiser=DenoiserConfig(base_width=8, width_multipliers=(1, 2), diffusion_steps=10, stem_patch=2),
    synthesis=SynthesisConfig(guidance_scale=3.0, bank_size=12),
)
UNITS = {"M1": 7, "monkey 2": 5}


class Models:
    """Random models of two subjects, a pixel variance, and some stimuli with their latents."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet = UNet(CONFIGURATION.denoiser, 32, noise_schedule(10)).to(memory_format=torch.channels_last)
        for weight in self.unet.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        self.unet.eval().requires_grad_(False)
        self.subjects = {}
        for name, units in UNITS.items():
            vae = NeuralVAE(CONFIGURATION.vae, units, 3, 8).eval()
            vae.response_mean.copy_(torch.randn(units))
            vae.latent_scale.copy_(torch.rand(6) + 0.5)
            critic = Critic(CONFIGURATION.critic, 3, 2, 32).eval()
            bank = make_bank(torch.randn(20, 6), torch.arange(100, 120), torch.arange(20), 12, seed=1)
            self.subjects[name] = (vae, critic, bank)
        self.pixel_variance = 0.2
        self.images = torch.rand(4, 1, 32, 32) * 2 - 1
        self.latents, self.target = torch.randn(4, 6), torch.randn(4, 2)

    def editor(self, subject: str) -> Editor:
        _, critic, bank = self.subjects[subject]
        information = Information(critic, bank)
        return GuidedEditor(self.unet, self.unet.alphas, CONFIGURATION.synthesis, information, self.pixel_variance)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture
def folder(models: Models, tmp_path: Path) -> Path:
    picture = tmp_path / "edits.png"
    Image.new("L", (8, 8)).save(picture)
    return save_bundle(
        tmp_path / "bundle",
        configuration=CONFIGURATION,
        unet=models.unet,
        subjects=models.subjects,
        pixel_variance=models.pixel_variance,
        metrics={"neural_r2": 0.9, "mi_bound": {"1": float("nan")}, "oracle/object_accuracy": 0.71},
        images={"edits/M1": picture},
        provenance={"data_source": "synthetic", "data_digest": "abc123", "trial": 4},
    )


@pytest.fixture(scope="module")
def bundle(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("shared") / "bundle"
    return load(
        save_bundle(
            out, configuration=CONFIGURATION, unet=models.unet, subjects=models.subjects, pixel_variance=models.pixel_variance
        )
    )


def test_a_bundle_that_keeps_other_groups_needs_the_stimuli_s_latents_and_uses_them(models: Models, tmp_path: Path) -> None:
    synthesis = CONFIGURATION.synthesis.model_copy(update={"keep_weight": 0.5})
    keeping = CONFIGURATION.model_copy(update={"synthesis": synthesis})
    fitted = {"unet": models.unet, "subjects": models.subjects, "pixel_variance": models.pixel_variance}
    bundle = load(save_bundle(tmp_path / "kept", configuration=keeping, **fitted))
    options = {"subject": "M1", "group": 2, "target": models.target}
    with pytest.raises(InputError, match="latents: these edits keep what the other groups say"):
        bundle.edit(models.images, **options)
    own = torch.arange(24.0).view(4, 6) / 10
    edited = bundle.edit(models.images, latents=own, **options)
    editor, unknown = models.editor("M1"), torch.full((4,), -1)
    kept = KeepingOthers(editor.criterion, 0.5, 2, lambda edits: own[edits.source])
    full = torch.zeros(4, 6)
    full[:, 2:4] = models.target
    expected = replace(editor, criterion=kept).edit(
        models.images, editor.invert(models.images), target_edits(torch.arange(4), 2, 3.0, full, 2, unknown, unknown)
    )
    assert torch.equal(edited, expected)
    assert not torch.equal(edited, bundle.edit(models.images, latents=own.flip(0), **options))


def test_edits_towards_a_target_are_bitwise_those_before_saving(models: Models, bundle: Bundle) -> None:
    editor, unknown = models.editor("M1"), torch.full((4,), -1)
    full = torch.zeros(4, 6)
    full[:, 2:4] = models.target
    expected = editor.edit(
        models.images, editor.invert(models.images), target_edits(torch.arange(4), 2, 3.0, full, 2, unknown, unknown)
    )
    edits = bundle.edit(models.images, subject="M1", group=2, target=models.target)
    assert torch.equal(edits, expected)
    assert edits.shape == (4, 1, 32, 32)
    assert edits.abs().max() <= 1
    assert torch.equal(edits, bundle.edit(models.images.numpy(), subject="M1", group=2, target=models.target.numpy()))
    assert not torch.equal(edits, bundle.edit(models.images, subject="monkey 2", group=2, target=models.target))


def test_an_edit_by_memory_does_not_depend_on_where_its_picture_stands(models: Models, tmp_path: Path) -> None:
    remembering = CONFIGURATION.denoiser.model_copy(update={"memory_copies": 1, "memory_rank": 16})
    synthesis = CONFIGURATION.synthesis.model_copy(update={"guidance": "memory"})
    unet = UNet(remembering, 32, noise_schedule(10)).eval().requires_grad_(False)
    unet.normalise_to(torch.rand(20, 1, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1)
    bundle = load(
        save_bundle(
            tmp_path / "bundle",
            configuration=CONFIGURATION.model_copy(update={"denoiser": remembering, "synthesis": synthesis}),
            unet=unet,
            subjects=models.subjects,
            pixel_variance=models.pixel_variance,
        )
    )
    options = {"subject": "M1", "group": 1, "guidance_scale": 20.0}
    together = bundle.edit(models.images, target=models.target, **options)
    assert float((together - models.images).square().mean()) > 1e-2
    backwards = bundle.edit(models.images.flip(0), target=models.target.flip(0), **options).flip(0)
    assert torch.allclose(backwards, together, atol=1e-4)
    for row in range(4):
        alone = bundle.edit(models.images[row : row + 1], target=models.target[row : row + 1], **options)
        assert torch.allclose(alone, together[row : row + 1], atol=1e-4), row


def test_shifts_are_bitwise_those_before_saving(models: Models, bundle: Bundle) -> None:
    editor, unknown = models.editor("monkey 2"), torch.full((4,), -1)
    spread = models.subjects["monkey 2"][0].latent_scale.view(3, 2)
    delta = torch.tensor([2.0, -1.0])
    wanted = shift_edits(torch.arange(4), 3, 7.0, models.latents, delta, spread, unknown, [2])
    expected = editor.edit(models.images, editor.invert(models.images, edit_step=0.5), wanted, edit_step=0.5)
    options = {"subject": "monkey 2", "group": 3, "latents": models.latents, "guidance_scale": 7.0, "edit_step": 0.5}
    assert torch.equal(bundle.edit(models.images, shift=[2.0, -1.0], dimensions=[2], **options), expected)
    assert not torch.equal(bundle.edit(models.images, shift=[2.0, -1.0], **options), expected)


def test_latents_of_the_bank_are_not_their_own_negatives(models: Models, bundle: Bundle) -> None:
    editor, bank = models.editor("M1"), models.subjects["M1"][2]
    own, goal = bank.latents[[3, 5]], bank.latents[[7, 9]]
    wanted = target_edits(torch.arange(2), 1, 3.0, goal, 2, bank.rows[[3, 5]], bank.rows[[7, 9]])
    expected = editor.edit(models.images[:2], editor.invert(models.images[:2]), wanted)
    assert torch.equal(bundle.edit(models.images[:2], subject="M1", group=1, target=goal[:, :2], latents=own), expected)


def test_encode_gives_posterior_means_of_raw_responses(models: Models, bundle: Bundle) -> None:
    responses = torch.randn(6, 5)
    with torch.no_grad():
        expected = models.subjects["monkey 2"][0].encode(responses)[0]
    assert torch.equal(bundle.encode(responses.numpy(), "monkey 2"), expected)
    assert torch.equal(bundle.encode(responses.double(), "monkey 2"), expected)


def test_the_subject_may_be_left_out_if_there_is_one(models: Models, tmp_path: Path) -> None:
    only = {"M1": models.subjects["M1"]}
    save_bundle(tmp_path / "b", configuration=CONFIGURATION, unet=models.unet, subjects=only, pixel_variance=0.2)
    bundle = migvis.load(str(tmp_path / "b"))
    assert bundle.encode(torch.zeros(2, 7)).shape == (2, 6)
    assert bundle.edit(models.images, group=1, target=models.target).shape == (4, 1, 32, 32)


def test_what_a_bundle_holds(folder: Path) -> None:
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors", ".md", ".png"}
    assert (folder / "grids" / "edits_M1.png").is_file()
    assert not list(folder.parent.glob(".bundle*"))
    assert json.loads((folder / "metrics.json").read_text())["mi_bound"] == {"1": None}
    statistics = json.loads((folder / "normalisation.json").read_text())
    assert len(statistics["monkey 2"]["response_mean"]) == 5
    card = (folder / "README.md").read_text()
    for text in ("abc123", "**Synthetic**", "oracle/object_accuracy | 0.71", "migvis.load", "M1 (7 units)", "edits/M1"):
        assert text in card
    bundle = load(folder)
    assert bundle.subjects == ("M1", "monkey 2")
    assert bundle.configuration == CONFIGURATION
    assert bundle.metrics["neural_r2"] == 0.9
    assert bundle.provenance["trial"] == 4


MISUSES = [
    ({"group": 0}, "group: expected 1…3, got 0"),
    ({"group": 4}, "group: expected 1…3, got 4"),
    ({"group": 1.5}, "group: expected a whole number"),
    ({"subject": "M3"}, "subject: expected one of M1, monkey 2, got 'M3'"),
    ({"subject": None}, "subject: the bundle has 2 (M1, monkey 2); name one"),
    ({"target": None}, "either target or shift, got neither"),
    ({"shift": 1.0}, "either target or shift, got both"),
    ({"target": torch.zeros(4, 6)}, "target: expected shape [4, 2], got [4, 6]"),
    ({"target": torch.full((4, 2), float("nan"))}, "target: it holds values that are not finite"),
    ({"target": None, "shift": 1.0}, "latents: a shift starts from"),
    ({"target": None, "shift": 1.0, "latents": torch.zeros(4, 2)}, "latents: expected shape [4, 6], got [4, 2]"),
    ({"target": None, "shift": [1.0, 2.0, 3.0], "latents": torch.zeros(4, 6)}, "shift: expected shape [2], got [3]"),
    ({"target": None, "shift": [1.0, [2.0, 3.0]], "latents": torch.zeros(4, 6)}, "shift: expected"),
    ({"target": None, "shift": float("inf"), "latents": torch.zeros(4, 6)}, "shift: expected a finite number"),
    ({"target": None, "shift": 1.0, "latents": torch.zeros(4, 6), "dimensions": [3]}, "dimensions: expected 1…2, got 3"),
    ({"target": None, "shift": 1.0, "latents": torch.zeros(4, 6), "dimensions": []}, "dimensions: expected at least one"),
    ({"dimensions": [1]}, "dimensions: only a shift"),
    ({"edit_step": 0.96}, "edit_step: a fraction of T in (0, 0.95], got 0.96"),
    ({"edit_step": 0}, "edit_step: a fraction of T in (0, 0.95], got 0"),
    ({"edit_step": "far"}, "edit_step: expected a number, got 'far'"),
    ({"guidance_scale": -1}, "guidance_scale: expected 0 or more"),
    ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number"),
    ({"images": torch.zeros(4, 1, 16, 16)}, "images: expected shape [n, 1, 32, 32], got [4, 1, 16, 16]"),
    ({"images": torch.zeros(0, 1, 32, 32)}, "images: expected shape [n, 1, 32, 32], got [0, 1, 32, 32]"),
    ({"images": torch.full((4, 1, 32, 32), 255)}, "images: expected values in [−1, 1], got 255…255"),
    ({"images": "a.png"}, "images: expected an array of numbers"),
]


@pytest.mark.parametrize(("change", "message"), MISUSES, ids=[message[:40] for _, message in MISUSES])
def test_misuse_of_edit_is_one_clear_line(models: Models, bundle: Bundle, change: dict, message: str) -> None:
    arguments = {"images": models.images, "subject": "M1", "group": 2, "target": models.target, **change}
    with pytest.raises(InputError, match=re.escape(message)) as error:
        bundle.edit(**arguments)
    assert "\n" not in str(error.value)


def test_misuse_of_encode_is_one_clear_line(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"responses: expected shape \[n, 7\], got \[2, 5\]"):
        bundle.encode(torch.zeros(2, 5), "M1")
    with pytest.raises(InputError, match="responses: it holds values that are not finite"):
        bundle.encode(torch.full((1, 7), float("nan")), "M1")


@pytest.mark.parametrize(
    "file", ["denoiser.safetensors", "subjects/M1/vae.json", "subjects/monkey 2/bank.safetensors", "configuration.json"]
)
def test_a_tampered_or_missing_file_is_refused(folder: Path, file: str) -> None:
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(file)}: its content does not match"):
        load(folder)
    (folder / file).unlink()
    with pytest.raises(InputError, match=f"{re.escape(file)}: missing"):
        load(folder)


@pytest.mark.parametrize("name", ["..", "../M1", "/etc", "a/b", "", ".hidden", "a\\b"])
def test_a_subject_cannot_leave_the_folder(models: Models, folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="subject"):
        write_models(tmp_path / "models", CONFIGURATION, {name: models.subjects["M1"]}, 0.2)
    assert not (tmp_path / "models").exists()
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**manifest, "subjects": [name]}))
    with pytest.raises(InputError, match="subject"):
        load(folder)


def test_what_is_no_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a bundle"):
        load(tmp_path / "nowhere")
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(InputError, match="version 1, got migvis-bundle 99"):
        load(folder)
    (folder / "bundle.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        load(folder)


def test_assembling_replaces_a_bundle_and_nothing_else(models: Models, folder: Path, tmp_path: Path) -> None:
    write_models(tmp_path / "models", CONFIGURATION, {"M1": models.subjects["M1"]}, 0.2)
    save_denoiser(tmp_path / "denoiser", models.unet)
    before = sorted(path.name for path in (tmp_path / "models").iterdir())
    with pytest.raises(InputError, match="exists and is no bundle"):
        assemble_bundle(tmp_path / "models", tmp_path / "denoiser", tmp_path / "models")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == before
    (tmp_path / "models" / "M1" / "critic.json").rename(tmp_path / "critic.json")
    with pytest.raises(InputError, match=r"critic\.json: missing"):
        assemble_bundle(tmp_path / "models", tmp_path / "denoiser", folder)
    assert load(folder).subjects == ("M1", "monkey 2")
    (tmp_path / "critic.json").rename(tmp_path / "models" / "M1" / "critic.json")
    assert assemble_bundle(tmp_path / "models", tmp_path / "denoiser", folder) == folder
    assert load(folder).subjects == ("M1",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "denoiser", "edits.png", "models"]


def test_models_that_do_not_fit_together_are_refused(models: Models, tmp_path: Path) -> None:
    vae, critic, _ = models.subjects["M1"]
    short = make_bank(torch.randn(20, 4), torch.arange(20), torch.arange(20), 12, seed=1)
    mixed = {"M1": (vae, critic, short)}
    with pytest.raises(InputError, match="do not fit together"):
        save_bundle(tmp_path / "b", configuration=CONFIGURATION, unet=models.unet, subjects=mixed, pixel_variance=0.2)
    assert not (tmp_path / "b").exists()


def test_a_denoiser_comes_back_bitwise_and_a_damaged_one_does_not(models: Models, tmp_path: Path) -> None:
    save_denoiser(tmp_path, models.unet)
    t = torch.tensor([1, 3, 5, 9])
    assert torch.equal(load_denoiser(tmp_path)(models.images, t), models.unet(models.images, t))
    (tmp_path / "denoiser.json").write_text(json.dumps({"denoiser": {"base_width": 16}, "image_size": 32}))
    with pytest.raises(InputError, match=r"denoiser\.safetensors: does not fit denoiser\.json") as error:
        load_denoiser(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "denoiser.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_denoiser(tmp_path)
