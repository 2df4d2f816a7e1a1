"""What the study hands to the science (tune.trial, tune.final), and the functions it expects of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from migvis.config import Configuration
from tune.progress import Reporter
from tune.selection import OBJECTIVES, Selected
from tune.space import SearchSpace
from tune.store_base import Store
from tune.stores import open_store
from tune.study_config import StudyConfig
from tune.trial_result import FinalResult, Prepared, TrialResult


@dataclass(frozen=True)
class DataSummary:
    """What the study needs to know of its data set.

    training_pictures: distinct pictures of the training split. objectives: those that its labels allow.
    rendered: stimuli of our own renderer, which the render-fit oracle can judge.
    """

    path: Path
    digest: str
    training_pictures: int
    objectives: tuple[str, ...] = OBJECTIVES
    rendered: bool = True


@dataclass(frozen=True)
class StudyContext:
    """Where a study lives and what it reads; plain data, so that it travels to every process of a cluster.

    stages_root: a folder, or the URI of an object store, the leases of which are in `database`. No password is among it.
    study_id: as in StudyRecord. progress: where reporters write (None: in the study's folder).
    """

    storage: Path
    study: str
    folder: Path
    config: StudyConfig
    data_path: Path
    data_digest: str
    rendered: bool
    seed: int
    stages_root: Path | str
    workers: int
    database: str = ""
    study_id: str = ""
    progress: Path | None = None

    def store(self) -> Store:
        """The stages. Raises InputError for a URI that is none."""
        return open_store(self.stages_root, self.database)

    def trial_folder(self, number: int) -> Path:
        """The folder of a trial's own files, created if needed."""
        folder = self.folder / "trials" / f"{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def of_trials(self, threads: int, workers: int) -> StudyContext:
        """As a trial reads it, which may have fewer CPU threads and workers than are wanted (tune.resources)."""
        search = self.config.search.model_copy(update={"threads_per_trial": threads})
        return replace(self, config=self.config.model_copy(update={"search": search}), workers=workers)

    def reporter(self, name: str) -> Reporter:
        """Progress towards the terminal, from any process that shares the study's folder."""
        return Reporter(self.progress or self.folder / "progress", name)


@dataclass(frozen=True)
class Hooks:
    """The science of a study.

    open_data: finds or makes the data set of a configuration in a storage folder.
    prepare: builds the stages that all trials share. begin: the first of them, while Ray starts.
    run_trial: one trial, in a Ray actor; with True at last, of its VAE alone. finish: the final stage.
    plan: the text of `--dry-run`. expected_seconds: by "trial" and "final", to tell the time left before any ran.
    """

    open_data: Callable[[StudyConfig, Path], DataSummary]
    prepare: Callable[[StudyContext], Prepared | None]
    run_trial: Callable[[StudyContext, Configuration, dict[str, Any], int, bool], TrialResult]
    finish: Callable[[StudyContext, Selected], FinalResult]
    plan: Callable[[StudyContext, SearchSpace], str]
    expected_seconds: Mapping[str, float] = field(default_factory=dict)
    begin: Callable[[StudyContext], None] = lambda context: None
