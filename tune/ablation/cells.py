"""The stages of an ablation, built: what all cells share first, then each cell by a Ray task of its own.

A cell's stages are all it needs: whatever the store has already, of this study, of another one or of a search, is not
built again, and an ablation that was interrupted goes on where it was.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from migvis.errors import InputError
from migvis.training import FitError
from migvis.weights import read_json
from tune.ablation.outcome import Cell, Outcome, slug
from tune.context import StudyContext
from tune.pipeline import Stage, StageResult, StageUse
from tune.progress import Display
from tune.runner import Runner
from tune.store_lock import in_use
from tune.trial import check_encoder


@dataclass(frozen=True)
class Built:
    """What building a cell's stages came to: every use of a stage, or why it failed. bad_input: the user's to mend."""

    uses: list[StageUse]
    error: str | None = None
    bad_input: bool = False


def stages_missing(outcome: Outcome, cells: Iterable[Cell]) -> list[Stage]:
    """The stages that have to be built, inputs first.

    Of a stage that is there and whole only its own inputs are looked at, which are read, too: whether they are damaged.
    """
    found: dict[tuple[str, str], Stage] = {}

    def visit(stage: Stage) -> None:
        if (stage.kind, stage.key) not in found and not outcome.is_whole(stage):
            for below in stage.inputs.values():
                visit(below)
            found[stage.kind, stage.key] = stage

    for cell in cells:
        for reading in outcome.readings[cell]:
            visit(reading.stage)
            for below in damaged_inputs(outcome, reading.stage):
                visit(below)
    return list(found.values())


def damaged_inputs(outcome: Outcome, stage: Stage) -> list[Stage]:
    """Inputs of a stage that are there, but not whole: who asks for the stage alone would never look at them."""
    there = (below for below in stage.inputs.values() if outcome.store.exists(below.kind, below.key))
    return [below for below in there if not outcome.is_whole(below)]


def build_all(outcome: Outcome, display: Display, address: str | None) -> None:
    """Builds what is missing; what failed is noted in `outcome.failed`.

    Raises InputError for what the user has to mend, and FitError where a stage that all cells share cannot be fitted.
    """
    context, cells = outcome.context, list(outcome.readings)
    unfinished = [cell for cell in cells if stages_missing(outcome, [cell])]
    display.trials(len(cells) - len(unfinished), len(cells), context.config.search.concurrent_trials)
    missing = stages_missing(outcome, unfinished)
    if missing:
        from tune.placing import near_gpus, placing_of
        from tune.ray_connection import connect

        for stages in outcome.stages.values():
            check_encoder(stages.configuration)
        display.phase("start")
        connect(address, context.storage)
        for note in placing_of(context.config.search)[1]:
            display.say(f"note: {note}")
        display.phase("shared stages")
        for stage in _shared(outcome, missing):
            # The denoiser's workers take GPUs of their own, wherever they are started from.
            result = build_shared(context, stage) if stage.kind == "denoiser" else near_gpus(build_shared, context, stage)
            display.say(f"{stage}: {result.seconds:.0f} s")
        # Small models are fitted together, all cases and seeds at once where their shapes allow it.
        try:
            near_gpus(build_together, context, [stage for stage in missing if stage.together is not None])
        except FitError as error:
            display.say(f"not fitted together, but one by one, since one ends all: {error}")
        _note(outcome, Runner(context, "shared", "shared").uses)
        context.reporter("shared").done()
    unfinished = [cell for cell in unfinished if stages_missing(outcome, [cell])]
    display.phase("runs")
    if unfinished:
        _build_cells(outcome, unfinished, display)


def _shared(outcome: Outcome, missing: Iterable[Stage]) -> list[Stage]:
    """The missing stages that all cells share, in the order in which a study builds them: what may be refused comes first."""
    order = {stage.key: None for stages in outcome.stages.values() for stage in stages.study_stages()}
    shared = {stage.key: stage for stage in missing if stage.scope == "study"}
    return [shared[key] for key in order if key in shared] + [stage for key, stage in shared.items() if key not in order]


def _build_cells(outcome: Outcome, cells: Sequence[Cell], display: Display) -> None:
    import ray

    from tune.placing import placing_of

    search = outcome.context.config.search
    placing, _ = placing_of(search)
    context, share = outcome.context.of_trials(placing.threads, placing.workers), placing.trial
    stages_of_case = {
        name: replace(stages, threads=placing.threads, workers=placing.workers, ray_train=False)
        for name, stages in outcome.stages.items()
    }
    # A worker that dies takes its task with it: it is tried again, and finds what the first attempt had finished.
    task: Any = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=search.retries)(build_cell)
    left: list[Cell] = list(reversed(cells))
    waiting: dict[Any, Cell] = {}
    done = len(outcome.readings) - len(cells)
    while left or waiting:
        while left and len(waiting) < search.concurrent_trials:
            cell = left.pop()
            readings = outcome.study.read(stages_of_case[cell.case], cell.subject, cell.seed)
            stages = [reading.stage for reading in readings]
            stages = [*(below for stage in stages for below in damaged_inputs(outcome, stage)), *stages]
            waiting[task.remote(context, str(cell), stages)] = cell
        (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(ready)
        try:
            built = ray.get(ready)
        except ray.exceptions.RayError as error:
            built = Built([], f"its process died: {(str(error).splitlines() or [''])[0]}")
        _note(outcome, built.uses)
        if built.bad_input:
            raise InputError(f"{cell}: {built.error}")
        done += 1
        display.trials(done, len(outcome.readings), search.concurrent_trials)
        seconds = sum(use.seconds for use in built.uses if not use.reused)
        display.trial_took(seconds)
        if built.error is None:
            reused = sorted({use.kind for use in built.uses if use.reused})
            display.say(f"{cell}: built in {seconds:.0f} s" + (f"; reused {', '.join(reused)}" if reused else ""))
        else:
            outcome.failed[cell] = built.error
            display.say(f"{cell} FAILED: {built.error}")


def build_shared(context: StudyContext, stage: Stage) -> StageResult:
    """A stage that all cells share; built, if it is missing, in the process that calls this."""
    return Runner(context, "shared", "shared")(stage)


def build_together(context: StudyContext, stages: list[Stage]) -> None:
    """Builds small models at once in this process."""
    Runner(context, "shared", "shared").together(stages)


def build_cell(context: StudyContext, title: str, stages: list[Stage]) -> Built:
    """Builds a cell's stages in this process, in order; an error is told, not raised."""
    name = f"cell-{slug(title)}"
    uses: list[StageUse] = []
    try:
        with in_use(context.store()):  # it may outlive its driver for a while
            runner = Runner(context, title, name)
            earlier = len(runner.uses)
            try:
                for stage in stages:
                    runner(stage)
            finally:
                uses = runner.uses[earlier:]
    except InputError as error:
        return Built(uses, str(error), bad_input=True)
    except FitError as error:
        return Built(uses, str(error))
    except Exception as error:
        (context.folder / f"{name}.error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return Built(uses, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    finally:
        context.reporter(name).done()
    return Built(uses)


def _note(outcome: Outcome, uses: Iterable[StageUse]) -> None:
    """Remembers the uses of what this study needs; what was built for it stays so, however often it was found again."""
    for use in uses:
        known = outcome.uses.get((use.kind, use.key))
        if (use.kind, use.key) in outcome.needed and (known is None or (known.reused and not use.reused)):
            outcome.uses[use.kind, use.key] = use


def account(outcome: Outcome) -> None:
    """Completes `outcome.uses`: by what earlier sessions of this study built, then by what the store had before it."""
    for path in sorted((outcome.context.folder / "uses").glob("*.json")):
        _note(outcome, [StageUse(**use) for use in read_json(path)["uses"]])
    for name, stage in outcome.needed.items():
        manifest = None if name in outcome.uses else outcome.store.peek(*name)
        if manifest is not None:
            outcome.uses[name] = StageUse(stage.kind, stage.key, stage.label, manifest.seconds, reused=True)
