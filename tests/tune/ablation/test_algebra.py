"""The algebra of cases, and cases as configurations."""

from __future__ import annotations

import pytest

from migvis.errors import InputError
from tune.ablation.algebra import (
    FULL,
    Case,
    case,
    check_distinct,
    configured,
    leave_one_out,
    one_at_a_time,
    product,
    sweep,
    zipped,
)
from tune.ablation.studies import STUDIES
from tune.study_config import STUDY_PRESETS

QUICK = STUDY_PRESETS["quick"]
RANKS, BATCHES = sweep("vae.group_rank", (3, 6), "rank"), sweep("critic.infonce_batch", (32, 64))


def test_a_sweep_names_its_values() -> None:
    assert (Case("rank = 3", {"vae.group_rank": 3}), Case("rank = 6", {"vae.group_rank": 6})) == RANKS
    assert [one.name for one in BATCHES] == ["infonce_batch = 32", "infonce_batch = 64"]
    assert sweep("vae.pc_weight", (5e-5,))[0].name == "pc_weight = 5e-05"


def test_a_product_has_every_combination_and_a_zip_the_pairs() -> None:
    both = product(RANKS, BATCHES)
    assert [tuple(one.changes.values()) for one in both] == [(3, 32), (3, 64), (6, 32), (6, 64)]
    assert both[1].name == "rank = 3, infonce_batch = 64"
    assert [tuple(one.changes.values()) for one in zipped(RANKS, BATCHES)] == [(3, 32), (6, 64)]
    assert product(RANKS) == RANKS


def test_leaving_out_and_one_at_a_time_begin_with_the_full_method() -> None:
    parts = leave_one_out({"PC": {"vae.pc_weight": 0.0}})
    assert parts == (FULL, Case("without PC", {"vae.pc_weight": 0.0}))
    single = one_at_a_time({"vae.group_rank": (3,), "critic.infonce_batch": (16, 32)})
    assert [one.changes for one in single] == [
        {},
        {"vae.group_rank": 3},
        {"critic.infonce_batch": 16},
        {"critic.infonce_batch": 32},
    ]


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(InputError, match=r"vae\.group_rank is changed by both 'rank = 3' and 'rank = 3'"):
        product(RANKS, RANKS)
    with pytest.raises(InputError, match="unequal length, 2, 1 cases"):
        zipped(RANKS, case("a", {}))
    with pytest.raises(InputError, match="'full': there are 2 cases"):
        check_distinct((FULL, *RANKS, FULL))


def test_a_case_changes_its_fields_and_nothing_else() -> None:
    config = configured(QUICK, Case("x", {"vae.group_rank": 5, "synthesis.guidance_scale": 1}))
    assert (config.vae.group_rank, config.synthesis.guidance_scale) == (5, 1.0)
    assert config.critic == QUICK.critic
    assert configured(QUICK, FULL) == QUICK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae.rank": 5}, "case 'x': no field 'vae.rank' of the method"),
        ({"group_rank": 5}, "case 'x': no field 'group_rank'"),
        ({"search.trials": 5}, "case 'x': no field 'search.trials' of the method"),
        ({"vae.group_rank": 0}, "case 'x': vae.group_rank: .*greater than or equal to 1"),
        ({"vae.readout": "diagonal", "vae.group_rank": 5}, "case 'x': vae: readout=diagonal needs group_rank"),
    ],
)
def test_a_case_that_cannot_be_is_one_line(changes, message) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        configured(QUICK, Case("x", changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("preset", ["quick", "paper"])
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_named_ablation_can_be_configured(study, preset) -> None:
    check_distinct(study.cases)
    configurations = [configured(STUDY_PRESETS[preset], one).configuration.model_dump_json() for one in study.cases]
    names = [one.name for one in study.cases]
    assert study.base is None or study.base in names
    if preset == "quick":  # the paper's preset lacks some parts that can be left out
        assert len(set(configurations)) == len(names), "two cases are the same configuration"
