from __future__ import annotations

import json
import runpy
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from migvis.bundle import load, write_models
from migvis.config import Configuration, CriticConfig, DenoiserConfig, VAEConfig
from migvis.critic import Critic
from migvis.diffusion import noise_schedule
from migvis.synthesis import make_bank
from migvis.unet import UNet
from migvis.vae import NeuralVAE
from migvis.weights import save_denoiser
from tune.pipeline import ensure
from tune.stage_graph import Stage
from tune.store import StageStore
from tune.study_config import STUDY_PRESETS
from tune.study_folder import StudyRecord, write_json
from tune.tracking_uri import default_uri
from tune.tracking_writer import Writer
from tune.trial_record import TrialRecord
from tune.trial_result import TrialResult

ROOT = Path(__file__).parents[2]
main = runpy.run_path(str(ROOT / "scripts" / "export.py"))["main"]


def configuration(rank: int) -> Configuration:
    denoiser = DenoiserConfig(base_width=8, width_multipliers=(1, 2), diffusion_steps=10, stem_patch=2)
    return Configuration(vae=VAEConfig(group_count=2, group_rank=rank), critic=CriticConfig(encoder="cnn"), denoiser=denoiser)


def result_of(folder: Path, number: int) -> TrialResult:
    """A trial whose group rank is its number + 1, with its models and a picture in its folder."""
    from PIL import Image

    torch.manual_seed(number)
    rank = number + 1
    bank = make_bank(torch.randn(9, 2 * rank), torch.arange(9), torch.arange(9), 5, seed=0)
    models = {"M1": (NeuralVAE(configuration(rank).vae, 4, 3, 8), Critic(configuration(rank).critic, 2, rank, 32), bank)}
    write_models(folder / "models", configuration(rank), models, 0.2)
    Image.new("L", (8, 8)).save(folder / "edits.png")
    metrics = {"neural_r2": 0.8, "group_mig": 0.1 * number, "selectivity": 0.5 - 0.1 * number, "realism": 0.5}
    stages = [{"kind": "denoiser", "key": denoiser_stage().key, "seconds": 1.0, "reused": True}]
    images, artifacts = {"edits_M1": folder / "edits.png"}, {"models": folder / "models"}
    curves = {"M1/vae/seed0/loss": [(0, 2.0), (50, 1.0)]}
    return TrialResult(metrics, constraint=-0.1, curves=curves, images=images, artifacts=artifacts, stages=stages)


def denoiser_stage() -> Stage:
    def build(context) -> None:
        torch.manual_seed(7)
        save_denoiser(context.folder, UNet(configuration(1).denoiser, 32, noise_schedule(10)))

    return Stage("denoiser", {}, build)


@pytest.fixture(scope="module")
def study(blank_mlflow: Path, tmp_path_factory) -> Path:
    """The storage folder of a finished study, in its folder and in MLflow."""
    storage = tmp_path_factory.mktemp("study")
    shutil.copyfile(blank_mlflow, storage / "mlflow.db")
    return make_study(storage, tracked=True)


def make_study(storage: Path, tracked: bool) -> Path:
    """A finished study "s" with trials 0 and 1 (selected), and 2 that the gate ended."""
    folder = storage / "s"
    denoiser = ensure(denoiser_stage(), StageStore(storage / "stages"))
    folder.mkdir()
    StudyRecord("s", STUDY_PRESETS["quick"], 3, "digest", "now", True).write(folder)
    memory: dict = {}
    tags = {"migvis.data_digest": "digest", "migvis.seed": "3", "migvis.data.path": "None"}
    writer = Writer(
        default_uri(storage),
        storage / "mlflow-artifacts",
        "s",
        study_id="1",
        seed=3,
        tags=tags,
        params={"vae.group_rank": 3},
        recall=memory.get,
        remember=memory.__setitem__,
    )
    if tracked:
        writer.study_files({}, {"denoiser": denoiser.path})
    rows = []
    for number in range(3):
        own = folder / "trials" / f"{number:03d}"
        own.mkdir(parents=True)
        gated = number == 2
        result = TrialResult({"neural_r2": 0.5}, constraint=0.1, pruned=True) if gated else result_of(own, number)
        state, searched = "PRUNED" if gated else "COMPLETE", {"group_rank": number + 1}
        write_json(own / "result.json", {"params": searched, "result": result.to_json()})
        row = {"number": number, "state": state, "params": searched, "metrics": result.metrics, "constraint": result.constraint}
        rows.append(row)
        if tracked:
            writer.trial_ended(TrialRecord(number, state, searched, result.to_json(), result.constraint, 0, None, 1.0))
    if tracked:
        writer.study_ended("FINISHED", {"final/selectivity": 0.45}, {}, {}, {"migvis.selected_trial": "1"}, 3)
    selected = {"trial": 1, "params": {"group_rank": 2}, "rule": "ideal_corner"}
    stages = [{"kind": "denoiser", "key": denoiser.key}]
    content = {"trials": rows, "selected": selected, "final_metrics": {"selectivity": 0.45}, "stages": stages}
    content["git_revision"] = "abc"
    write_json(folder / "summary.json", {**content, "data": {"path": str(storage / "data.h5"), "digest": "digest"}})
    return storage


@pytest.mark.parametrize("source", ["storage", "tracking"])
def test_a_trial_is_exported_from_either_source(study: Path, tmp_path: Path, source: str, capsys, request) -> None:
    where = ["--storage", str(study)] if source == "storage" else ["--tracking-uri", default_uri(study)]
    if source == "tracking":  # nothing but the server's own files is in reach
        for name in ("s", "stages"):
            shutil.move(study / name, tmp_path / name)
            request.addfinalizer(partial(shutil.move, tmp_path / name, study / name))
    out = tmp_path / "out"
    for options, number in (([], 1), (["--trial", "0"], 0), (["--best", "selectivity"], 0), (["--best", "group_mig"], 1)):
        assert main(["s", *where, *options, "--out", str(out)]) == 0, capsys.readouterr().err
        bundle = load(out)
        assert bundle.encode(torch.zeros(2, 4)).shape == (2, 2 * (number + 1))
        assert bundle.provenance["trial"] == number
        assert bundle.provenance["data_digest"] == "digest"
        assert bundle.provenance["data_source"] == "synthetic"
        assert int(bundle.provenance["parameters"]["group_rank"]) == number + 1
        assert len(bundle.provenance["parameters"]) == 1
        assert bundle.metrics["group_mig"] == pytest.approx(0.1 * number)
        assert not any("seed" in name for name in bundle.metrics)
        assert bundle.metrics.get("final") == ({"selectivity": 0.45} if number == 1 else None)
        assert len(list((out / "grids").glob("*.png"))) == 1
        images = torch.zeros(1, 1, 32, 32)
        assert bundle.edit(images, group=1, target=torch.zeros(1, number + 1)).shape == images.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s", "--trial", "2"], "--trial 2: ended after its VAE"),
        (["s", "--trial", "9"], "--trial 9: not a finished trial of s; it has 0, 1"),
        (["s", "--best", "beauty"], "beauty: no finished trial has that metric"),
        (["nothing"], "nothing"),
        (["../s"], "--study ../s"),
    ],
)
@pytest.mark.parametrize("source", ["storage", "tracking"])
def test_what_cannot_be_exported_is_told_in_one_line(
    study: Path, tmp_path: Path, arguments: list[str], message: str, source: str, capsys
) -> None:
    where = ["--storage", str(study)] if source == "storage" else ["--tracking-uri", default_uri(study)]
    assert main([*arguments, *where, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_study_that_was_moved_is_exported(tmp_path: Path, capsys) -> None:
    (tmp_path / "before").mkdir()
    make_study(tmp_path / "before", tracked=False).rename(tmp_path / "after")
    assert main(["s", "--storage", str(tmp_path / "after"), "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert load(tmp_path / "out").provenance["trial"] == 1
    assert (tmp_path / "out" / "grids" / "edits_M1.png").is_file()


def test_a_damaged_study_is_told_in_one_line(tmp_path: Path, capsys) -> None:
    study = make_study(tmp_path, tracked=False)

    def refusal() -> str:
        assert main(["s", "--storage", str(study), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    shutil.rmtree(study / "s" / "trials" / "001" / "models" / "M1")
    assert "no subject's models" in refusal()
    denoiser = next((study / "stages" / "denoiser").glob("*/denoiser.safetensors"))
    denoiser.write_bytes(b"0" * denoiser.stat().st_size)
    assert "does not match its digest" in refusal()
    summary = json.loads((study / "s" / "summary.json").read_text())
    (study / "s" / "summary.json").write_text(json.dumps({**summary, "selected": None}))
    assert "has not selected a trial yet" in refusal()
    (study / "s" / "summary.json").unlink()
    assert "summary.json: missing" in refusal()
    assert not (tmp_path / "out").exists()


def test_an_unreachable_server_is_told(tmp_path: Path, capsys) -> None:
    assert main(["s", "--tracking-uri", "http://127.0.0.1:9", "--out", str(tmp_path / "out")]) == 2
    assert "cannot be reached" in capsys.readouterr().err
