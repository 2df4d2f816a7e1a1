"""The pictures of an ablation, each a function of its outcome: {caption: PNG file}."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from migvis.charts import curve_chart, interval_chart, response_chart, trade_off_chart
from migvis.edit_grid import GridRow, edit_grid
from migvis.statistics import Interval
from migvis.weights import load_vae_folder, read_tensors
from tune.ablation.outcome import Outcome, slug
from tune.ablation.study import LEAST_REALISM, SPLIT
from tune.pictures import dimension_grid, gallery_grids, names_of, reading_captions

SHOWN = 6
"""Stimuli in an aligned gallery."""
SHOWN_RESPONSES = 4

Pictures = dict[str, Path]


def intervals(outcome: Outcome, folder: Path) -> Pictures:
    """Every column of the study's table, by case, with Student's intervals over seeds."""
    found: Pictures = {}
    cases = [one.name for one in outcome.cases]
    for subject in outcome.subjects:
        panels = {
            column.label: [_scaled(outcome.interval(case, subject, column.metric), column.factor) for case in cases]
            for column in outcome.study.columns
        }
        panels = {name: values for name, values in panels.items() if any(values)}
        if panels:
            caption = f"{subject}: means over {len(outcome.seeds)} seeds, with Student's 95 % intervals"
            found[caption] = interval_chart(cases, panels, folder / f"intervals_{subject}.png", base=outcome.study.base)
    return found


def _scaled(interval: Interval | None, factor: float) -> Interval | None:
    if interval is None:
        return None
    return Interval(interval.mean * factor, interval.low * factor, interval.high * factor, interval.sd * factor, interval.count)


def aligned_edits(outcome: Outcome, folder: Path) -> Pictures:
    """The same test pairs edited by every case, one grid per group; captions say what the instrument reads."""
    found: Pictures = {}
    for subject in outcome.subjects:
        for group, name in ((1, "pose"), (2, "category")):
            rows: list[GridRow] = []
            for one in outcome.cases:
                cell = outcome.first(one.name, subject, "synthesis", "evaluation")
                if cell is None:
                    continue
                synthesis, evaluation = outcome.folder(cell, "synthesis"), outcome.folder(cell, "evaluation")
                edits = read_tensors(synthesis / "edits.safetensors")
                readings = read_tensors(evaluation / "readings.safetensors")
                rows = rows or _pair_rows(outcome, edits)
                scored = edits["group"][: 2 * len(edits["source"])]  # after them come those of other groups, and unguided ones
                chosen = (scored == group).nonzero()[:SHOWN, 0]
                captions = reading_captions(outcome.dataset, readings, chosen) if "category" in readings else None
                rows.append(GridRow(_wrapped(one.name), edits["images"][chosen], captions))
            if rows:
                title = f"{subject}, group {group} ({name} where it is supervised): the same stimuli, edited by each case"
                caption = f"{subject}, group {group}, one seed: what the instrument reads, and the edit's selectivity score"
                found[caption] = edit_grid(rows, folder / f"edits_{subject}_group{group}.png", title)
    return found


def _pair_rows(outcome: Outcome, edits: Mapping[str, Tensor]) -> list[GridRow]:
    return [
        GridRow(name, outcome.dataset.images(edits[name][:SHOWN].numpy()), names_of(outcome.dataset, edits[name][:SHOWN]))
        for name in ("source", "target")
    ]


def _wrapped(name: str, width: int = 24) -> str:
    """A case's name in lines of about `width` letters."""
    lines = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def galleries(outcome: Outcome, folder: Path) -> Pictures:
    """The shown edits of every case and its first seed: all groups, towards a target and shifted."""
    found: Pictures = {}
    for one in outcome.cases:
        step = outcome.stages[one.name].configuration.synthesis.edit_step
        for subject in outcome.subjects:
            cell = outcome.first(one.name, subject, "gallery")
            if cell is not None:
                gallery = outcome.folder(cell, "gallery")
                grids = gallery_grids(outcome.dataset, gallery, folder / slug(one.name), subject, step)
                found |= {f"{one.name}: {name.replace('_', ', ')}": picture for name, picture in grids.items()}
    return found


def dimension_pairs(outcome: Outcome, folder: Path) -> Pictures:
    """The edits along pairs of dimensions, of the first seed."""
    found: Pictures = {}
    for one in outcome.cases:
        for subject in outcome.subjects:
            cell = outcome.first(one.name, subject, "dimension_gallery")
            if cell is not None:
                group = next(r.stage.config["group"] for r in outcome.readings[cell] if r.stage.kind == "dimension_gallery")
                caption = f"{subject}, {one.name}, group {group}: Δ in sd of the posterior means on both dimensions of a pair"
                title, path = f"{subject}: pairs of dimensions within group {group}", folder / f"dimensions_{slug(str(cell))}.png"
                found[caption] = dimension_grid(outcome.dataset, outcome.folder(cell, "dimension_gallery"), path, title)
    return found


def trade_off(outcome: Outcome, folder: Path) -> Pictures:
    """Own move and selectivity against realism: a line per method, through its guidance scales."""
    found: Pictures = {}
    for subject in outcome.subjects:
        for metric, label in (("own_move", "own move"), ("selectivity", "selectivity")):
            curves: dict[str, list[tuple[str, Interval, Interval]]] = {}
            for one in outcome.cases:
                method, _, setting = one.name.rpartition(", ")
                realism, value = (outcome.interval(one.name, subject, name) for name in ("realism", metric))
                if realism is not None and value is not None:
                    curves.setdefault(method, []).append((setting, realism, value))
            if curves:
                caption = f"{subject}: {label} against realism, with Student's 95 % intervals over seeds; up and right is better"
                path = folder / f"{metric}_against_realism_{subject}.png"
                found[caption] = trade_off_chart(curves, path, "realism", label)
    return found


def dose(outcome: Outcome, folder: Path) -> Pictures:
    """Selectivity, its parts and realism against the guidance scale, a curve per edit step."""
    found: Pictures = {}
    for subject in outcome.subjects:
        panels: dict[str, dict[str, list[tuple[float, Interval]]]] = {}
        for one in outcome.cases:
            step, scale = (one.changes[f"synthesis.{name}"] for name in ("edit_step", "guidance_scale"))
            for column in outcome.study.columns:
                interval = outcome.interval(one.name, subject, column.metric)
                if interval is not None:
                    panels.setdefault(column.label, {}).setdefault(f"t′ = {step:g} T", []).append((scale, interval))
        if panels:
            caption = (
                f"{subject}: the dose of an edit, with Student's 95 % intervals over seeds; dotted: realism {LEAST_REALISM:g}"
            )
            found[caption] = curve_chart(
                panels, folder / f"dose_{subject}.png", "guidance scale γ", lines={"realism": LEAST_REALISM}
            )
    return found


@torch.no_grad()
def reconstructions(outcome: Outcome, folder: Path) -> Pictures:
    """Responses to a few test stimuli of different categories, and what the VAE makes of them."""
    found: Pictures = {}
    dataset = outcome.dataset
    rows = dataset.split[SPLIT].copy()
    if dataset.stimuli.category_id is not None:
        _, first = torch.unique(torch.tensor(dataset.stimuli.category_id[rows]), return_inverse=True)
        rows = rows[[int((first == category).nonzero()[0, 0]) for category in range(int(first.max()) + 1)]]
    rows = rows[:SHOWN_RESPONSES]
    for subject in outcome.subjects:
        cell = outcome.first(outcome.cases[0].name, subject, "vae")
        if cell is None:
            continue
        vae = load_vae_folder(outcome.folder(cell, "vae"))
        responses = torch.tensor(dataset.subjects[subject].response[rows])
        mean, _ = vae.encode(responses)
        names = names_of(dataset, torch.tensor(rows)) or [f"stimulus {row}" for row in rows]
        found[f"{subject}: z-scored responses to {len(rows)} test stimuli"] = response_chart(
            dataset.images(rows)[:, 0].numpy(),
            names,
            vae.normalise(responses).numpy(),
            vae.decode(mean).numpy(),
            folder / f"responses_{subject}.png",
        )
    return found
