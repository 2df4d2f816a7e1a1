"""Pruning an object store: what studies need stays, all else goes, and nothing goes that somebody unknown may need."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from tune.context import StudyContext
from tune.database import sqlite_url
from tune.database_leases import leases_of
from tune.leases import acquire
from tune.manifest import MANIFEST
from tune.needs import write_ablation_needs
from tune.object_store import ObjectStore
from tune.objects import open_objects
from tune.optuna_database import open_database
from tune.pipeline import ensure
from tune.runner import Runner
from tune.stage_graph import Stage, StageContext
from tune.store_lock import in_use
from tune.study_config import load_study_config
from tune.study_files import send_trial, share_data
from tune.study_folder import StudyRecord, write_json

main = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "prune.py"))["main"]


def write(context: StageContext) -> None:
    (context.folder / "value").write_bytes(context.stage.key.encode() * 40)


def vae(number: int) -> Stage:
    return Stage("vae", {"number": number}, write)


def critic(number: int) -> Stage:
    return Stage("critic", {"number": number}, write, inputs={"vae": vae(number)})


def make_study(storage: Path, study: str, *, finished: bool) -> StudyContext:
    """A study of two trials, of which the first one is selected."""
    (storage / "set.h5").write_bytes(b"recordings")
    context = StudyContext(
        storage,
        study,
        storage / study,
        load_study_config(None, [], {}),
        storage / "set.h5",
        f"digest{study}",
        True,
        0,
        (storage / "bucket").as_uri(),
        1,
        sqlite_url(storage / "studies.db"),
        study_id=f"id{study}",
    )
    (storage / study).mkdir()
    open_database(context.database).create_new_study([], study)
    share_data(context)
    for number in (0, 1):
        Runner(context, "", f"trial-{number:03d}")(critic(number))
        (context.trial_folder(number) / "edits.png").write_bytes(b"picture")
        send_trial(context, context, number)
    Runner(context, "", "prepare")
    for name in ("prepare", "final"):
        write_json(context.folder / "uses" / f"{name}.json", {"uses": []})
    record = StudyRecord(study, context.config, 0, context.data_digest, "now", finished, f"id{study}")
    record.write(context.folder)
    write_json(context.folder / "summary.json", {"stages": [], "selected": {"trial": 0}})
    return context


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIGVIS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def names(context: StudyContext) -> set[str]:
    """All stages of the store, each whole, and all that lies beside them."""
    store = context.store()
    assert all(store.read(*stage) is not None for stage in store.stages())
    found = {name.rpartition("/")[0] for name, _ in open_objects(str(context.stages_root)).below("")}
    return {name for name in found if not name.startswith(".put")}


def place(stage: Stage) -> str:
    return f"{stage.kind}/{stage.key}"


def prune(storage: Path, *options: str) -> int:
    return main(["--storage", str(storage), "--stages", (storage / "bucket").as_uri(), *options])


def test_a_finished_study_keeps_its_selected_trial_and_an_unfinished_one_all(storage: Path, capsys) -> None:
    finished = make_study(storage, "f", finished=True)
    (storage / "ablations" / "components").mkdir(parents=True)
    write_ablation_needs(storage / "ablations" / "components", [("vae", "6" * 24)])  # of a store of its own
    objects = open_objects(str(finished.stages_root))
    objects.write(f"vae/{'1' * 24}/{'2' * 64}", b"of a writer that was killed")
    objects.write(f".damaged/vae-{'3' * 24}-12ab/{MANIFEST}", b"{}")
    objects.write(f".partial/vae-{'4' * 24}/{MANIFEST}", b"{}")
    before = names(finished)
    assert prune(storage) == 0
    assert "2 stages" in capsys.readouterr().out
    assert names(finished) == before
    assert len(leases_of(finished.database, str(finished.stages_root))) == 4
    assert prune(storage, "--yes") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("deleted 2 stages")
    assert names(finished) == {place(vae(0)), place(critic(0)), ".data/digestf", ".studies/idf"}
    assert leases_of(finished.database, str(finished.stages_root)) == []
    unfinished = make_study(storage, "u", finished=False)
    before = names(unfinished)
    assert prune(storage, "--yes") == 0
    assert names(unfinished) == before
    assert ensure(critic(1), unfinished.store()).reused


def test_nothing_is_deleted_that_a_study_of_another_folder_may_need(storage: Path, tmp_path: Path, capsys) -> None:
    context = make_study(storage, "f", finished=True)
    before = names(context)
    open_database(context.database).create_new_study([], "stranger")
    assert prune(storage, "--yes") == 2
    assert "has the study stranger" in capsys.readouterr().err
    storages = open_database(context.database)
    storages.delete_study(storages.get_study_id_from_name("stranger"))
    share_data(replace(context, study_id="other", study="other"))
    assert prune(storage, "--yes") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ".studies/other: of a study that" in line
    assert before <= names(context)


def test_nothing_is_deleted_while_the_store_is_in_use_or_a_stage_is_built(storage: Path, capsys) -> None:
    context = make_study(storage, "f", finished=True)
    store, before = context.store(), names(context)
    assert isinstance(store, ObjectStore)
    with in_use(store):
        assert prune(storage, "--yes") == 2
        assert "in use by a study that runs" in capsys.readouterr().err
    with acquire(store.lease("vae", "5" * 24), heartbeat=0.05):
        assert prune(storage, "--yes") == 2
        assert "is being built by process" in capsys.readouterr().err
    assert names(context) == before
    assert json.loads((context.folder / "summary.json").read_text())["selected"]["trial"] == 0
