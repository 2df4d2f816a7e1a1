"""`python tune/ablate.py`: real fits of tiny models, the report, the tracking, resumption, and bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tune.ablate import main
from tune.pruning import survey

ROOT = Path(__file__).parents[3]
TABLES = ("values_M1", "differences_M1")


def run(storage: Path, tiny: Path, *arguments: str) -> int:
    return main(["--storage", str(storage), "--config", str(tiny), *arguments])


def fails(capsys, storage: Path, tiny: Path, *arguments: str) -> str:
    """The one line of a command that must exit 2."""
    assert run(storage, tiny, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def summary(storage: Path, name: str) -> dict:
    return json.loads((storage / "ablations" / name / "summary.json").read_text())


def test_a_user_s_own_ablation_is_fitted_once_reported_and_tracked(local_ray, storage, tiny, own_study, capsys) -> None:
    assert run(storage, tiny, str(own_study), "--seeds", "2", "--dry-run") == 0
    planned = capsys.readouterr().out
    assert "4 runs: 2 cases × M1 × 2 seeds" in planned
    assert "without KL: vae.kl_weight 0.0" in planned
    assert not (storage / "stages").exists()

    assert run(storage, tiny, str(own_study), "--seeds", "2") == 0
    said = capsys.readouterr().out
    assert "without KL, M1, seed 1: built in" in said
    (charts,) = [line.split()[1] for line in said.splitlines() if line.startswith("charts:")]
    folder = storage / "ablations" / "mine"
    first = summary(storage, "mine")
    assert [(cell["case"], cell["seed"]) for cell in first["runs"]] == [
        ("full", 0),
        ("without KL", 0),
        ("full", 1),
        ("without KL", 1),
    ]
    assert first["built_seconds"] > 0
    pruned = survey(storage)
    assert pruned.kept
    assert not pruned.unneeded, "all of the store was built for the ablation, which needs it"
    page = (folder / "report.html").read_text()
    for words in ("Is the KL term needed?", "without KL", "data:image/png;base64,", "difference to full", "vae.kl_weight = 0.0"):
        assert words in page
    assert "http" not in page.replace("http-equiv", ""), "the page needs nothing from elsewhere"
    tables = {path.stem: path.read_text() for path in (folder / "tables").iterdir()}
    assert sorted(tables) == sorted(TABLES)

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("migvis mine").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`migvis.kind` = 'study'")
    cells = client.search_runs([experiment], "tags.`migvis.kind` = 'case'")
    assert parent.info.run_name == "report of mine"
    assert {run.info.run_name for run in cells} == {
        f"{case} · M1 · seed {seed}" for case in ("full", "without KL") for seed in (0, 1)
    }
    place, _, view = urlsplit(charts).fragment.partition("?")
    assert place == f"/experiments/{experiment}/runs"
    (shown,) = parse_qs(view)["searchFilter"]
    assert {run.info.run_id for run in client.search_runs([experiment], shown)} == {run.info.run_id for run in cells}
    without = next(run for run in cells if run.info.run_name == "without KL · M1 · seed 1")
    assert without.data.params == {"vae.kl_weight": "0.0", "case": "without KL", "subject": "M1", "seed": "1"}
    assert float(next(run for run in cells if run.info.run_name.startswith("full")).data.params["vae.kl_weight"]) > 0
    assert without.data.metrics["table/neural_r2"] == pytest.approx(first["runs"][3]["metrics"]["neural_r2"])
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {"report", "tables", "images"}

    # Again: nothing is built, nothing is tracked twice, the figures are the same.
    assert run(storage, tiny, str(own_study), "--seeds", "2") == 0
    assert "built in" not in capsys.readouterr().out
    assert summary(storage, "mine")["runs"] == first["runs"]
    assert {path.stem: path.read_text() for path in (folder / "tables").iterdir()} == tables
    assert len(client.search_runs([experiment])) == 5
    # A third seed costs that seed alone.
    stages = {path for path in (storage / "stages" / "vae").iterdir()}
    assert run(storage, tiny, str(own_study), "--seeds", "3") == 0
    assert len({path for path in (storage / "stages" / "vae").iterdir()} - stages) == 2
    assert summary(storage, "mine")["runs"][:4] == first["runs"]

    # A figure that was altered, and a VAE that was cut off, are noticed: both are moved aside and built again.
    third = summary(storage, "mine")["runs"]
    figures = next((storage / "stages" / "representation").iterdir()) / "metrics.json"
    figures.write_text(json.dumps({**json.loads(figures.read_text()), "mig": 0.99}))
    weights = next((storage / "stages" / "vae").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    assert run(storage, tiny, str(own_study), "--seeds", "3") == 0
    assert "built in" in capsys.readouterr().out
    assert len(list((storage / "stages" / ".damaged").iterdir())) == 2
    assert summary(storage, "mine")["runs"] == third


@pytest.mark.slow
def test_every_method_and_figure_is_run_whole_and_resumed(local_ray, storage, tiny, tmp_path, capsys) -> None:
    """Rivals, galleries, dimensions and transfer over real, tiny fits; killed half-way, the same command goes on."""
    names = ["figure5", "figure4", "figure6", "transfer"]
    assert run(storage, tiny, *names, "--seeds", "1") == 0
    for name in names:
        folder = storage / "ablations" / name
        assert len(summary(storage, name)["runs"]) >= 1
        assert summary(storage, name)["failed"] == {}
        assert "data:image/png;base64," in (folder / "report.html").read_text()
        assert list((folder / "figures").rglob("*.png"))
    before = {name: summary(storage, name)["runs"] for name in names}
    # The edits of one method are gone, as if it had been killed before them: they alone are made again, and alike.
    synthesis = [path for path in (storage / "stages" / "synthesis").iterdir()]
    for path in synthesis[:5]:
        shutil.rmtree(path)
    for path in (storage / "stages" / "evaluation").iterdir():
        if json.loads((path / "manifest.json").read_text())["inputs"]["synthesis"] in {gone.name for gone in synthesis[:5]}:
            shutil.rmtree(path)
    kept = {path.name for kind in ("vae", "critic", "denoiser") for path in (storage / "stages" / kind).iterdir()}
    capsys.readouterr()
    assert run(storage, tiny, *names, "--seeds", "1") == 0
    assert "built in" in capsys.readouterr().out
    assert {name: summary(storage, name)["runs"] for name in names} == before
    assert {path.name for kind in ("vae", "critic", "denoiser") for path in (storage / "stages" / kind).iterdir()} == kept


@pytest.mark.slow
def test_an_interrupted_ablation_goes_on_and_ends_like_an_undisturbed_one(storage, tiny, own_study, tmp_path) -> None:
    def command(where: Path) -> list[str]:
        words = ["--storage", str(where), "--config", str(tiny), "--seeds", "2", str(own_study)]
        return [sys.executable, str(ROOT / "tune" / "ablate.py"), *words]

    process = subprocess.Popen(command(storage), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "built in" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; the same command goes on"
    assert not (storage / "ablations" / "mine" / "summary.json").exists()
    vaes = {path.name for path in (storage / "stages" / "vae").iterdir()}
    undisturbed = tmp_path / "undisturbed"
    for where in (storage, undisturbed):
        subprocess.run(command(where), check=True, capture_output=True, timeout=600)
    assert {path.name for path in (storage / "stages" / "vae").iterdir()} == vaes, "VAEs were fitted before it was interrupted"
    assert summary(storage, "mine")["runs"] == summary(undisturbed, "mine")["runs"]


def test_a_fit_that_diverges_is_told_and_the_rest_is_reported(local_ray, storage, tiny, tmp_path, capsys) -> None:
    study = tmp_path / "wild.py"
    study.write_text(
        "from tune.ablation.algebra import FULL, case\n"
        "from tune.ablation.study import Column, Study, representation\n"
        "wild = Study('wild', 'Too fast?', (FULL, *case('wild', {'vae.learning_rate': 1e30})), representation,\n"
        "             (Column('neural_r2', 'R2'),))\n"
    )
    assert run(storage, tiny, str(study), "--seeds", "1") == 1
    assert "wild, M1, seed 0 FAILED" in capsys.readouterr().out
    assert [cell["case"] for cell in summary(storage, "wild")["runs"]] == ["full"]
    assert "Not everything could be fitted" in (storage / "ablations" / "wild" / "report.html").read_text()


def test_an_ablation_that_another_driver_took_over_writes_no_report(local_ray, storage, tiny, tmp_path, capsys) -> None:
    taken = tmp_path / "taken.py"
    taken.write_text(
        """
from tune.ablation.algebra import FULL
from tune.ablation.study import Column, Study, representation
from tune.folder_leases import FolderLease
from tune.leases import Holder

def take(outcome, folder):
    place = FolderLease(outcome.context.folder / "driver")
    assert place.claim(place.look().generation + 1, "0", Holder.this_process())
    return {}

taken = Study("taken", "Whose is it?", (FULL,), representation, (Column("neural_r2", "R²"),), figures=(take,))
"""
    )
    assert run(storage, tiny, str(taken), "--seeds", "1") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: study taken: taken over by process ")
    assert not (storage / "ablations" / "taken" / "report.html").exists()


def test_bad_input_is_one_line_and_nothing_is_written(storage, tiny, own_study, tmp_path, capsys) -> None:
    assert "table9: no such ablation; known: table1" in fails(capsys, storage, tiny, "table9")
    assert "name an ablation" in fails(capsys, storage, tiny)
    assert "--seeds: expected 1" in fails(capsys, storage, tiny, "table1", "--seeds", "0")
    assert "--subjects" in fails(capsys, storage, tiny, "table1", "--subjects", "M7")
    missing = tmp_path / "none.py"
    assert f"{missing}: no such file" in fails(capsys, storage, tiny, str(missing))
    missing.write_text("x = 1 / 0")
    assert f"{missing}: ZeroDivisionError" in fails(capsys, storage, tiny, str(missing))
    missing.write_text("x = 1")
    assert "defines no" in fails(capsys, storage, tiny, str(missing))
    missing.write_text(own_study.read_text().replace("vae.kl_weight", "vae.kl"))
    assert "case 'without KL': no field 'vae.kl'" in fails(capsys, storage, tiny, str(missing))
    missing.write_text(own_study.read_text().replace('"mine"', '"table1"'))
    assert "table1 is the name of an ablation that comes with migvis" in fails(capsys, storage, tiny, str(missing))
    assert fails(capsys, storage, tiny, "table1", "figure10").startswith("error: figure10: critic.infonce_batch: at most")
    assert not (storage / "ablations").exists()


def test_the_list_names_every_ablation(capsys) -> None:
    assert main(["--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"table1", "table2", "table3", "table4", "figure1", "figure5", "components", "dose", "stability"} <= set(names)
