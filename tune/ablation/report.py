"""The report of an ablation: one HTML page that holds everything it shows, to read on a laptop or to print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tune.ablation.outcome import Cell, Outcome
from tune.ablation.study import Column
from tune.pages import embedded, render
from tune.pages.table import Table
from tune.progress import duration
from tune.study_folder import write_text
from tune.summary import git_revision, machine


def write_report(outcome: Outcome, tables: Sequence[Table], figures: Mapping[str, Path], seconds: float) -> Path:
    """Writes `report.html` into the study's folder; returns its path. seconds: wall time of this session."""
    context = outcome.context
    page = render(
        "ablation.html.j2",
        study=outcome.study,
        findings=findings(outcome),
        tables=tables,
        figures=[(caption, embedded(path)) for caption, path in figures.items()],
        cases=[(one.name, ", ".join(f"{key} = {value}" for key, value in one.changes.items())) for one in outcome.cases],
        same=outcome.same,
        failed={str(cell): reason for cell, reason in outcome.failed.items()},
        costs=costs(outcome),
        seconds=duration(seconds),
        facts=_facts(outcome),
        configuration=json.dumps(context.config.configuration.model_dump(mode="json"), indent=2),
    )
    path = context.folder / "report.html"
    write_text(path, page)
    return path


def findings(outcome: Outcome) -> list[str]:
    """What can be said in a sentence: the differences to the base whose intervals are clear of 0, and that others are not."""
    base, sentences = outcome.study.base, []
    if base is None:
        return []
    for subject in outcome.subjects:
        for one in outcome.cases:
            if one.name == base:
                continue
            clear = [text for column in outcome.study.columns if (text := _clear_difference(outcome, one.name, subject, column))]
            measured = [column for column in outcome.study.columns if outcome.difference(one.name, base, subject, column.metric)]
            if clear:
                sentences.append(f"{subject}, {one.name}: {'; '.join(clear)}, against {base}.")
            elif measured:
                sentences.append(f"{subject}, {one.name}: nothing differs from {base} by more than chance between seeds may do.")
    return sentences


def _clear_difference(outcome: Outcome, case: str, subject: str, column: Column) -> str | None:
    assert outcome.study.base is not None
    interval = outcome.difference(case, outcome.study.base, subject, column.metric)
    if interval is None or not interval.clear_of_zero:
        return None
    low, high = (f"{value * column.factor:+.{column.digits}f}" for value in (interval.low, interval.high))
    return f"{column.label} {interval.mean * column.factor:+.{column.digits}f} [{low}, {high}]"


def costs(outcome: Outcome) -> list[tuple[str, int, str, int, str]]:
    """By kind of stage: how many were built for this study and their time, how many were found and the time that saved."""
    kinds: dict[str, tuple[int, float, int, float]] = {}
    for (kind, _), use in outcome.uses.items():
        built, spent, found, saved = kinds.get(kind, (0, 0.0, 0, 0.0))
        if use.reused:
            kinds[kind] = (built, spent, found + 1, saved + use.seconds)
        else:
            kinds[kind] = (built + 1, spent + use.seconds, found, saved)
    return [(kind, built, duration(spent), found, duration(saved)) for kind, (built, spent, found, saved) in kinds.items()]


def _facts(outcome: Outcome) -> dict[str, Any]:
    context, dataset = outcome.context, outcome.dataset
    some = Cell(outcome.cases[0].name, outcome.subjects[0], outcome.seeds[0])
    accuracy = {
        name.removeprefix("instrument/"): value
        for name, value in outcome.metrics.get(some, {}).items()
        if name.startswith("instrument/")
    }
    facts = {
        "data": f"{dataset.source}, {len(dataset.picture_id)} stimuli, digest {context.data_digest[:16]}",
        "subjects": ", ".join(f"{name} ({dataset.subjects[name].response.shape[1]} units)" for name in outcome.subjects),
        "preset": context.config.preset,
        "seeds": ", ".join(str(seed) for seed in outcome.seeds),
        "source": git_revision(),
        "machine": ", ".join(f"{name} {value}" for name, value in machine().items()),
        "written": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %z}",
        "again": f"python tune/ablate.py {outcome.study.name}",
    }
    if accuracy:
        facts["instrument on held-out stimuli"] = ", ".join(f"{name} {value:.3g}" for name, value in accuracy.items())
    return facts
