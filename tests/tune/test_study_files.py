"""What hosts that share no folder hand to each other through the object store: the data set, and what trials leave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from migvis.errors import InputError
from tune.context import StudyContext
from tune.database import sqlite_url
from tune.objects import open_objects
from tune.study_config import load_study_config
from tune.study_files import as_the_driver_has_it, fetch_trial, on_this_host, send_trial, share_data
from tune.trial_result import TrialResult


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyContext:
    """A study whose stages are objects, as its driver has it."""
    monkeypatch.setenv("MIGVIS_CACHE", str(tmp_path / "driver's cache"))
    (tmp_path / "set.h5").write_bytes(b"recordings")
    (tmp_path / "s" / "progress").mkdir(parents=True)
    uri, url = (tmp_path / "bucket").as_uri(), sqlite_url(tmp_path / "studies.db")
    config = load_study_config(None, [], {})
    data = tmp_path / "set.h5"
    return StudyContext(tmp_path, "s", tmp_path / "s", config, data, "digest", True, 0, uri, 1, url, study_id="id")


def move_to_another_host(context: StudyContext, monkeypatch: pytest.MonkeyPatch) -> StudyContext:
    """As a process there gets it: the driver's folders are not there."""
    monkeypatch.setenv("MIGVIS_CACHE", str(context.storage / "another cache"))
    return replace(context, folder=Path("/nowhere/s"), data_path=Path("/nowhere/set.h5"))


def test_a_host_gets_the_data_set_and_its_trials_files_come_back(context: StudyContext, monkeypatch) -> None:
    shared = share_data(context)
    assert shared.data_path.read_bytes() == b"recordings"
    sent = move_to_another_host(shared, monkeypatch)
    here = on_this_host(sent)
    assert here.data_path.read_bytes() == b"recordings"
    assert here.data_path.is_relative_to(context.storage / "another cache")
    assert here.folder.is_relative_to(context.storage / "another cache")
    here.reporter("trial-003").update("trial 3")  # has a place, though nobody looks there
    folder = here.trial_folder(3)
    (folder / "models").mkdir()
    (folder / "models" / "vae.safetensors").write_bytes(b"weights")
    (folder / "edits.png").write_bytes(b"picture")
    (here.folder / "uses").mkdir()
    (here.folder / "uses" / "trial-003.json").write_text("{}")
    result = TrialResult({"x": 1.0}, images={"edits": folder / "edits.png"}, artifacts={"models": folder / "models"})
    told = as_the_driver_has_it(result, here, context)
    (folder / "result.json").write_text(json.dumps({"params": {}, "result": told.to_json()}))
    send_trial(sent, here, 3)

    monkeypatch.setenv("MIGVIS_CACHE", str(context.storage / "driver's cache"))
    assert not told.images["edits"].exists()
    fetch_trial(context, 3)
    assert told.images["edits"].read_bytes() == b"picture"
    assert (told.artifacts["models"] / "vae.safetensors").read_bytes() == b"weights"
    assert (context.folder / "uses" / "trial-003.json").read_text() == "{}"
    assert told.images["edits"] == context.folder / "trials" / "003" / "edits.png"
    fetch_trial(context, 4)  # left nothing


def test_progress_is_seen_at_once_on_the_driver_s_own_host(context: StudyContext) -> None:
    here = on_this_host(share_data(context))
    here.reporter("trial-001").update("trial 1")
    assert (context.folder / "progress" / "trial-001.json").exists()
    assert here.folder != context.folder


def test_a_data_set_that_was_damaged_on_the_way_is_one_line_and_the_next_driver_sends_it_again(context, monkeypatch) -> None:
    shared, objects = share_data(context), open_objects(str(context.stages_root))
    (name,) = [name for name, _ in objects.below(".data") if not name.endswith("manifest.json")]
    objects.write(name, b"recordingz")
    sent = move_to_another_host(shared, monkeypatch)
    with pytest.raises(InputError, match="does not match its digest; start the driver again"):
        on_this_host(sent)
    share_data(context)
    assert on_this_host(sent).data_path.read_bytes() == b"recordings"


def test_where_stages_are_in_a_folder_nothing_is_moved(context: StudyContext) -> None:
    folder = replace(context, stages_root=context.storage / "stages")
    assert share_data(folder) is folder
    assert on_this_host(folder) is folder
    before = sorted(context.storage.rglob("*"))
    send_trial(folder, folder, 0)
    fetch_trial(folder, 0)
    assert sorted(path for path in context.storage.rglob("*") if "trials" not in path.parts) == before


@pytest.mark.parametrize("name", ["../../set.h5", "/etc/passwd"])
def test_what_a_trial_left_cannot_be_written_outside_the_study(context: StudyContext, name: str) -> None:
    from tune.manifest import sealed

    objects, digest = open_objects(str(context.stages_root)), "0" * 64
    objects.write(f".studies/id/trial-001/{digest}", b"evil")
    objects.write(".studies/id/trial-001/manifest.json", sealed({"files": {name: {"sha256": digest, "size": 4}}}).encode())
    fetch_trial(context, 1)
    assert (context.storage / "set.h5").read_bytes() == b"recordings"
    assert not any(path.is_file() for path in (context.folder / "trials").rglob("*"))
