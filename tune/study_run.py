"""One session of a study: shared stages, search, selection, final stage, and the records of all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from migvis.training import FitError
from tune.browsing import charts_of_trials, command_to_browse, is_server
from tune.context import DataSummary, Hooks, StudyContext
from tune.ledger import Ledger
from tune.placing import near_gpus, placing_of
from tune.progress import Display, duration
from tune.ray_connection import connect, disconnect, is_lost, starts_one
from tune.search import LedgerSearcher
from tune.search_charts import import_plots
from tune.search_report import write_search_report
from tune.search_session import run_search
from tune.selection import select
from tune.space import SearchSpace
from tune.stores import check_reach, is_object_store
from tune.study_files import fetch_trial, share_data
from tune.study_folder import StudyFailed, StudyRecord, TrialRefused
from tune.summary import Outcome, PhaseClock, Summary, earlier_sessions, git_revision
from tune.tracking import Tracker
from tune.tracking_uri import artifacts_folder, default_uri
from tune.tracking_writer import Writer
from tune.trial_process import stored_result
from tune.trial_record import TrialRecord
from tune.trial_result import FinalResult, TrialResult
from tune.trial_text import metrics_text, params_text, trial_line

REGISTERED_MODEL = "migvis"
_RAY_ENDS_WITHIN = 20.0
"""Seconds for which the end of this study's Ray is waited for; it takes one or two."""


class StudyRun:
    """One session of a study: the parts that live while the driver lives.

    check_held: raises StudyTakenOver once another driver has the study; called before each write to it.
    """

    def __init__(
        self,
        context: StudyContext,
        hooks: Hooks,
        record: StudyRecord,
        space: SearchSpace,
        data: DataSummary,
        uri: str,
        check_held: Callable[[], None],
    ) -> None:
        self.context, self.hooks, self.record, self.space, self.data, self.uri = context, hooks, record, space, data, uri
        self._check_held = check_held
        self.config, self.search = context.config, context.config.search
        self.revision = git_revision()
        self.state = "running"
        self.shared = context  # as its processes on all hosts have it
        self._started_ray = False
        self._stopping: threading.Thread | None = None
        self.final: FinalResult | None = None
        # Of a study that is extended, what was selected stands until there is something newer.
        earlier, self.outcome = earlier_sessions(context.folder)
        self.clock = PhaseClock(earlier)
        self.ledger = self._open_ledger()
        self.summary = Summary(context, self.ledger, self.clock, self.revision)
        record.write(context.folder)
        self.display = Display(context.folder / "progress", hooks.expected_seconds)
        self.tracker = Tracker(self._writer(), say=self.display.say)
        self._charts = ""

    def _open_ledger(self) -> Ledger:
        search, context = self.search, self.context
        return Ledger(
            context.database,
            context.study,
            space=self.space,
            objectives=self.data.objectives,
            identity={**self.config.identity(), "data": context.data_digest, "seed": context.seed},
            seed=context.seed,
            trials=search.trials,
            startup_trials=search.startup_trials,
            sampler=search.sampler,
            start=self.space.start(self.config.configuration),
            retries=search.retries,
            check_held=self._check_held,
            recover=self._stored_result,
        )

    def _stored_result(self, number: int, params: dict[str, Any]) -> TrialResult | None:
        fetch_trial(self.context, number)
        return stored_result(self.context.folder, number, params)

    def _writer(self) -> Writer:
        identity = self.config.identity()
        tags = {
            **{f"migvis.{name}": str(value) for name, value in self.config.changeable().items()},
            "migvis.data_digest": self.context.data_digest,
            "migvis.seed": str(self.context.seed),
            "migvis.preset": self.config.preset,
            "mlflow.source.git.commit": self.revision,
            "mlflow.source.name": "tune/run.py",
        }
        return Writer(
            self.uri,
            artifacts_folder(self.uri, self.context.storage),
            self.context.study,
            study_id=self.record.id,
            seed=self.context.seed,
            tags=tags,
            # The runs' parameters: MLflow refuses other values of those when a study is resumed.
            params={**identity["configuration"], **identity["search"]},
            recall=self._recall,
            remember=self.ledger.remember,
        )

    def _recall(self, key: str) -> Any:
        """What the study remembers; the tracker asks before it writes anything of a run."""
        self._check_held()
        return self.ledger.remembered(key)

    def run(self, address: str | None) -> None:
        """All phases in order; what an earlier session finished is taken from the database and the stage store."""
        with self.display:
            self.display.say(f"study {self.context.study} in {self.context.folder}")
            self._show_trials()
            self.display.phase("prepare")
            with self.clock.phase("prepare"):
                self._connect(address)
                check_reach(self.context.stages_root, self.context.database, sum(node["Alive"] for node in ray.nodes()))
                for note in placing_of(self.search)[1]:
                    self.display.say(f"note: {note}")
            self.shared = share_data(self.context)
            for record in self.ledger.records():
                if record.finished:
                    fetch_trial(self.context, record.number)  # of a driver that was killed before it did
            # Importing MLflow and making its database take seconds, and so does what draws the charts: beside the longest fit.
            self.tracker.start()
            self.tracker.submit("the page of its charts", self._note_charts)
            self.tracker.submit("the imports for the charts", lambda writer: import_plots())
            self.tracker.catch_up(self.ledger.records(), self.ledger.remembered)
            for name, phase in (("prepare", self._prepare), ("search", self._search), ("final", self._finish)):
                self.display.phase(name)
                with self.clock.phase(name):
                    try:
                        phase()
                    except FitError as error:
                        raise StudyFailed(f"{name}: {error}") from error
                self.summarise()
            self._stop_ray()  # beside the last writing
            self.display.phase("writing to MLflow")
            problems = self.end("finished", "FINISHED")
            self._check_held()
            replace(self.record, finished=True).write(self.context.folder)
        self._say_where(problems)

    def _connect(self, address: str | None) -> None:
        """Connects to Ray; while one is started, which takes seconds of waiting, the first shared stages are built.

        Whoever interrupts it waits for them, too: nothing may be built any more once another driver can have the study.
        """
        shared = None if is_object_store(self.context.stages_root) else self.context.storage
        beside = threading.Thread(target=self._begin, name="first stages")
        if shared is not None and starts_one(address):
            beside.start()
        try:
            self._started_ray = connect(address, shared)
        finally:
            if beside.ident is not None:
                beside.join()

    def _begin(self) -> None:
        with suppress(Exception):  # what fails fails again as these stages' turn comes, and is told then
            self.hooks.begin(self.context)

    def _note_charts(self, writer: Writer) -> None:
        self._charts = charts_of_trials(self.uri, writer.experiment_id, writer.parent_run(), self.data.objectives[0])
        if is_server(self.uri):  # it can be looked at while the study runs
            self.display.say(f"charts of trials: {self._charts}")

    def _prepare(self) -> None:
        prepared = self.hooks.prepare(self.shared)
        self.context.reporter("prepare").done()
        if prepared is not None:
            self._remember_stages("stages_prepare", prepared.stages)
            files = prepared.artifacts
            self.tracker.submit("the shared stages", lambda writer: writer.study_files({}, files))

    def _remember_stages(self, key: str, stages: list[dict[str, Any]]) -> None:
        known = self.ledger.remembered(key, [])
        # A session that resumes tells again of what an earlier one had built (tune.runner): that was fitted once.
        self.ledger.remember(key, [*known, *(stage for stage in stages if stage["reused"] or stage not in known)])

    def _search(self) -> None:
        if self.ledger.done():
            return
        searcher = LedgerSearcher(
            self.ledger,
            concurrent=self.search.concurrent_trials,
            failures_allowed=max(1, self.search.trials // 4),
            is_lost=is_lost,
            on_start=self.tracker.trial_started,
            on_end=self._trial_ended,
        )
        run_search(self.shared, self.hooks, searcher)
        if searcher.bad_input is not None:
            raise TrialRefused(searcher.bad_input)
        if not self.ledger.done():
            errors = self.ledger.given_up or ["no trial could be started"]
            raise StudyFailed(f"{len(errors)} trials failed for good; the last: {errors[-1]}")

    def _trial_ended(self, record: TrialRecord) -> None:
        fetch_trial(self.context, record.number)
        self.tracker.trial_ended(record)
        self._show_trials()
        if record.finished and record.seconds is not None:
            self.display.trial_took(record.seconds)
        self.display.say(trial_line(record, self.ledger.objectives))
        self.summarise()

    def _finish(self) -> None:
        selected = select(self.ledger.candidates(), self.search.rule, self.ledger.objectives)
        if selected.warning:
            self.display.say(f"WARNING: {selected.warning}")
        self.display.say(f"selected trial {selected.trial} by {selected.rule}: {params_text(selected.params)}")
        if self.outcome is None or self.outcome.export is None:
            self.outcome = Outcome(selected)
        self.final = near_gpus(self.hooks.finish, self.shared, selected)
        self.outcome = Outcome(selected, self.final.metrics, self.final.export)
        self.context.reporter("final").done()
        self._remember_stages("stages_final", self.final.stages)

    def summarise(self) -> list[str]:
        """Writes summary.json; the notes in it."""
        self._check_held()
        return self.summary.write(self.state, self.outcome)

    def _show_trials(self) -> None:
        self.display.trials(self.ledger.finished_count(), self.search.trials, self.search.concurrent_trials)

    def end(self, state: str, status: str) -> list[str]:
        """Writes the summary and what MLflow still lacks; lines that tell what could not be written there.

        state: of the study, for the summary. status: of its MLflow run.
        """
        self.state = state
        with self.clock.phase("tracking"):
            self._queue_rest(status)
            # Whoever interrupts a study wants it to end.
            problems = self.tracker.close(60.0, while_it_moves=True) if state == "finished" else self.tracker.close(15.0)
        # After the last call to MLflow, so that the trials' run ids are known.
        self.summarise()
        return problems

    def _queue_rest(self, status: str) -> None:
        self.tracker.catch_up(self.ledger.records(), self.ledger.remembered, whatever_waits=True)
        if self.outcome is not None and self.final is not None:
            chosen = self.outcome.selected
            tags = {"study": self.context.study, "trial": str(chosen.trial), "rule": chosen.rule}
            # A folder for each selected trial: an earlier version of the model keeps its own.
            bundle = f"bundle-{chosen.trial}"
            report, charts = self._report()
            files = {bundle: self.final.export, "report": report, **self.final.artifacts}
            metrics = {f"final/{name}": value for name, value in self.final.metrics.items()}
            selected = {f"migvis.selected_{name}": value for name, value in tags.items()}
            images = {**self.final.images, **charts}
            self.tracker.study_ended(status, metrics, images, files, selected, self.ledger.finished_count())
            self.tracker.register_selected(REGISTERED_MODEL, bundle, {**tags, "data_digest": self.context.data_digest})
        else:
            self.tracker.study_ended(status)

    def _report(self) -> tuple[Path, dict[str, Path]]:
        """The study's page, and the charts in it."""
        assert self.outcome is not None
        assert self.final is not None
        notes = self.summarise()
        return write_search_report(self.context, self.ledger, self.outcome, self.final.images, notes, self.revision)

    def close(self) -> None:
        """Stops Ray, and does not wait for ever; a second Ctrl-C may come here, and nothing is lost by it."""
        self._stop_ray()
        if self._stopping is not None:
            self._stopping.join(_RAY_ENDS_WITHIN)

    def _stop_ray(self) -> None:
        """Begins to stop the Ray of this study, whose processes take a second or two to end."""
        if self._started_ray and self._stopping is None:
            self._stopping = threading.Thread(target=disconnect, name="ray's end", daemon=True)
            self._stopping.start()

    def _say_where(self, problems: list[str]) -> None:
        """The last lines: where the studies, the pictures and the bundle are."""
        assert self.final is not None
        for problem in problems:
            print(f"WARNING: {problem}")
        for note in self.summarise():
            print(f"note: {note}")
        seconds = self.clock.seconds()
        phases = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
        print(f"done in {duration(sum(seconds.values()))} ({phases})")
        print(f"on test images:    {metrics_text(self.final.metrics, ['neural_r2', *self.ledger.objectives])}")
        print(f"browse it:         {command_to_browse(self.context.storage, self.uri, default_uri(self.context.storage))}")
        if self._charts:
            print(f"charts of trials:  {self._charts}")
        if self.final.main_image is not None:
            print(f"look at the edits: {self.final.main_image}")
        print(f"report:            {self.context.folder / 'report.html'}")
        print(f"exported bundle:   {self.final.export}")
        print(f"summary:           {self.context.folder / 'summary.json'}")
