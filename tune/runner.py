"""Stages as a trial, the shared part and the final stage get them: reported while they run, and every use remembered."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from migvis.training import Progress
from migvis.weights import read_json
from tune.context import StudyContext
from tune.manifest import StageName
from tune.pipeline import StageResult, StageUse, ensure, ensure_together, topological
from tune.pipeline import logger as pipeline_logger
from tune.progress import Reporter
from tune.stage_graph import Stage
from tune.study_folder import write_json


class _Shown(logging.Handler):
    """Shows warnings as lines in the terminal."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.line(f"WARNING: {record.getMessage()}")


class Runner:
    """Gets stages from the study's store, reports what is fitted and reused, and remembers every use.

    Also across the death of its process, where the next one sees the same storage folder: what it had fitted before is not
    reused later.
    """

    def __init__(self, context: StudyContext, title: str, reporter: str) -> None:
        threads = context.config.search.threads_per_trial
        torch.set_num_threads(threads)
        threadpool_limits(threads)  # of numpy and scikit-learn
        self.store = context.store()
        self.reporter = context.reporter(reporter)
        self.title = title
        self._file = context.folder / "uses" / f"{reporter}.json"
        self.uses: list[StageUse] = []
        self._wanted: set[StageName] = set()
        if self._file.exists():
            content = read_json(self._file)
            self.uses += [StageUse(**use) for use in content["uses"]]
            self._wanted |= {(kind, key) for kind, key in content.get("wanted", [])}

    def __call__(self, stage: Stage) -> StageResult:
        self.reporter.update(f"{self.title}: {stage}")
        self._want([stage])
        with self._warnings_shown():
            result = ensure(stage, self.store, uses=self.uses, progress=self._report)
        self._remember()
        return result

    def together(self, stages: Sequence[Stage]) -> None:
        """Builds at once those that are missing and can be, for later calls to find."""
        self._want(stages)
        try:
            with self._warnings_shown():
                ensure_together(stages, self.store, uses=self.uses, progress=self._report)
        finally:
            self._remember()

    @contextmanager
    def _warnings_shown(self) -> Iterator[None]:
        """Shows in the terminal what the pipeline warns of, such as a damaged stage, from whichever process this is."""
        handler = _Shown(self.reporter)
        pipeline_logger.addHandler(handler)
        try:
            yield
        finally:
            pipeline_logger.removeHandler(handler)

    def _want(self, stages: Sequence[Stage]) -> None:
        """Notes what will be read or built before it is, so that a study which is killed keeps that, too (tune.pruning)."""
        self._wanted |= {(stage.kind, stage.key) for stage in topological(stages)}
        self._remember()

    def _remember(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"uses": self.records(), "wanted": sorted(self._wanted)})

    def _report(self, stage: Stage, progress: Any) -> None:
        if isinstance(progress, Progress):
            left = progress.seconds_left if progress.seconds > 0 else None
            self.reporter.update(f"{self.title}: {progress.name}", progress.step, progress.steps, left)

    def records(self) -> list[dict[str, Any]]:
        """The first use of each stage, as TrialResult and the summary want them: what is fitted here is not reused here."""
        first: dict[tuple[str, str], StageUse] = {}
        for use in self.uses:
            known = first.setdefault((use.kind, use.key), use)
            if use.damage and not known.damage:
                first[use.kind, use.key] = replace(known, damage=use.damage)
        return [asdict(use) for use in first.values()]

    def seconds(self) -> dict[str, float]:
        """Seconds of the stages that were built here, by kind."""
        built: dict[str, float] = {}
        for use in self.uses:
            if not use.reused:
                built[use.kind] = built.get(use.kind, 0.0) + use.seconds
        return built
