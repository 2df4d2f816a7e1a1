from __future__ import annotations

import torch

from tune.builders import SHOWN_PAIRS, trial_edits


def test_the_edits_that_are_scored_come_first_then_those_that_are_shown_then_the_unguided_ones() -> None:
    latents = torch.arange(60.0).view(10, 6)
    source, target = torch.tensor([2, 4, 6]), torch.tensor([3, 5, 7])
    edits, pair = trial_edits(latents, 2, source, target, 7.0)
    shown = list(range(SHOWN_PAIRS))
    assert edits.group.tolist() == [1] * 3 + [2] * 3 + [3] * SHOWN_PAIRS + [1] * SHOWN_PAIRS
    assert pair.tolist() == [0, 1, 2, 0, 1, 2, *shown, *shown]
    assert edits.scale.tolist() == [7.0] * (6 + SHOWN_PAIRS) + [0.0] * SHOWN_PAIRS
    assert edits.source.tolist() == pair.tolist()
    assert torch.equal(edits.source_row, source[pair])
    assert torch.equal(edits.target_row, target[pair])
    for row in range(len(edits)):
        group = int(edits.group[row])
        assert torch.equal(edits.target[row], latents[target[pair[row]], 2 * group - 2 : 2 * group])
