"""What hosts that share no folder hand to each other through the object store: the data set, and what trials leave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from migvis.errors import InputError
from tune.context import StudyContext
from tune.database import sqlite_url
from tune.objects import FolderObjects, ObjectsAway, open_objects
from tune.study_config import load_study_config
from tune.study_files import as_the_driver_has_it, fetch_trial, on_this_host, send_trial, share_data
from tune.trial_process import stored_result
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


def leave_trial(context: StudyContext, monkeypatch: pytest.MonkeyPatch, number: int) -> dict[str, bytes]:
    """Has a trial end on another host; what it left, by its place in the study's folder, the result first as it is listed."""
    sent = move_to_another_host(context, monkeypatch)
    here = on_this_host(sent)
    folder, uses = here.trial_folder(number), here.folder / "uses"
    (folder / "edits.png").write_bytes(b"picture")
    (folder / "result.json").write_text(json.dumps({"params": {}, "result": TrialResult({"x": 1.0}).to_json()}))
    uses.mkdir(exist_ok=True)
    (uses / f"trial-{number:03d}.json").write_text('{"uses": []}')
    send_trial(sent, here, number)
    monkeypatch.setenv("MIGVIS_CACHE", str(context.storage / "driver's cache"))
    paths = [folder / "result.json", folder / "edits.png", uses / f"trial-{number:03d}.json"]
    return {path.relative_to(here.folder).as_posix(): path.read_bytes() for path in paths}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("arrived", [0, 1, 2])
def test_a_fetch_that_is_cut_off_leaves_no_result_and_is_made_good_by_the_next(context, monkeypatch, arrived) -> None:
    left, download, count = leave_trial(share_data(context), monkeypatch, 3), FolderObjects.download, 0

    def away_after_some(objects: FolderObjects, name: str, path: Path) -> bool:
        nonlocal count
        count += 1
        if count > arrived:
            raise ObjectsAway("does not answer")
        return download(objects, name, path)

    with monkeypatch.context() as patch:
        patch.setattr(FolderObjects, "download", away_after_some)
        with pytest.raises(InputError, match="does not answer"):
            fetch_trial(context, 3)
    assert stored_result(context.folder, 3, {}) is None
    fetch_trial(context, 3)
    assert files_of(context.folder) == left
    assert stored_result(context.folder, 3, {}) == TrialResult({"x": 1.0})
    assert not list(context.folder.glob(".fetching-*"))


def test_the_result_comes_last_so_a_kill_before_it_is_seen_as_one(context, monkeypatch) -> None:
    left, replaced = leave_trial(share_data(context), monkeypatch, 3), Path.replace

    def killed_at_the_result(path: Path, target: Path) -> Path:
        if path.name == "result.json":
            raise KeyboardInterrupt
        return replaced(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed_at_the_result)
        with pytest.raises(KeyboardInterrupt):
            fetch_trial(context, 3)
    assert sorted(files_of(context.folder)) == sorted(set(left) - {"trials/003/result.json"})


@pytest.mark.parametrize("file", ["trials/003/edits.png", "trials/003/result.json", "uses/trial-003.json"])
@pytest.mark.parametrize("size", [None, 3])
def test_a_trial_of_which_only_a_part_is_here_is_fetched_again(context, monkeypatch, file, size) -> None:
    left = leave_trial(share_data(context), monkeypatch, 3)
    fetch_trial(context, 3)
    if size is None:
        (context.folder / file).unlink()
    else:
        (context.folder / file).write_bytes(left[file][:size])
    fetch_trial(context, 3)
    assert files_of(context.folder) == left


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
