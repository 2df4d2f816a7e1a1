"""The report of an ablation: one HTML page that holds everything it shows, to read on a laptop or to print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tune.ablation.outcome import Outcome
from tune.ablation.study import Column
from tune.notes import cautions, instrument_notes
from tune.pages import embedded, render
from tune.pages.table import Table
from tune.progress import duration
from tune.study_folder import write_text
from tune.summary import git_revision, machine


def write_report(outcome: Outcome, tables: Sequence[Table], figures: Mapping[str, Path], seconds: float, command: str) -> Path:
    """Writes `report.html` into the study's folder; returns its path. seconds: wall time of this session; command: its own."""
    context = outcome.context
    page = render(
        "ablation.html.j2",
        study=outcome.study,
        findings=[*findings(outcome), *(sentence for table in tables for sentence in table.findings)],
        caution=caution(outcome),
        cautions=_cautions(outcome),
        tables=tables,
        figures=[(caption, embedded(path)) for caption, path in figures.items()],
        cases=[(one.name, ", ".join(f"{key} = {value}" for key, value in one.changes.items())) for one in outcome.cases],
        same=outcome.same,
        failed={str(cell): reason for cell, reason in outcome.failed.items()},
        costs=costs(outcome),
        seconds=duration(seconds),
        facts=_facts(outcome, command),
        configuration=json.dumps(context.config.configuration.model_dump(mode="json"), indent=2),
    )
    path = context.folder / "report.html"
    write_text(path, page)
    return path


def findings(outcome: Outcome) -> list[str]:
    """What can be said in a sentence: the differences to the base whose intervals are clear of 0, and where none is.

    Selectivity counts only where the interval over stimuli is clear of 0, too.
    """
    base, sentences = outcome.study.base, []
    if base is None:
        return []
    for subject in outcome.subjects:
        for one in outcome.cases:
            if one.name == base:
                continue
            clear = [text for column in outcome.study.columns if (text := _clear_difference(outcome, one.name, subject, column))]
            found = [outcome.difference(one.name, base, subject, column.metric) for column in outcome.study.columns]
            if clear:
                sentences.append(f"{subject}, {one.name}: {'; '.join(clear)}, against {base}.")
            elif any(interval is not None and interval.count > 1 for interval in found):
                sentences.append(f"{subject}, {one.name}: no interval of a difference to {base} is clear of 0.")
    return sentences


def caution(outcome: Outcome) -> str:
    """What the intervals of the report do not cover."""
    if len(outcome.seeds) < 2:
        return "A single seed has no interval: differences may be luck."
    compared = 0
    if outcome.study.base is not None:
        compared = (len(outcome.cases) - 1) * len(outcome.study.columns) * len(outcome.subjects)
    many = f"{compared} differences are shown, with intervals that are not adjusted for their number. " if compared > 1 else ""
    return f"{many}Seeds repeat the VAE and what is fitted on it; denoiser, instrument and test pairs are the same for all."


def _cautions(outcome: Outcome) -> list[str]:
    """What a user should know of the data, the configuration and the instrument before believing the figures."""
    known = next(iter(outcome.metrics.values()), {})
    notes = [*cautions(outcome.context.config.configuration, outcome.dataset), *instrument_notes(known)]
    if outcome.dataset.source == "synthetic" and outcome.study.published:
        notes.append(
            "the papers' recordings are two macaques' (58 and 110 sites); these data are a simulated population of the same "
            "sizes, so orderings can be compared, values cannot"
        )
    return notes


def _clear_difference(outcome: Outcome, case: str, subject: str, column: Column) -> str | None:
    assert outcome.study.base is not None
    interval = outcome.difference(case, outcome.study.base, subject, column.metric)
    if interval is None or not interval.clear_of_zero:
        return None
    if column.metric == "selectivity":
        stimuli = outcome.over_stimuli(case, outcome.study.base, subject)
        if stimuli is not None and not stimuli.clear_of_zero:
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


def _facts(outcome: Outcome, command: str) -> dict[str, Any]:
    context, dataset = outcome.context, outcome.dataset
    known = next(iter(outcome.metrics.values()), {})
    accuracy = {name.removeprefix("instrument/"): value for name, value in known.items() if name.startswith("instrument/")}
    facts = {
        "data": f"{dataset.source}, {len(dataset.picture_id)} stimuli, digest {context.data_digest[:16]}",
        "subjects": ", ".join(f"{name} ({dataset.subjects[name].response.shape[1]} units)" for name in outcome.subjects),
        "preset": context.config.preset,
        "seeds": ", ".join(str(seed) for seed in outcome.seeds),
        "source": git_revision(),
        "machine": ", ".join(f"{name} {value}" for name, value in machine().items()),
        "written": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %z}",
        "again": command,
    }
    if accuracy:
        facts["instrument on held-out stimuli"] = ", ".join(f"{name} {value:.3g}" for name, value in accuracy.items())
    return facts
