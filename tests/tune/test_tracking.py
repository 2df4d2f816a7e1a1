from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from optuna.exceptions import StorageInternalError

from tune.browsing import charts_of_trials, command_to_browse
from tune.tracking import Tracker
from tune.tracking_uri import absolute, artifacts_folder, default_uri
from tune.tracking_writer import Writer, create_database, run_key, sent_key
from tune.trial_record import TrialRecord
from tune.trial_result import TrialResult


def writer_of(storage: Path, memory: dict, study_id: str = "id-a", uri: str = "", seed: int = 5, **tags: str) -> Writer:
    uri = uri or default_uri(storage)
    return Writer(
        uri,
        artifacts_folder(uri, storage),
        "study-a",
        study_id=study_id,
        seed=seed,
        tags={"migvis.data_digest": "d", "migvis.seed": "0", "mlflow.source.git.commit": "c", **tags},
        params={"vae.pc_weight": 5e-5, "vae.epochs": 150, "critic.infonce_batch": 64},
        recall=memory.get,
        remember=memory.__setitem__,
    )


def record_of(number: int, folder: Path, state: str = "COMPLETE", **changes) -> TrialRecord:
    from PIL import Image

    picture = folder / f"edits-{number}.png"
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(picture)
    weights = folder / f"vae-{number}.safetensors"
    weights.write_bytes(b"weights")
    result = TrialResult(
        {"neural_r2": 0.9, "mi_bound[1]": 1.5, "undefined": float("nan")},
        constraint=-0.1,
        per_seed={"neural_r2": [0.8, 1.0]},
        curves={"vae/loss": [(0, 2.0), (50, 1.0)]},
        images={"edits/group 1": picture},
        artifacts={"models/vae": weights},
        stages=[{"kind": "vae", "key": "k1", "seconds": 1.0, "reused": False}],
        seconds={"vae": 1.0},
    )
    values = {
        "params": {"pc_weight": 1e-3, "infonce_batch": 32},
        "result_json": result.to_json(),
        "constraint": -0.1,
        "attempt": 0,
    }
    return TrialRecord(**{"number": number, "state": state, "error": None, "seconds": 1.0, **values, **changes})


def test_a_study_as_mlflow_shows_it(storage) -> None:
    memory: dict = {}
    writer = writer_of(storage, memory)
    record = record_of(3, storage)
    writer.trial_started(record)
    client = writer.client
    assert client.get_run(memory[run_key(3)]).info.status == "RUNNING"
    writer.trial_ended(record)
    run = client.get_run(memory[run_key(3)])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == memory["mlflow_parent"]
    assert run.data.tags["migvis.state"] == "COMPLETE"
    assert run.data.tags["migvis.ended"] == "complete"
    assert run.data.tags["stage.vae.0"] == "k1"
    assert run.data.tags["migvis.data_digest"] == "d"
    assert run.data.params["vae.pc_weight"] == run.data.params["pc_weight"] == "0.001"
    assert run.data.params["critic.infonce_batch"] == "32"
    assert run.data.params["vae.epochs"] == "150"
    assert run.data.metrics["neural_r2"] == 0.9
    assert run.data.metrics["mi_bound_1"] == 1.5
    assert "undefined" not in run.data.metrics
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "vae/loss")] == [(0, 2), (50, 1)]
    per_seed = client.get_metric_history(run.info.run_id, "per_seed/neural_r2")
    assert [(point.step, point.value) for point in per_seed] == [(5, 0.8), (6, 1.0)]
    assert run.info.artifact_uri.startswith((storage / "mlflow-artifacts").as_uri())
    assert [file.path for file in client.list_artifacts(run.info.run_id, "models/vae")] == ["models/vae/vae-3.safetensors"]
    assert len(client.list_artifacts(run.info.run_id, "images")) >= 1
    assert memory[sent_key(3)] is True


def test_writing_twice_leaves_one_of_each(storage) -> None:
    record = record_of(0, storage)
    memory: dict = {}
    writer_of(storage, memory).trial_ended(record)
    run_id = memory[run_key(0)]
    # The driver was killed before it remembered anything: the run is found again by its tags.
    writer = writer_of(storage, {})
    writer.trial_ended(record)
    client = writer.client
    runs = client.search_runs([client.get_run(run_id).info.experiment_id])
    assert len(runs) == 2  # the study and its trial
    assert len(client.get_metric_history(run_id, "vae/loss")) == 2
    images = client.list_artifacts(run_id, "images")
    writer.trial_ended(record)
    assert len(client.list_artifacts(run_id, "images")) == len(images)


def test_two_studies_of_one_name_on_one_server_do_not_mix(storage) -> None:
    first, second = {}, {}
    writer_of(storage, first, "id-a").trial_ended(record_of(0, storage))
    writer = writer_of(storage, second, "id-b")
    writer.trial_ended(record_of(0, storage))
    assert not set(first.values()) & set(second.values()) - {True}
    parent = writer.client.get_run(second["mlflow_parent"])
    assert (parent.data.tags["migvis.study"], parent.data.tags["migvis.study_id"]) == ("study-a", "id-b")


def test_what_may_change_is_a_tag_that_a_later_session_writes_anew(storage) -> None:
    memory: dict = {}
    writer_of(storage, memory, **{"migvis.search.trials": "12"}).study_ended("FINISHED", {}, {}, {}, {}, 12)
    # Nothing is remembered: the run is found again, and written to with the same parameters.
    writer = writer_of(storage, {}, **{"migvis.search.trials": "24"})
    writer.study_started()
    run = writer.client.get_run(memory["mlflow_parent"])
    assert run.data.tags["migvis.search.trials"] == "24"
    assert run.info.status == "RUNNING"


def test_artifacts_of_another_database_are_kept_in_the_storage_too(storage, blank_mlflow, tmp_path_factory, monkeypatch) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    (elsewhere / "own.db").write_bytes(blank_mlflow.read_bytes())
    uri = absolute("sqlite:///own.db")
    assert uri == f"sqlite:///{elsewhere / 'own.db'}"
    writer = writer_of(storage, memory := {}, uri=uri)
    writer.trial_ended(record_of(0, storage))
    assert writer.client.get_run(memory[run_key(0)]).info.artifact_uri.startswith((storage / "mlflow-artifacts").as_uri())
    assert [path.name for path in elsewhere.iterdir()] == ["own.db"]
    page = charts_of_trials(uri, writer.experiment_id, writer.parent_run(), "selectivity")
    (trials,) = parse_qs(urlsplit(page).fragment.partition("?")[2])["searchFilter"]
    assert [run.info.run_id for run in writer.client.search_runs([writer.experiment_id], trials)] == [memory[run_key(0)]]
    destination = f"--artifacts-destination {storage / 'mlflow-artifacts'}"
    assert destination in command_to_browse(storage, uri, default_uri(storage))
    postgres = command_to_browse(storage, "postgresql://me:secret@db/x", default_uri(storage))
    assert postgres == f"mlflow server --backend-store-uri postgresql://db/x {destination} --host 127.0.0.1 --workers 1"
    assert command_to_browse(storage, "http://me:secret@h:5", default_uri(storage)) == "open http://h:5"
    assert artifacts_folder("http://h:5", storage) is None


def test_failed_trial_and_a_later_attempt(storage) -> None:
    memory: dict = {}
    writer = writer_of(storage, memory)
    writer.trial_ended(record_of(1, storage, state="FAIL", result_json=None, error="non-finite loss"))
    run_id = memory[run_key(1)]
    assert writer.client.get_run(run_id).info.status == "FAILED"
    assert writer.client.get_run(run_id).data.tags["migvis.error"] == "non-finite loss"
    again = record_of(1, storage, attempt=1)
    writer.trial_started(again)
    writer.trial_ended(again)
    assert memory[run_key(1)] == run_id
    assert writer.client.get_run(run_id).info.status == "FINISHED"


def test_study_end_and_registered_model(storage) -> None:
    memory: dict = {}
    writer = writer_of(storage, memory)
    bundle = storage / "bundle"
    bundle.mkdir()
    (bundle / "vae.safetensors").write_bytes(b"w")
    writer.study_ended("FINISHED", {"final/neural_r2": 0.95}, {}, {}, {"migvis.selected": "1"}, 12)
    writer.study_ended("FINISHED", {"final/neural_r2": 0.9}, {}, {"bundle": bundle}, {"migvis.selected": "3"}, 24)
    assert writer.register("migvis", "bundle", {"study": "study-a", "trial": "3"}) == "1"
    assert writer.register("migvis", "bundle", {"study": "study-a", "trial": "3"}) == "1"
    assert writer.register("migvis", "bundle", {"study": "study-a", "trial": "4"}) == "2"
    client = writer.client
    version = client.get_model_version("migvis", "1")
    assert version.tags == {"study": "study-a", "trial": "3"}
    assert version.source.endswith("/bundle")
    parent = client.get_run(memory["mlflow_parent"])
    assert parent.data.metrics["final/neural_r2"] == 0.9
    assert parent.data.tags["migvis.selected"] == "3"


class RecordingWriter:
    """Stands where a Writer stands; `away` calls fail as if the server were not there."""

    uri = "http://user:secret@server:1"

    def __init__(self, away: int = 0, error: Exception | None = None) -> None:
        self.away, self.error, self.calls = away, error or ConnectionError("away"), []

    def __getattr__(self, name: str):
        def call(*arguments):
            if self.away > 0:
                self.away -= 1
                raise self.error
            self.calls.append((name, *arguments))

        return call


@pytest.mark.parametrize("error", [ConnectionError("refused"), StorageInternalError("the study's own database")])
def test_server_away_means_late_not_never(tmp_path, error) -> None:
    writer = RecordingWriter(away=4, error=error)
    tracker = Tracker(writer, first_wait=0.01)
    tracker.start = tracker._thread.start
    tracker.start()
    for number in range(3):
        tracker.trial_ended(record_of(number, tmp_path))
    assert tracker.close(10) == []
    assert [call[1].number for call in writer.calls] == [0, 1, 2]


def test_close_without_start_waits_for_nothing(tmp_path) -> None:
    tracker = Tracker(RecordingWriter())
    tracker.trial_ended(record_of(0, tmp_path))
    begin = time.monotonic()
    assert tracker.close(10) == []
    assert time.monotonic() - begin < 1


def test_close_has_a_time_limit_and_says_so(tmp_path) -> None:
    tracker = Tracker(RecordingWriter(away=10**6), first_wait=0.01)
    tracker._thread.start()
    tracker.trial_ended(record_of(0, tmp_path))
    begin = time.monotonic()
    (line,) = tracker.close(0.3)
    assert time.monotonic() - begin < 3
    assert "--resume" in line
    assert "secret" not in line


def test_close_waits_for_a_slow_server_as_long_as_it_writes(tmp_path) -> None:
    class Slow(RecordingWriter):
        def __getattr__(self, name: str):
            time.sleep(0.2)
            return super().__getattr__(name)

    writer = Slow()
    tracker = Tracker(writer)
    tracker._thread.start()
    for number in range(10):
        tracker.trial_ended(record_of(number, tmp_path))
    assert tracker.close(1.0, while_it_moves=True) == []
    assert len(writer.calls) == 10

    strict = Tracker(Slow())
    strict._thread.start()
    for number in range(10):
        strict.trial_ended(record_of(number, tmp_path))
    (line,) = strict.close(0.5)
    assert "not everything has arrived" in line


def test_error_that_does_not_pass_is_told_and_skipped(tmp_path) -> None:
    error = FileNotFoundError("no picture.png at postgresql://me:pw@db")
    tracker = Tracker(RecordingWriter(away=1, error=error), first_wait=0.01)
    tracker._thread.start()
    tracker.trial_ended(record_of(0, tmp_path))
    tracker.trial_ended(record_of(1, tmp_path))
    (line,) = tracker.close(10)
    assert "trial 0" in line
    assert "picture.png" in line
    assert "pw" not in line


class Refused(OSError):
    """An upload's error, as requests raises it: an OSError with a response."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} for url: http://server/x")
        self.response = type("Response", (), {"status_code": status})


@pytest.mark.parametrize(("status", "passes"), [(403, False), (404, False), (503, True), (429, True)])
def test_an_upload_that_is_refused_is_told_at_once_and_one_that_may_pass_is_repeated(tmp_path, status, passes) -> None:
    writer, said = RecordingWriter(away=2, error=Refused(status)), []
    tracker = Tracker(writer, first_wait=0.01, say=said.append)
    tracker._thread.start()
    for number in range(3):
        tracker.trial_ended(record_of(number, tmp_path))
    problems = tracker.close(10)
    assert [call[1].number for call in writer.calls] == ([0, 1, 2] if passes else [2])
    assert len(problems) == (0 if passes else 2)
    assert said == [f"WARNING: {line}" for line in problems[:1]]
    assert "secret" not in "".join(said)


def test_full_queue_is_caught_up_from_the_study(tmp_path) -> None:
    writer = RecordingWriter()
    tracker = Tracker(writer, capacity=2)
    records = [record_of(number, tmp_path) for number in range(4)]
    for record in records:
        tracker.trial_ended(record)  # the thread does not run yet: two fit
    tracker._thread.start()
    while len(writer.calls) < 2:
        time.sleep(0.01)
    memory = {sent_key(0): True}
    tracker.catch_up(records, memory.get)
    assert tracker.close(10) == []
    assert [call[1].number for call in writer.calls] == [0, 1, 2, 3]


def test_the_end_of_a_study_is_written_whatever_waits(tmp_path) -> None:
    writer = RecordingWriter(away=1)
    tracker = Tracker(writer, capacity=2, first_wait=0.01)
    records = [record_of(number, tmp_path) for number in range(6)]
    for record in records:
        tracker.trial_ended(record)
    tracker.catch_up(records, lambda key: None)
    tracker.catch_up(records, lambda key: None, whatever_waits=True)
    tracker.study_ended("FINISHED")
    tracker.register_selected("migvis", "bundle", {})
    tracker._thread.start()
    assert tracker.close(10) == []
    assert [call[0] for call in writer.calls] == ["trial_ended"] * 6 + ["study_ended", "register"]
    assert [call[1].number for call in writer.calls[:6]] == list(range(6))


def test_trial_that_will_be_tried_again_keeps_its_run_open(tmp_path) -> None:
    writer = RecordingWriter()
    tracker = Tracker(writer)
    tracker._thread.start()
    tracker.trial_ended(record_of(0, tmp_path, state="WAITING", result_json=None))
    tracker.close(10)
    assert writer.calls == []


def test_database_is_created_whole_and_once(blank_mlflow) -> None:
    before = blank_mlflow.read_bytes()
    create_database(blank_mlflow, blank_mlflow.parent)
    assert blank_mlflow.read_bytes() == before
    assert not list(blank_mlflow.parent.glob(".mlflow.db.*"))
