"""The report of a search: what was tried, what was selected and why, its edits, and what it cost, in one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from tune.context import StudyContext
from tune.finished_trials import ALIGNMENT
from tune.ledger import Ledger
from tune.pages import embedded, render
from tune.pages.table import NOTHING, Table
from tune.progress import duration
from tune.search_charts import search_charts
from tune.space import PARAMETERS
from tune.study_folder import write_text
from tune.summary import Outcome, machine
from tune.trial_result import stage_totals


def write_search_report(
    context: StudyContext, ledger: Ledger, outcome: Outcome, pictures: Mapping[str, Path], notes: Sequence[str], revision: str
) -> tuple[Path, dict[str, Path]]:
    """Writes the study's `report.html`; its path and the charts that were drawn for it, by file name.

    pictures: of the final stage, by name. notes: as in the summary.
    """
    charts = search_charts(ledger.study, ledger.objectives, context.folder / "charts")
    selected = outcome.selected
    page = render(
        "search.html.j2",
        study=context.study,
        selected=selected,
        parameters=", ".join(f"{name} {value:g}" for name, value in selected.params.items()),
        notes=notes,
        tables=[_trials(ledger, selected.trial), _final(outcome.metrics)],
        figures=[(_caption(name), embedded(path)) for name, path in pictures.items()],
        charts=[(caption, embedded(path)) for caption, path in charts.items()],
        costs=_costs(ledger),
        facts={
            "data": f"digest {context.data_digest[:16]}",
            "subjects": ", ".join(context.config.data.subjects),
            "preset": context.config.preset,
            "seed": str(context.seed),
            "sampler": context.config.search.sampler,
            "source": revision,
            "machine": ", ".join(f"{name} {value}" for name, value in machine().items()),
            "bundle": "none" if outcome.export is None else outcome.export.name,
        },
    )
    path = context.folder / "report.html"
    write_text(path, page)
    return path, {chart.stem: chart for chart in charts.values()}


_CAPTIONS = {
    "scored": "the scored edits of test pairs, each group guided to the target's; under an edit what the instrument sees in it,"
    " and its selectivity: how far it carries the group's own attribute to the target's, less what it changes of the other one."
    " Of groups that are not scored, and without guidance, the first pairs are shown.",
    "selectivity": "the same as a matrix: how far the edits of a group carry each attribute, mean over these pairs. The table"
    " below has the mean over all seeds of the final stage.",
    "target": "each group guided to the target's state, by guidance scale γ.",
    "shift": "each group's latents moved from the source's by Δ of their standard deviations.",
}
"""What the pictures of the final stage show, by what their names begin with."""


def _caption(name: str) -> str:
    kind, _, subject = name.partition("_")
    return f"{subject}: {_CAPTIONS[kind]}" if kind in _CAPTIONS else name.replace("_", ", ")


def _trials(ledger: Ledger, selected: int) -> Table:
    """Every trial: its hyperparameters, its objectives, and how it ended; the selected one is bold."""
    records = list(ledger.records())
    measured: list[Mapping[str, float]] = [record.result().metrics if record.finished else {} for record in records]
    names = ["neural_r2", *([ALIGNMENT] if any(ALIGNMENT in metrics for metrics in measured) else []), *ledger.objectives]
    header = ["trial", *PARAMETERS, *names, "ended"]
    rows: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for record, metrics in zip(records, measured, strict=True):
        values = [f"{metrics[name]:.3f}" if name in metrics else NOTHING for name in names]
        ended = record.ended if record.finished else record.error or record.state.lower()
        if record.number == selected:
            bold |= {(len(rows), column) for column in range(len(header))}
        rows.append([str(record.number), *(f"{record.params[name]:g}" for name in PARAMETERS), *values, ended])
    note = (
        "Scored on validation images; by the gate: neural_r2 fell too far below the standard VAE's; VAE only: looked at, to"
        " choose what to branch from; alignment: what its latents tell of its edits' selectivity. Bold: selected."
    )
    known = {name: [one[f"{name}_se"] for one in measured if f"{name}_se" in one] for name in ledger.objectives}
    errors = ", ".join(f"{name} {median(values):.2f}" for name, values in known.items() if values)
    if errors:
        note += f" Standard errors over a trial's pairs, in the median: {errors}."
    return Table("trials", "trials", header, rows, note, frozenset(bold))


def _final(metrics: Mapping[str, float]) -> Table:
    """The final stage's metrics on test images; those by subject, by group and of the instrument are in the summary."""
    rows: list[list[str]] = []
    for name, value in metrics.items():
        if "/" not in name:
            spread = [sd for of, sd in metrics.items() if of.endswith(f"/{name}_sd")]
            rows.append([name, _short(value), _short(spread[0]) if len(spread) == 1 else NOTHING])
    return Table("the selected configuration on test images", "final", ["metric", "mean", "sd over seeds"], rows)


def _short(value: float) -> str:
    """Three decimals, or as many digits as a small value needs to be told from 0."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.1e}"


def _costs(ledger: Ledger) -> list[tuple[str, int, str, int]]:
    records = [*ledger.remembered("stages_prepare", []), *ledger.remembered("stages_final", [])]
    for record in ledger.records():
        if record.finished:
            records += record.result().stages
    kinds: dict[str, tuple[int, float, int]] = {}
    for total in stage_totals(records):
        fitted, seconds, reused = kinds.get(total["kind"], (0, 0.0, 0))
        kinds[total["kind"]] = (fitted + total["fitted"], seconds + total["seconds"], reused + total["reused"])
    return [(kind, fitted, duration(seconds), reused) for kind, (fitted, seconds, reused) in kinds.items()]
