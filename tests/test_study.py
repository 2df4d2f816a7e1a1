"""The default study, whole, as a user runs it: `python tune/run.py`, then an export and an edit with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import migvis
from migvis.data import load_dataset

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage folder of one finished default study; its output and its time are printed."""
    folder = tmp_path_factory.mktemp("storage")
    begin = time.monotonic()
    done = run("tune/run.py", "--storage", str(folder), "--study", "default")
    print(done.stdout[-4000:], done.stderr[-4000:])
    print(f"default study: {time.monotonic() - begin:.0f} s")
    assert done.returncode == 0
    return folder


@pytest.fixture(scope="module")
def summary(storage: Path) -> dict[str, object]:
    return json.loads((storage / "default" / "summary.json").read_text())


def test_all_trials_are_finished_and_the_denoiser_is_fitted_once(summary: dict) -> None:
    assert [trial["number"] for trial in summary["trials"]] == list(range(18))
    assert all(trial["state"] in ("COMPLETE", "PRUNED") for trial in summary["trials"])
    assert [stage["fitted"] for stage in summary["stages"] if stage["kind"] == "denoiser"] == [1]
    assert len({trial["mlflow_run_id"] for trial in summary["trials"]}) == 18
    complete = [trial["metrics"] for trial in summary["trials"] if trial["state"] == "COMPLETE"]
    for metrics in complete:
        assert 0 <= metrics["realism"] <= 1
        assert -2 <= metrics["selectivity"] <= 1
        assert metrics["instrument/object_accuracy"] >= 0.6
    assert summary["selected"]["trial"] in range(18)


def test_edits_of_each_group_move_its_own_attribute_most(summary: dict) -> None:
    """On 32 test pairs, mean of two fits: group 1 the pose, group 2 the category."""
    final = summary["final_metrics"]
    print({name: round(value, 3) for name, value in final.items() if name.startswith(("move_", "selectivity", "realism"))})
    assert final["move_pose_group1"] > final["move_category_group1"]
    assert final["move_category_group2"] > final["move_pose_group2"] + 0.1


def test_inversion_without_guidance_returns_the_stimulus(storage: Path) -> None:
    errors = [json.loads(path.read_text())["inversion_mse_0.9T"] for path in storage.glob("stages/trajectory/*/trajectory.json")]
    print("inversion MSE at 0.9 T:", errors)
    assert len(errors) == 2, "validation and test"
    assert max(errors) <= 1e-3


def test_the_exported_bundle_encodes_and_edits(storage: Path, summary: dict) -> None:
    bundle = migvis.load(Path(summary["export"]))
    dataset = load_dataset(next((storage / "data").glob("*.h5")))
    rows = np.array(dataset.split["test"][:8])
    latents = bundle.encode(dataset.subjects["M1"].response[rows])
    images = dataset.images(rows)
    rank = bundle.configuration.vae.group_rank
    edited = bundle.edit(images, group=2, target=latents[[*range(1, 8), 0], rank : 2 * rank], latents=latents)
    assert edited.shape == images.shape
    assert float(edited.abs().max()) <= 1
    assert float((edited - images).square().mean()) > 5e-3, "edits change pictures, more than the return misses them"
    many = np.array(dataset.split["test"][:32])  # the error differs 30-fold between stimuli, so three would not do
    images, latents = dataset.images(many), bundle.encode(dataset.subjects["M1"].response[many])
    still = bundle.edit(images, group=1, shift=1.0, latents=latents, guidance_scale=0.0, edit_step=0.5)
    assert float((still - images).square().mean()) < 1e-3
    assert torch.isfinite(edited).all()


def test_any_trial_is_exported_from_storage(storage: Path, summary: dict, tmp_path: Path) -> None:
    number = next(trial["number"] for trial in summary["trials"] if trial["state"] == "COMPLETE")
    done = run(
        "scripts/export.py", "default", "--storage", str(storage), "--trial", str(number), "--out", str(tmp_path / "bundle")
    )
    assert done.returncode == 0, done.stderr
    assert migvis.load(tmp_path / "bundle").subjects


def test_a_finished_study_is_not_begun_again(storage: Path) -> None:
    done = run("tune/run.py", "--storage", str(storage), "--study", "default")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")


def test_the_plan_of_a_second_study_reuses_all_of_the_first(storage: Path) -> None:
    done = run("tune/run.py", "--storage", str(storage), "--study", "again", "--dry-run")
    assert done.returncode == 0, done.stderr
    study = done.stdout.split("trial 0")[0]
    assert "missing" not in study


def test_a_prune_keeps_what_the_selected_trial_needs(storage: Path, summary: dict, tmp_path: Path) -> None:
    done = run("scripts/prune.py", "--storage", str(storage), "--yes")
    assert done.returncode == 0, done.stderr
    kept = {(path.parent.name, path.name) for path in storage.glob("stages/[a-z]*/*")}
    uses = [json.loads((storage / "default" / "uses" / f"{name}.json").read_text())["uses"] for name in ("prepare", "final")]
    assert {(use["kind"], use["key"]) for one in uses for use in one} <= kept
    assert len(kept) < len(summary["stages"])
    done = run("scripts/export.py", "default", "--storage", str(storage), "--out", str(tmp_path / "bundle"))
    assert done.returncode == 0, done.stderr
