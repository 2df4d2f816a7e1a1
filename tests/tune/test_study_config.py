from __future__ import annotations

from pathlib import Path

import pytest

from migvis.config import PRESETS
from migvis.errors import InputError
from tune.study_config import STUDY_PRESETS, StudyConfig, load_study_config

CONFIGS = Path(__file__).parents[2] / "tune" / "configs"


def error_line(*arguments, **keywords) -> str:
    with pytest.raises(InputError) as caught:
        load_study_config(*arguments, **keywords)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_shipped_files_are_the_presets(preset: str) -> None:
    config = load_study_config(CONFIGS / f"{preset}.yaml")
    assert config == STUDY_PRESETS[preset]
    assert config.configuration == PRESETS[preset]
    assert config.preset == preset


def test_quick_search_is_small() -> None:
    search = load_study_config(None).search
    assert (search.trials, search.seeds_per_trial, search.final_seeds) == (18, 1, 2)
    assert search.startup_trials < search.trials / 2


def test_file_then_set_then_options(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: quick\nvae: {group_rank: 5, pc_weight: 1e-4}\nsearch: {trials: 3}\n")
    config = load_study_config(path, ["vae.group_rank=2", "data.split=[0.5, 0.25, 0.25]"], {"search.trials": 7})
    assert config.vae.group_rank == 2
    assert config.vae.pc_weight == 1e-4
    assert config.data.split == (0.5, 0.25, 0.25)
    assert config.search.trials == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vae.pc_wieght=1", "vae.pc_weight"),
        ("vea.pc_weight=1", "vae.pc_weight"),
        ("vae.infonce_batch=16", "critic.infonce_batch"),
        ("serach.trials=3", "search.trials"),
    ],
)
def test_unknown_key_names_the_nearest(text: str, expected: str) -> None:
    assert error_line(None, [text]).endswith(f"did you mean {expected}?")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vae.group_count=1", ["--set vae.group_count=1", "vae.group_count", "got 1"]),
        ("vae.group_rank=0", ["vae.group_rank", "got 0"]),
        ("synthesis.edit_step=0.99", ["synthesis.edit_step", "got 0.99"]),
        ("search.trials=0", ["search.trials", "got 0"]),
        ("vae.pc_weight=abc", ["vae.pc_weight", "got 'abc'"]),
        ("search.group_count=[8, 2]", ["search", "group_count", "[8, 2]"]),
        ("search.edit_step=[0.3, 0.99]", ["edit_step", "0.99"]),
        ("synthesis.guidance_scale=.inf", ["synthesis.guidance_scale", "finite", "inf"]),
        ("vae.pc_weight=.nan", ["vae.pc_weight", "nan"]),
        ("search.infonce_batch=[1, 16]", ["infonce_batch", "[1, 16]"]),
        ("vae.readout=diagonal", []),
        ("noequals", ["section.key=value"]),
        ("vae.pc_weight=[", ["not YAML"]),
        ("data.path=2020-13-45", ["data.path=2020-13-45", "not YAML"]),
    ],
)
def test_bad_value_is_one_line_with_field_and_value(text: str, parts: list[str]) -> None:
    if not parts:
        assert load_study_config(None, [text]).vae.readout == "diagonal"
        return
    line = error_line(None, [text])
    for part in parts:
        assert part in line


def test_option_and_file_are_named_as_the_source(tmp_path: Path) -> None:
    assert error_line(None, [], {"search.trials": 0}).startswith("--trials: search.trials")
    path = tmp_path / "bad.yaml"
    path.write_text("vae: {group_rank: 0}\n")
    assert error_line(path).startswith(f"{path}: vae.group_rank")


@pytest.mark.parametrize(
    ("content", "part"),
    [("preset: big\n", "preset"), ("- 1\n", "sections"), ("vae: 3\n", "vae"), ("a: b: c\n", "not YAML"), ("vaee: {}\n", "vae")],
)
def test_bad_file(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    line = error_line(path)
    assert str(path) in line
    assert part in line


def test_missing_file(tmp_path: Path) -> None:
    assert "none.yaml" in error_line(tmp_path / "none.yaml")


def test_identity_ignores_how_the_study_is_run() -> None:
    base = load_study_config(None)
    other = load_study_config(None, ["search.trials=50", "search.concurrent_trials=2", "data.path=/x.h5"])
    assert other.identity() == base.identity()
    assert other.changeable() == {**base.changeable(), "search.trials": 50, "search.concurrent_trials": 2, "data.path": "/x.h5"}
    assert load_study_config(None, ["vae.epochs=3"]).identity()["configuration"]["vae.epochs"] == 3
    assert load_study_config(None, ["search.group_rank=[1, 4]"]).identity()["search"]["search.group_rank"] == [1, 4]


def test_json_round_trip() -> None:
    config = load_study_config(None, ["vae.epochs=3"])
    assert StudyConfig.model_validate_json(config.model_dump_json()) == config


def test_a_preset_that_is_no_name_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: [quick]\n")
    assert error_line(path) == f"{path}: preset: expected one of paper, quick, got ['quick']"


def test_a_date_that_does_not_exist_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: quick\ndata: {path: 2020-13-45}\n")
    assert error_line(path).startswith(f"{path}: not YAML: ")
