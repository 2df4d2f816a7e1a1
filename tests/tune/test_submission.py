"""What a command line becomes on its way to a cluster. That it arrives is tested in tests/cluster."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest

from migvis.errors import InputError
from tune.browsing import charts_of_trials, command_to_browse
from tune.ray_session import job_server
from tune.run import main
from tune.study import Request
from tune.submission import words_there
from tune.submitted import Submitted, installed_versions, submitted
from tune.summary import git_revision

NOTE = Submitted("http://head:8265", "abc-dirty", {"python": "3.11.7", "ray": "2.60.0"})


@pytest.mark.parametrize(
    ("option", "environment", "expected"),
    [
        ("http://head:8265/", None, "http://head:8265"),
        (None, "https://head", "https://head"),
        ("auto", "http://head:8265", None),
        (None, "auto", None),
        ("head:6379", None, None),
        (None, None, None),
    ],
)
def test_an_http_address_is_one_that_jobs_are_sent_to(monkeypatch, option, environment, expected) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert job_server(option) == expected


def test_words_travel_without_the_address_and_with_the_files_that_they_name(tmp_path) -> None:
    config, own = tmp_path / "my config.yaml", tmp_path / "mine.py"
    config.write_text("preset: quick\n")
    own.write_text("study = 1\n")
    folder = tmp_path / "job"
    folder.mkdir()
    words = ["--address", "http://head", f"--config={config}", str(own), "--set", "vae.kl_weight=0.01", "--study", "a b"]
    there = words_there([*words, "--address=http://head", "--storage", "/srv/x"], folder)
    given = ["--config", "given/0/my config.yaml", "given/1/mine.py"]
    assert there == [*given, "--set", "vae.kl_weight=0.01", "--study", "a b", "--storage", "/srv/x"]
    assert (folder / there[1]).read_text() == "preset: quick\n"
    assert (folder / there[2]).read_text() == "study = 1\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--data", "set.h5"], "--data set.h5: is a path on the cluster"),
        (["--storage=studies"], "--storage studies: is a path on the cluster"),
        (["--database", "sqlite:///studies.db"], "--database sqlite:///studies.db: a path on the cluster begins with sqlite:////"),
        (["--tracking-uri=sqlite:///mlflow.db"], "--tracking-uri sqlite:///mlflow.db: a path on the cluster begins with sqlite:////"),
        (["--database", "sqlite+pysqlite:///a/b.db"], "a path on the cluster begins with sqlite:////"),
        (["--config", "/no/such.yaml"], "/no/such.yaml: cannot be read: No such file or directory"),
        (["--tracking-uri", "http://me:secret@host:5000"], "--tracking-uri: a job's words are shown"),
    ],
)
def test_words_that_do_not_fit_a_cluster(tmp_path, words, part) -> None:
    with pytest.raises(InputError, match=part) as caught:
        words_there(words, tmp_path)
    assert "secret" not in str(caught.value)


def test_a_database_with_a_path_of_the_cluster_travels(tmp_path) -> None:
    words = ["--database", "sqlite:////srv/studies.db", "--tracking-uri", "sqlite:////srv/mlflow.db"]
    assert words_there(words, tmp_path) == words


def test_cluster_that_is_not_there_is_one_line(capsys) -> None:
    assert main(["--address", "http://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err == "error: --address http://127.0.0.1:9: no Ray cluster answers: Connection refused\n"


def test_a_job_knows_what_it_is_and_whence(monkeypatch, tmp_path) -> None:
    NOTE.write(tmp_path)
    assert submitted(tmp_path) == NOTE
    assert git_revision(tmp_path) == "abc-dirty"
    assert submitted() is None
    assert Request().resume_line("s") == "python tune/run.py --study s --resume"
    monkeypatch.setenv("UV", "/usr/bin/uv")  # as `uv run` does
    assert Request().resume_line("s") == "uv run python tune/run.py --study s --resume"
    monkeypatch.setattr("tune.study.submitted", lambda: NOTE)
    assert Request().resume_line("s") == "python tune/run.py --study s --resume --address http://head:8265"
    monkeypatch.setattr("tune.browsing.submitted", lambda: NOTE)
    monkeypatch.setattr("getpass.getuser", lambda: "lab")
    way = "open http://127.0.0.1:5000 through: ssh -NL 5000:127.0.0.1:5000 lab@head"
    assert command_to_browse(tmp_path, "http://127.0.0.1:5000", "") == way
    assert command_to_browse(tmp_path, "http://mlflow.lab:5000", "") == "open http://mlflow.lab:5000"
    monkeypatch.setattr("tune.browsing.submitted", lambda: replace(NOTE, address="http://127.0.0.1:8265"))
    assert command_to_browse(tmp_path, "http://127.0.0.1:5000", "").endswith("lab@HEAD")


def test_the_page_of_charts_asks_for_the_trials_of_this_study_alone_and_unfolded() -> None:
    page = urlsplit(charts_of_trials("http://me:secret@mlflow.lab:5000", "7", "abc", "selectivity"))
    assert (page.scheme, page.netloc) == ("http", "mlflow.lab:5000")
    place, _, view = page.fragment.partition("?")
    assert place == "/experiments/7/runs"
    assert parse_qs(view) == {
        "compareRunsMode": ["CHART"],
        "workflowType": ["machine_learning"],
        "searchFilter": ["tags.`mlflow.parentRunId` = 'abc'"],
        "orderByKey": ["metrics.`selectivity`"],
        "orderByAsc": ["false"],
    }
    assert charts_of_trials("sqlite:///mlflow.db", "1", "s", "m").startswith("http://127.0.0.1:5000/#/experiments/1/runs?")


def test_other_versions_are_named() -> None:
    assert NOTE.differences(NOTE.versions) == ""
    assert NOTE.differences({"python": "3.11.7"}) == "ray none here, 2.60.0 there"
    versions = installed_versions()
    assert {"python", "torch", "ray", "optuna", "mlflow"} <= set(versions)
    assert "none" not in versions.values()
