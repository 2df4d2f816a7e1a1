"""Pruning: what goes, and that nothing in use goes or is left half deleted."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from migvis.errors import InputError
from tests.tune.small_studies import critic, denoiser, evaluation, main, make_study, name, names, stored, trash, vae
from tune import pruning
from tune.leases import acquire
from tune.pipeline import ensure
from tune.pruning import check_nothing_is_built, prune, survey
from tune.stage_graph import Stage, StageContext
from tune.store import StageStore
from tune.store_lock import alone, in_use
from tune.study_lock import locked

FORK = multiprocessing.get_context("fork")


def test_leftovers_without_a_live_lease_go(tmp_path: Path) -> None:
    make_study(tmp_path, "s", range(2), selected=1)
    store = StageStore(tmp_path / "stages")
    for place in (".damaged", ".writing", ".trash-"):
        folder = store.root / (f"{place}1" if place == ".trash-" else f"{place}/vae-{'0' * 24}-12ab")
        folder.mkdir(parents=True)
        (folder / "value").write_text("half")
    found = survey(tmp_path)
    assert (len(found.leftovers), len(found.trash)) == (2, 1)
    assert len(found.leases) == len(list((store.root / ".leases").iterdir())) == 6
    prune(tmp_path)
    for place in (".damaged", ".writing", ".partial", ".leases"):
        folder = store.root / place
        assert not folder.exists() or list(folder.iterdir()) == [], place
    assert trash(tmp_path) == []
    assert not ensure(vae(0), store).reused  # its lease is made anew
    found = survey(tmp_path)
    assert [item.name for item in found.unneeded] == [name(vae(0))]
    assert (found.leftovers, found.trash) == ([], [])


def build_for_ever(root: Path, ready) -> None:
    def build(context: StageContext) -> None:
        (context.scratch / "fit.pt").write_text("half")
        (context.folder / "value").write_text("half")
        ready.set()
        time.sleep(60)

    ensure(Stage("critic", {"number": 7}, build, inputs={"vae": vae(7)}), StageStore(root), heartbeat=0.05)


def test_nothing_is_deleted_while_a_stage_is_built_and_all_is_after_its_builder_died(tmp_path: Path, capsys) -> None:
    make_study(tmp_path, "s", range(2), selected=0)
    ready = FORK.Event()
    builder = FORK.Process(target=build_for_ever, args=(tmp_path / "stages", ready), daemon=True)
    builder.start()
    assert ready.wait(20)
    store, before = StageStore(tmp_path / "stages"), stored(tmp_path)
    assert name(vae(7)) in before
    with pytest.raises(InputError, match=f"is being built by process {builder.pid} on"):
        prune(tmp_path, patience=0.5)
    assert stored(tmp_path) == before
    assert main(["--storage", str(tmp_path)]) == 0
    assert f"being built by process {builder.pid}" in capsys.readouterr().out
    # As on a host that began to build after that was checked: what it writes stays.
    found = survey(tmp_path)
    (ours,) = [path for _, path in store.entries(".writing")]
    assert ours not in [path for _, path in found.leftovers]
    building = next(iter(found.building))
    late = pruning.Survey([], [], [pruning.Item(building, 0, 0.0)], [(building, ours)], [], [], {})
    result, moved = pruning._take_out(store, late)
    assert (result.stages, result.busy, moved) == ([], [building], [])
    assert ours.exists()
    assert stored(tmp_path) == before

    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert main(["--storage", str(tmp_path), "--yes"]) == 0
    assert stored(tmp_path) == names(denoiser(), vae(0), critic(0), evaluation(0))
    for place in (".writing", ".partial", ".leases"):
        assert list((store.root / place).iterdir()) == [], place


def test_a_builder_of_another_host_is_watched_before_it_is_believed_dead(tmp_path: Path, monkeypatch) -> None:
    store = StageStore(tmp_path / "stages")
    with acquire(store.lease("vae", "a" * 24), heartbeat=0.05):
        silent = acquire(store.lease("vae", "b" * 24), heartbeat=1000)
        monkeypatch.setattr("tune.leases._process_namespace", lambda: "another host")
        with pytest.raises(InputError, match=f"vae {'a' * 24} is being built"):
            check_nothing_is_built(store, patience=0.5)
    assert silent is not None
    assert silent.lost
    check_nothing_is_built(store, patience=0.5)


def test_a_stage_is_not_deleted_under_one_who_found_it(tmp_path: Path, capsys) -> None:
    make_study(tmp_path, "s", range(2), selected=0)
    store, before = StageStore(tmp_path / "stages"), stored(tmp_path)
    with in_use(store):
        assert main(["--storage", str(tmp_path), "--yes"]) == 2
        assert "in use by a study that runs" in capsys.readouterr().err
        with locked(tmp_path / "s"):
            assert main(["--storage", str(tmp_path), "--yes"]) == 2
            running = f"study s is running: process {os.getpid()} on "
            assert capsys.readouterr().err.startswith(f"error: --storage {tmp_path}: {running}")
            assert main(["--storage", str(tmp_path)]) == 0
            assert re.search(r"study s is running \(process .*\): delete when it has ended", capsys.readouterr().out)
    with locked(tmp_path / "s"):  # as on a host that the store's own lock does not reach
        assert main(["--storage", str(tmp_path), "--yes"]) == 2
        assert running in capsys.readouterr().err
    assert stored(tmp_path) == before
    order = []

    def begin() -> None:
        with in_use(store):
            order.append("study")

    driver = threading.Thread(target=begin)
    with alone(store):
        driver.start()
        driver.join(0.3)
        order.append("prune")
    driver.join(20)
    assert order == ["prune", "study"]
    assert "waiting" in capsys.readouterr().err


def prune_at_last(storage: Path, queue) -> None:
    while True:
        try:
            queue.put([item.name for item in prune(storage).stages])
            return
        except InputError:  # another one does it
            time.sleep(0.001)


def test_of_prunes_at_once_each_stage_is_deleted_by_one(tmp_path: Path) -> None:
    make_study(tmp_path, "s", range(20), selected=5)
    unneeded = stored(tmp_path) - names(denoiser(), vae(5), critic(5), evaluation(5))
    queue = FORK.Queue()
    prunes = [FORK.Process(target=prune_at_last, args=(tmp_path, queue), daemon=True) for _ in range(4)]
    for process in prunes:
        process.start()
    deleted = [one for _ in prunes for one in queue.get(timeout=60)]
    for process in prunes:
        process.join()
    assert sorted(deleted) == sorted(unneeded)
    assert stored(tmp_path) == names(denoiser(), vae(5), critic(5), evaluation(5))
    assert trash(tmp_path) == []


@pytest.mark.parametrize("function", ["_move", "rmtree"])
def test_a_prune_that_is_killed_leaves_each_stage_whole_or_gone(tmp_path: Path, function: str) -> None:
    make_study(tmp_path, "s", range(6), selected=0)
    before = stored(tmp_path)

    def killed() -> None:
        owner = pruning if function == "_move" else shutil
        real, calls = getattr(owner, function), []

        def third(path: Path, *arguments, **options):
            calls.append(path)
            if len(calls) == 3:
                if function == "rmtree":
                    (path / "manifest.json").unlink(missing_ok=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path, *arguments, **options)

        setattr(owner, function, third)
        prune(tmp_path)

    process = FORK.Process(target=killed)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    between = stored(tmp_path)
    assert names(denoiser(), vae(0), critic(0), evaluation(0)) <= between < before
    assert trash(tmp_path)
    prune(tmp_path)
    assert stored(tmp_path) == names(denoiser(), vae(0), critic(0), evaluation(0))
    assert trash(tmp_path) == []


def test_a_full_disk_is_freed(tmp_path: Path, monkeypatch) -> None:
    make_study(tmp_path, "s", range(2), selected=0)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tune.folder_leases.FolderLease.claim", full)
    monkeypatch.setattr(os, "mkdir", full)
    assert {item.name for item in prune(tmp_path).stages} == names(vae(1), critic(1))


def test_the_command_shows_first_and_deletes_when_told(tmp_path: Path, capsys) -> None:
    make_study(tmp_path, "s", range(3), selected=0)
    store = StageStore(tmp_path / "stages")
    sizes = [pruning.size_of(store.path(*name(make(i)))) for make in (vae, critic) for i in (1, 2)]
    before = stored(tmp_path)
    assert main(["--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert stored(tmp_path) == before
    assert "nothing is deleted without --yes" in shown
    assert "study s: finished; selected trial 0" in shown
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.startswith("  ")}
    assert [lines[kind][1] for kind in ("vae", "critic")] == ["2", "2"]
    assert lines["in"][2:6] == ["4", "stages", f"{sum(sizes) / 1e6:.1f}", "MB"]
    assert main(["--storage", str(tmp_path), "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"deleted 4 stages, {sum(sizes) / 1e6:.1f} MB"
    assert len(stored(tmp_path)) == 4


def test_seconds_to_fit_again_are_those_of_the_manifests(tmp_path: Path) -> None:
    make_study(tmp_path, "s", range(3), selected=0)
    store, found = StageStore(tmp_path / "stages"), survey(tmp_path)
    for item in [*found.kept, *found.unneeded]:
        manifest = store.peek(*item.name)
        assert manifest is not None
        assert item.seconds == manifest.seconds > 0
        assert item.size == sum(path.stat().st_size for path in store.path(*item.name).iterdir())


def test_a_storage_that_is_none_is_one_line_and_nothing_is_made(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    for storage in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        for options in ([], ["--yes"]):
            assert main(["--storage", str(storage), *options]) == 2
            assert capsys.readouterr().err == f"error: --storage {storage}: holds no stages\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    make_study(tmp_path, "s", range(1), selected=0)
    assert main(["--storage", str(tmp_path), "--keep", "t"]) == 2
    assert capsys.readouterr().err == f"error: --keep t: there is no such study in {tmp_path}\n"
