"""What each study and each ablation keeps, whatever else is pruned."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from migvis.errors import InputError
from tests.tune.small_studies import context_of, critic, denoiser, evaluation, main, make_study, name, names, stored, trash, vae
from tune.needs import write_ablation_needs
from tune.pipeline import ensure
from tune.pruning import prune
from tune.runner import Runner
from tune.stage_graph import Stage, StageContext
from tune.store import StageStore
from tune.store_users import mark_user
from tune.study_folder import ABLATIONS, StudyRecord, write_json
from tune.study_lock import locked


def test_a_finished_study_keeps_its_selected_trial_with_all_that_it_was_made_from(tmp_path: Path) -> None:
    context = make_study(tmp_path, "s", range(4), selected=2)
    # A later session met the finished stage and never asked for its inputs: only their manifests name them.
    for path in (context.folder / "uses").iterdir():
        content = json.loads(path.read_text())
        write_json(path, {"uses": content["uses"][-1:]})
    needed = names(denoiser(), vae(2), critic(2), evaluation(2))
    before = stored(tmp_path)
    result = prune(tmp_path)
    assert stored(tmp_path) == needed
    assert {item.name for item in result.stages} == before - needed
    assert sum(item.size for item in result.stages) > 6 * 1000
    assert (result.busy, result.remains, trash(tmp_path)) == ([], [], [])
    assert ensure(evaluation(2), StageStore(tmp_path / "stages")).reused
    assert prune(tmp_path).stages == []


def test_what_two_studies_share_stays_until_neither_needs_it(tmp_path: Path) -> None:
    make_study(tmp_path, "a", range(3), selected=0)
    make_study(tmp_path, "b", range(3), selected=1)
    prune(tmp_path)
    assert stored(tmp_path) == names(denoiser(), *(make(i) for make in (vae, critic, evaluation) for i in (0, 1)))
    shutil.rmtree(tmp_path / "a")
    prune(tmp_path)
    assert stored(tmp_path) == names(denoiser(), vae(1), critic(1), evaluation(1))
    shutil.rmtree(tmp_path / "b")
    prune(tmp_path)
    assert stored(tmp_path) == set()


def test_an_unfinished_study_keeps_all_that_it_used_and_the_checkpoint_of_what_it_was_at(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "stages")
    ensure(vae(8), store)
    context = make_study(tmp_path, "s", range(2), selected=None)
    (context.folder / "summary.json").unlink()  # killed before it wrote one

    def killed(stage_context: StageContext) -> None:
        (stage_context.scratch / "fit.pt").write_text("hours of work")
        raise KeyboardInterrupt

    def interrupted(number: int) -> Stage:
        return Stage("critic", {"number": number}, killed, inputs={"vae": vae(number), "denoiser": denoiser()})

    with pytest.raises(KeyboardInterrupt):
        Runner(context, "", "trial-002")(interrupted(2))
    with pytest.raises(KeyboardInterrupt):
        ensure(interrupted(3), store)  # of no study
    left = [store.scratch("critic", critic(number).key) for number in (2, 3)]
    assert all((path / "fit.pt").exists() for path in left)
    prune(tmp_path)
    assert stored(tmp_path) == names(denoiser(), *(vae(i) for i in (0, 1, 2)), *(critic(i) for i in (0, 1)))
    assert [path.exists() for path in left] == [True, False]


def test_an_ablation_keeps_what_its_cases_are_read_from_and_the_checkpoint_of_what_is_missing(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "stages")
    for number in range(3):
        ensure(evaluation(number), store)
    partial = store.root / ".partial" / evaluation(3).kind / evaluation(3).key
    partial.mkdir(parents=True)
    folder = tmp_path / ABLATIONS / "dose"
    folder.mkdir(parents=True)
    write_ablation_needs(folder, names(evaluation(1), evaluation(3)))
    prune(tmp_path)
    assert stored(tmp_path) == names(denoiser(), vae(1), critic(1), evaluation(1))
    assert partial.exists()
    shutil.rmtree(folder)
    prune(tmp_path)
    assert not stored(tmp_path)


def test_keep_spares_a_finished_study_and_one_without_records_of_its_trial_keeps_all(tmp_path: Path) -> None:
    make_study(tmp_path, "s", range(3), selected=0)
    before = stored(tmp_path)
    assert prune(tmp_path, keep=["s"]).stages == []
    shutil.move(tmp_path / "s" / "uses" / "trial-000.json", tmp_path)
    assert prune(tmp_path).stages == []
    assert stored(tmp_path) == before
    shutil.move(tmp_path / "trial-000.json", tmp_path / "s" / "uses")
    assert len(prune(tmp_path).stages) == 4


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        (lambda folder: (folder / "uses" / "final.json").write_text("{"), "final.json: not a study's record"),
        (lambda folder: (folder / "study.json").write_text("[]"), "study.json"),
        (lambda folder: (folder / "summary.json").unlink(), "summary.json: cannot be read"),
        (lambda folder: (folder / "summary.json").write_text('{"selected": null}'), "summary.json"),
        (lambda folder: (folder / "uses" / "final.json").write_text('{"uses": [{}]}'), "final.json"),
    ],
)
def test_what_a_study_needs_is_never_guessed(tmp_path: Path, capsys, harm, part: str) -> None:
    make_study(tmp_path, "s", range(3), selected=0)
    before = stored(tmp_path)
    harm(tmp_path / "s")
    assert main(["--storage", str(tmp_path), "--yes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 's'}")
    assert part in line
    assert stored(tmp_path) == before


def test_a_study_of_another_storage_that_uses_the_stages_keeps_its_own(tmp_path: Path, capsys) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    make_study(ours, "s", range(1), selected=0)
    context = replace(context_of(theirs, "t"), stages_root=ours / "stages", study_id="1")
    mark_user(ours / "stages", context.folder, context.study_id)
    Runner(context, "", "trial-000")(vae(7))
    with pytest.raises(InputError, match=r"\.studies/1: study .*theirs/t uses these stages and is not there"):
        prune(ours)
    StudyRecord("t", context.config, 0, "digest", "now").write(context.folder)
    with locked(context.folder):
        assert main(["--storage", str(ours), "--yes"]) == 2
        assert f"--storage {theirs}: study t is running: process {os.getpid()}" in capsys.readouterr().err
    prune(ours)
    assert name(vae(7)) in stored(ours)
    shutil.rmtree(theirs)
    (ours / "stages" / ".studies" / "1").unlink()
    prune(ours)
    assert name(vae(7)) not in stored(ours)
    mark_user(ours / "stages", ours / "s", "2")
    assert not (ours / "stages" / ".studies" / "2").exists()
