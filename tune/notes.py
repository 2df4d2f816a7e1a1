"""What a user should know of a study before believing its figures: plain sentences for the summary and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tune.selection import LEAST_MOVE, own_move

SATURATED = 0.8
"""Share of its largest possible value above which the estimated partial correlation has lost its gradient."""
SELECTIVE = 0.05
"""Selectivity on test pairs from which edits carry their own attribute clearly further than the other one."""


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
    selectivity, move = final.get("selectivity"), own_move(final)
    if selectivity is None or selectivity >= SELECTIVE:
        return found
    realism = f", realism {final['realism']:.2f}" if "realism" in final else ""
    figures = f"selectivity {selectivity:.3f}{realism} on test pairs"
    if move is None or move < LEAST_MOVE:
        found.append(
            f"the selected edits do not move the attributes of their groups ({figures}): look at the grids before believing them"
        )
    else:
        found.append(
            f"the selected edits carry their own attribute {move:.2f} of the way to the target's, but change the other one "
            f"about as much ({figures}): read the selectivity matrix before naming a group"
        )
    return found
