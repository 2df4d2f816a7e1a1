"""What a user should know of a study before believing its figures: plain sentences for the summary and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SATURATED = 0.8
"""Share of its largest possible value above which the estimated partial correlation has lost its gradient."""
MOVES_NOTHING = 0.05
"""Selectivity on test pairs below which edits do not move the attributes of their groups."""


def notes(trials: Sequence[Mapping[str, float]], final: Mapping[str, float]) -> list[str]:
    """Notes on the metrics of all trials, and on the final metrics of the selected configuration (empty before the end)."""
    found = []
    measured = [metrics["pc_saturation"] for metrics in trials if "pc_saturation" in metrics]
    saturated = sum(value > SATURATED for value in measured)
    if saturated:
        found.append(
            f"in {saturated} of {len(measured)} trials the partial correlation was saturated "
            f"(pc_saturation above {SATURATED:g}): pc_weight had nothing to act on there"
        )
    selectivity = final.get("selectivity")
    if selectivity is not None and selectivity < MOVES_NOTHING:
        realism = f", realism {final['realism']:.2f}" if "realism" in final else ""
        found.append(
            "the selected edits do not move the attributes of their groups "
            f"(selectivity {selectivity:.3f}{realism} on test pairs): look at the grids before believing them"
        )
    return found
