"""Two real studies over the same data, without Ray: the second fits nothing, and both live on after a prune."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from migvis.bundle import load
from tests.tune.tiny_studies import TINY, prepared
from tune.context import StudyContext
from tune.final import finish
from tune.plan import plan
from tune.pruning import prune
from tune.selection import Selected
from tune.space import SearchSpace, apply
from tune.store import StageStore
from tune.study_config import load_study_config
from tune.study_data import open_data
from tune.study_folder import StudyRecord, write_json
from tune.summary import git_revision
from tune.trial import run_trial
from tune.trial_result import TrialResult

pytestmark = pytest.mark.slow
export = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "export.py"))["main"]
OTHER = {"guidance_scale": 7.0}


def study(storage: Path, name: str) -> StudyContext:
    config = load_study_config(None, TINY)
    data = open_data(config, storage)
    return StudyContext(
        storage, name, storage / name, config, data.path, data.digest, data.rendered, 0, storage / "stages", workers=1
    )


def space_of(context: StudyContext) -> SearchSpace:
    return SearchSpace.of(context.config, 60)


def run_whole_trial(context: StudyContext, other: dict[str, float], number: int = 0) -> TrialResult:
    params = {**space_of(context).start(context.config.configuration), **other}
    return run_trial(context, apply(context.config.configuration, params), params, number)


def used(context: StudyContext, name: str) -> set[tuple[str, str]]:
    records = json.loads((context.folder / "uses" / f"{name}.json").read_text())["uses"]
    return {(use["kind"], use["key"]) for use in records}


def run_whole(context: StudyContext) -> list[dict[str, Any]]:
    """What a driver does: shared stages, trials 0 and 1, the final stage of trial 0, and the records of it all."""
    start = space_of(context).start(context.config.configuration)
    stages, rows = list(prepared(context).stages), []
    for number, other in enumerate(({}, OTHER)):
        params, result = {**start, **other}, run_whole_trial(context, other, number)
        write_json(context.trial_folder(number) / "result.json", {"params": params, "result": result.to_json()})
        row = {"number": number, "state": "COMPLETE", "params": params, "metrics": {}, "constraint": result.constraint}
        rows.append(row)
        stages += result.stages
    stages += finish(context, Selected(0, start, "ideal_corner")).stages
    StudyRecord(context.study, context.config, 0, context.data_digest, "now", finished=True).write(context.folder)
    summary = {"trials": rows, "selected": {"trial": 0}, "stages": stages, "data": {"path": str(context.data_path)}}
    write_json(context.folder / "summary.json", {**summary, "git_revision": git_revision()})
    return stages


def test_studies_over_the_same_data_share_all_stages_and_survive_a_prune(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = study(tmp_path, "first"), study(tmp_path, "second")
    store = StageStore(tmp_path / "stages")
    fitted = {(use["kind"], use["key"]) for use in run_whole(first) if not use["reused"]}
    made = {(one.kind, one.key): one.created for one in store.manifests()}
    assert made.keys() == fitted
    assert all(use["reused"] for use in run_whole(second))
    text = plan(study(tmp_path, "third"), space_of(first))
    assert "misses: 0 of 9 stages are missing, 0 s to come" in text
    assert "0 s for the study stages, 0 s for trial 0" in text

    # Trial 1 differs in γ only, and neither study selected it.
    others = {name for name in made if name[0] in ("synthesis", "evaluation")} - used(first, "trial-000") - used(first, "final")
    assert len(others) == 2
    assert {item.name for item in prune(tmp_path).stages} == others
    again = Selected(0, space_of(first).start(first.config.configuration), "ideal_corner")
    for context in (first, second, study(tmp_path, "third")):
        finish(context, again)
    run_whole_trial(study(tmp_path, "third"), {})
    assert {(one.kind, one.key): one.created for one in store.manifests()} == {name: made[name] for name in made.keys() - others}
    for options in ([], ["--trial", "1"]):
        out = str(tmp_path / "bundle")
        assert export(["second", "--storage", str(tmp_path), *options, "--out", out]) == 0, capsys.readouterr().err
        assert load(out).provenance["trial"] == len(options) // 2
    result = run_whole_trial(study(tmp_path, "fourth"), OTHER)
    assert {(use["kind"], use["key"]) for use in result.stages if not use["reused"]} == others


def test_a_trial_of_a_vae_alone_fits_nothing_else_and_tells_what_a_whole_one_would_of_it(tmp_path: Path) -> None:
    context = study(tmp_path, "looks")
    params = space_of(context).start(context.config.configuration)
    look = run_trial(context, apply(context.config.configuration, params), params, 1, vae_only=True)
    assert look.pruned
    assert look.constraint is not None
    assert look.constraint <= 0
    assert {stage["kind"] for stage in look.stages} == {"vae", "standard_vae", "representation"}
    assert {one.kind for one in StageStore(tmp_path / "stages").manifests()} == {"vae", "standard_vae", "representation"}
    assert "selectivity" not in look.metrics
    prepared(context)
    whole = run_whole_trial(context, {}, 2)
    assert not whole.pruned
    assert {stage["kind"] for stage in whole.stages if stage["reused"]} >= {"vae", "standard_vae", "representation"}
    for name in ("group_mig", "alignment", "neural_r2"):
        assert look.metrics[name] == whole.metrics[name]
