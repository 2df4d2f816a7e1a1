from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from migvis.edit_grid import GridRow, edit_grid
from migvis.errors import InputError
from migvis.figures import curves, selectivity_matrix


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("L"))


def discs(count: int, size: int = 32) -> torch.Tensor:
    """Grey discs of growing radius on a dark ground, [count, 1, size, size]."""
    axis = torch.linspace(-1, 1, size)
    distance = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    return torch.stack([torch.where(distance < (k + 1) / (count + 1), 0.5, -1.0) for k in range(count)])[:, None]


def test_edit_grid_of_twelve_by_twenty_is_legible(tmp_path: Path) -> None:
    rows = [GridRow(f"group {g + 1}\nγ = 5", discs(20), [f"to car {k}\nγ {k / 10:.1f}" for k in range(20)]) for g in range(12)]
    pixels = picture(edit_grid(rows, tmp_path / "grid.png", "Edits of each group", [f"stimulus {k}" for k in range(20)]))
    assert 12 * 64 < pixels.shape[0] < 2000
    assert 20 * 64 < pixels.shape[1] < 2400


def test_edit_grid_shows_every_pixel_unblended_at_whole_multiples(tmp_path: Path) -> None:
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = picture(edit_grid([GridRow("row", images)], tmp_path / "grid.png"))
    top, left = 14, pixels.shape[1] - 14 - 6 - 96  # of the last picture: MARGIN, and MARGIN and GAP at the right
    shown = pixels[top : top + 96, left : left + 96]
    expected = ((images[2, 0].numpy() + 1) * 127.5).round().astype(int)
    assert np.abs(shown - expected.repeat(3, 0).repeat(3, 1)).max() <= 1


def test_edit_grid_writes_each_text_where_it_belongs(tmp_path: Path) -> None:
    """White pictures on white: all that is dark is text."""
    rows = [GridRow("a\nlabel", torch.ones(2, 1, 32, 32), ["one\ntwo", "three"])]
    dark = picture(edit_grid(rows, tmp_path / "grid.png", "The title", ["first", "second"])) < 128
    first, second = (slice(dark.shape[1] - 14 - start, dark.shape[1] - 14 - start + 96) for start in (204, 102))
    title, header, cells, captions = slice(14, 32), slice(36, 53), slice(54, 150), slice(151, 179)
    assert dark[title, 14:].any()
    for part in (dark[header, first], dark[header, second], dark[captions, first], dark[captions, second]):
        assert np.argwhere(part)[:, 1].mean() == pytest.approx(47.5, abs=3)
    assert [dark[lines, first].any() for lines in (slice(151, 165), slice(165, 179))] == [True, True]
    assert [dark[lines, second].any() for lines in (slice(151, 165), slice(167, 179))] == [True, False]
    label = np.argwhere(dark[cells, : first.start])
    assert (label[:, 0].min() + label[:, 0].max()) / 2 == pytest.approx(47.5, abs=3)
    assert np.ptp(label[:, 0]) > 14  # two lines
    assert not dark[cells, first.start :].any()


def test_edit_grid_leaves_a_wider_gap_after_each_block(tmp_path: Path) -> None:
    row = [GridRow("row", torch.full((6, 1, 32, 32), -1.0))]
    together, apart = (
        picture(edit_grid(row, tmp_path / f"{block}.png", columns=list("abcdef"), block=block)) for block in (None, 2)
    )
    assert apart.shape[1] == together.shape[1] + 2 * 14

    def gaps(pixels: np.ndarray) -> list[int]:
        dark = np.flatnonzero((pixels < 10).sum(axis=0) > 90)
        return [int(gap) - 1 for gap in np.diff(dark) if gap > 1]

    assert gaps(together) == [6] * 5
    assert gaps(apart) == [6, 20, 6, 20, 6]


def test_edit_grid_rows_may_differ_in_length(tmp_path: Path) -> None:
    rows = [GridRow("source", discs(1)), GridRow("γ = 0.5", discs(4), ["a", "b", "c", "d"])]
    pixels = picture(edit_grid(rows, tmp_path / "deep" / "grid.png", columns=["1", "2", "3", "4"]))
    assert pixels.max() == 255
    assert pixels.min() < 30


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], None, "no picture"),
        ([GridRow("a", discs(2)), GridRow("b", discs(2, 16))], None, "row 'b' has images"),
        ([GridRow("a", discs(2) * float("nan"))], None, "not finite"),
        ([GridRow("a", discs(2), ["one"])], None, "1 captions for 2 images"),
        ([GridRow("a", discs(2))], ["one"], "1 column headers for 2"),
    ],
)
def test_edit_grid_refuses_what_it_cannot_draw(tmp_path: Path, rows: list[GridRow], columns: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        edit_grid(rows, tmp_path / "grid.png", columns=columns)
    assert not (tmp_path / "grid.png").exists()


def test_selectivity_matrix_colours_by_sign(tmp_path: Path) -> None:
    values = np.array([[0.9, -0.9], [0.0, float("nan")]])
    path = selectivity_matrix(values, ["group 1 (pose)", "group 2 (category)"], ["pose", "category"], tmp_path / "m.png")
    with Image.open(path) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or [] if max(colour) - min(colour) > 80}
    assert any(blue > red + 60 for red, _, blue in colours)
    assert any(red > blue + 60 for red, _, blue in colours)
    with pytest.raises(InputError, match="names 1 × 2"):
        selectivity_matrix(values, ["one"], ["pose", "category"], path)


def test_curves_are_small_multiples(tmp_path: Path) -> None:
    drawn = {f"vae/term {k}": [(step, 10.0 ** (-step / (20 + 30 * k))) for step in range(1, 80)] for k in range(6)}
    pixels = picture(curves(drawn | {"empty": []}, tmp_path / "curves.png", "Fits of trial 3"))
    assert 300 < pixels.shape[0] < 900
    assert 700 < pixels.shape[1] < 1400
    with pytest.raises(InputError, match="none to draw"):
        curves({}, tmp_path / "none.png")
