"""The data set of a study: where it is, and what keeps it from being found or made."""

from __future__ import annotations

from pathlib import Path

import pytest

from migvis.errors import InputError
from tune.study_config import load_study_config
from tune.study_data import open_data


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nosuchuser/set.h5", r"data.path: ~nosuchuser/set.h5: .*home directory"),
        ("/no/such.h5", r"/no/such.h5: "),
    ],
)
def test_a_data_set_that_is_not_there_is_one_line(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_data(load_study_config(None, [f"data.path={path}"]), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_synthetic_set_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"data/synthetic-.*\.h5: the synthetic set cannot be written: "):
        open_data(load_study_config(None, ["data.stimulus_count=128"]), tmp_path)
