"""The data set of a study: found, or made where none is given, and checked before anything is fitted."""

from __future__ import annotations

import hashlib
from pathlib import Path

from migvis.data import Dataset, load_dataset
from migvis.data.synthetic.stimuli import make_synthetic
from migvis.errors import InputError
from migvis.metrics.edit_scores import evaluation_pairs
from tune.context import DataSummary
from tune.stage_data import training_pictures
from tune.study_config import StudyConfig


def open_data(config: StudyConfig, storage: Path) -> DataSummary:
    """The data set of a configuration; the synthetic one is made once per storage folder.

    Raises InputError for a bad file, an unknown subject, or a data set without anything to optimise.
    """
    data = config.data
    if data.path is not None:
        try:
            path = Path(data.path).expanduser().absolute()
        except RuntimeError as error:
            raise InputError(f"data.path: {data.path}: {error}") from None
    else:
        fields = data.model_dump(mode="json", exclude={"path", "subjects"})
        digest = hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:12]
        path = storage / "data" / f"synthetic-{digest}.h5"
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                make_synthetic(data, path)
            except OSError as error:
                raise InputError(f"{path}: the synthetic set cannot be written: {error.strerror or error}") from error
    dataset = load_dataset(path)
    for name in data.subjects:
        if name not in dataset.subjects:
            raise InputError(
                f"data.subjects: {path} has no subject {name!r}; it has {', '.join(dataset.subjects)}"
                f" (--set 'data.subjects=[{', '.join(dataset.subjects)}]')"
            )
    labelled = dataset.stimuli.category_id is not None or dataset.stimuli.pose is not None
    both = dataset.stimuli.category_id is not None and dataset.stimuli.pose is not None
    rendered = dataset.source == "synthetic"
    possible = {"group_mig": labelled, "selectivity": both, "realism": rendered}
    objectives = tuple(name for name, exists in possible.items() if exists)
    _check_pairs(dataset, config)
    _, picture = training_pictures(dataset)
    return DataSummary(path, dataset.digest, int(picture.max()) + 1, objectives or ("neural_r2",), rendered)


def _check_pairs(dataset: Dataset, config: StudyConfig) -> None:
    """Raises InputError where a split has too few pairs of stimuli: the test split would be asked only at the very end."""
    synthesis = config.synthesis
    for split, count in (("validation", synthesis.trial_pairs), ("test", synthesis.final_pairs)):
        evaluation_pairs(dataset, split, count, seed=0)
