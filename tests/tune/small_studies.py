"""Studies of a few small stages, for the tests of what they need and of what pruning deletes."""

from __future__ import annotations

import runpy
from pathlib import Path

from tune.context import StudyContext
from tune.runner import Runner
from tune.stage_graph import Stage, StageContext
from tune.store import StageName, StageStore
from tune.study_config import load_study_config
from tune.study_folder import StudyRecord, write_json

main = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "prune.py"))["main"]


def write(context: StageContext) -> None:
    (context.folder / "value").write_bytes(b"x" * 1000)


def denoiser() -> Stage:
    return Stage("denoiser", {}, write)


def vae(number: int) -> Stage:
    return Stage("vae", {"number": number}, write)


def critic(number: int) -> Stage:
    return Stage("critic", {"number": number}, write, inputs={"vae": vae(number), "denoiser": denoiser()})


def evaluation(number: int) -> Stage:
    return Stage("evaluation", {"number": number}, write, inputs={"made from": critic(number)})


def name(stage: Stage) -> StageName:
    return stage.kind, stage.key


def context_of(storage: Path, study: str) -> StudyContext:
    config = load_study_config(None, [], {})
    folder = storage / study
    return StudyContext(storage, study, folder, config, storage / "set.h5", "digest", True, 0, storage / "stages", workers=1)


def make_study(storage: Path, study: str, trials: range, selected: int | None) -> StudyContext:
    """A study whose trials fitted vae and critic of their number, finished with `selected`, or else unfinished."""
    context = context_of(storage, study)
    Runner(context, "", "prepare")(denoiser())
    stages = Runner(context, "", "prepare").records()
    for number in trials:
        runner = Runner(context, "", f"trial-{number:03d}")
        runner(critic(number))
        stages += runner.records()
    if selected is not None:
        runner = Runner(context, "", "final")
        runner(evaluation(selected))
        stages += runner.records()
    StudyRecord(study, context.config, 0, "digest", "now", finished=selected is not None).write(context.folder)
    chosen = None if selected is None else {"trial": selected}
    write_json(context.folder / "summary.json", {"stages": stages, "selected": chosen})
    return context


def stored(storage: Path) -> set[StageName]:
    """The stages of the store, every one of them whole."""
    store = StageStore(storage / "stages")
    names = set(store.stages())
    assert all(store.read(*one) is not None for one in names)
    return names


def trash(storage: Path) -> list[Path]:
    return list((storage / "stages").glob(".trash*"))


def names(*stages: Stage) -> set[StageName]:
    return {name(stage) for stage in stages}
