"""A whole study of recordings that are labelled but were not rendered, without Ray: probes read its edits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from migvis.config import PRESETS
from migvis.data import dataset_from_arrays, load_dataset
from migvis.data.synthetic.stimuli import make_synthetic
from tests.tune.tiny_studies import TINY, prepared
from tune.context import StudyContext
from tune.final import finish
from tune.selection import Selected
from tune.space import SearchSpace, apply
from tune.study_config import load_study_config
from tune.study_data import open_data
from tune.trial import run_trial

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Responses, pictures and labels of 192 stimuli, as a laboratory's arrays: nothing says that they were rendered."""
    folder = tmp_path_factory.mktemp("recordings")
    config = PRESETS["quick"].data.model_copy(update={"stimulus_count": 192})
    rendered = load_dataset(make_synthetic(config, folder / "rendered.h5"))
    stimuli = rendered.stimuli
    made = dataset_from_arrays(
        folder / "lab.h5",
        {"lab": rendered.subjects["M1"].response},
        stimuli.image,
        category=stimuli.category_id,
        pose=stimuli.pose,
        fractions=(0.5, 0.25, 0.25),
    )
    assert made.source == "arrays"
    return made.path


def test_a_study_of_labelled_recordings_ends_with_scores_by_probes(tmp_path: Path, recordings: Path) -> None:
    config = load_study_config(None, [*TINY, f"data.path={recordings}", "data.subjects=[lab]"])
    data = open_data(config, tmp_path)
    assert data.objectives == ("group_mig", "selectivity")
    context = StudyContext(
        tmp_path, "lab", tmp_path / "lab", config, data.path, data.digest, data.rendered, 0, tmp_path / "stages", workers=1
    )
    params = SearchSpace.of(config, 60).start(config.configuration)
    prepared(context)
    trial = run_trial(context, apply(config.configuration, params), params, 0)
    final = finish(context, Selected(0, params, "ideal_corner"))
    for metrics in (trial.metrics, final.metrics):
        assert -2 <= metrics["selectivity"] <= 1
        assert 0 <= metrics["instrument/category_accuracy"] <= 1
        assert "realism" not in metrics, "probes do not tell objects from what is none"
        json.dumps(metrics, allow_nan=False)
    assert {"edits_lab", "selectivity_lab"} <= trial.images.keys()
    assert {"scored_lab", "selectivity_lab"} <= final.images.keys()
