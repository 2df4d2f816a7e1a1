"""The pictures of scored edits."""

from __future__ import annotations

import torch

from migvis.edit_grid import GridRow
from tune.pictures import IN_A_ROW, _wrapped


def test_rows_wrap_and_keep_every_picture_with_its_caption() -> None:
    count = 2 * IN_A_ROW + 3
    images = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 4, 4)
    captions = [str(number) for number in range(count)]
    rows = [GridRow("source", images, captions), GridRow("group 3", images[:2])]
    wrapped = _wrapped(rows)
    assert [(row.label, len(row.images)) for row in wrapped] == [
        ("source", IN_A_ROW), ("group 3", 2), ("source", IN_A_ROW), ("source", 3),
    ]  # fmt: skip
    source = [row for row in wrapped if row.label == "source"]
    assert torch.equal(torch.cat([row.images for row in source]), images)
    assert [caption for row in source for caption in row.captions or ()] == captions
    assert wrapped[1].captions is None
    assert [row.label for row in _wrapped([rows[1]])] == ["group 3"]
