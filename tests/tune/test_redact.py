"""What counts as a secret of a URI, and that none is shown, stored or sent."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator

import pytest

from migvis.errors import InputError
from tune.database import has_password, without_password
from tune.job import Job, check_answers
from tune.objects import open_objects
from tune.redact import redact
from tune.submission import words_there


@pytest.mark.parametrize(
    ("uri", "has"),
    [
        ("postgresql://db/x", False),
        ("postgresql://me@db:5432/x", False),
        ("sqlite:////tmp/a.db", False),
        ("postgresql://db:5432/x", False),
        ("postgresql://me:pw@db/x", True),
        ("postgresql://me:se/cret@db/x", True),
        ("postgresql://me:1/cret@db/x", True),
        ("postgresql://me:se cret@db/x", True),
        ("postgresql://db/x?sslkey=k&sslpassword=pw", True),
        ("postgresql://:p@ss@db/x", True),
        ("postgresql://db/x?user=me&Password=pw", True),
        ("postgresql://db/x?password=", False),
    ],
)
def test_a_password_is_told_from_a_user_s_name(uri: str, has: bool) -> None:
    assert has_password(uri) is has


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:se/cret@h/db", "postgresql://h/db"),
        ("postgresql://ann:se cret@h/db", "postgresql://h/db"),
        ("postgresql+psycopg://ann:12/cret@h:5432/db", "postgresql+psycopg://h:5432/db"),
        ("postgresql://:/cret@h/db", "postgresql://h/db"),
        ("http://ann:p@ss@h:5/x", "http://h:5/x"),
        ("http://ann:sec/ret@h:5 and http://b:c/d@i", "http://h:5 and http://i"),
        ("s3://b/p?secret_key=abc&x=y", "s3://b/p?secret_key=&x=y"),
        ("s3://b/p?x=y&aws_secret_access_key=abc", "s3://b/p?x=y&aws_secret_access_key="),
        ("postgresql://h/db?sslpassword=abc", "postgresql://h/db?sslpassword="),
    ],
)
def test_what_is_secret_is_left_out(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/a@b/x.db",
        "sqlite:////home/a:b@c/x.db",
        "s3://bucket/a@b",
        "http://host:5000/a@b",
        "http://host:5000 and a@b",
        "http://host:5000: cannot be reached: ask a@b",
        "http://host: cannot be reached: ask a@b",
        "postgresql://host:5432/x: cannot be reached: ask a@b",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_a_database_s_url_is_stored_without_its_password(monkeypatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "before")
    for url in ("postgresql://ann:se/cret@h/db?sslmode=require", "postgresql://ann@h/db?sslmode=require&password=se/cret"):
        assert without_password(url) == "postgresql://ann@h/db?sslmode=require"
        assert os.environ["PGPASSWORD"] == "se/cret"
    # No variable can give it to libpq, which would ask for it at the terminal.
    with pytest.raises(InputError, match="--database: sslpassword would be stored") as refusal:
        without_password("postgresql://ann@h/db?sslkey=k&sslpassword=cret")
    assert "cret" not in str(refusal.value)


@pytest.mark.parametrize("url", ["postgresql://ann:p@ss:cret@h/db", "oracle://ann:se/cret@h/db"])
def test_a_url_that_is_none_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(InputError, match=r"^--database ") as refusal:
        without_password(url)
    assert "\n" not in str(refusal.value)
    assert "cret" not in str(refusal.value)


def test_the_key_of_an_object_store_is_not_shown() -> None:
    with pytest.raises(InputError, match="--stages s3://b/p") as refusal:
        open_objects("s3://b/p?secret_key=abc")
    assert "abc" not in str(refusal.value)


class Away:
    """A client whose cluster does not answer, and says so with its address."""

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        raise OSError("cannot connect to http://ann:cret@127.0.0.1:9")
        yield


def test_an_address_is_shown_without_its_password() -> None:
    address, out = "http://ann:cret@127.0.0.1:9", io.StringIO()
    with pytest.raises(InputError, match=r"--address http://127.0.0.1:9: no Ray cluster") as refusal:
        check_answers(address)
    assert "cret" not in str(refusal.value)
    assert Job(Away(), address, "job", out=out, patience=0).follow() == 1
    assert "job at http://127.0.0.1:9;" in out.getvalue()
    assert "cret" not in out.getvalue()


def test_a_database_s_password_is_never_among_the_words_of_a_job(tmp_path) -> None:
    words = ["--database", "postgresql://me@db/x", "--stages", "s3://bucket/x", "--resume"]
    assert words_there(words, tmp_path) == words
    for words in (
        ["--database", "postgresql://me:secret@db/x"],
        ["--database=postgresql://me:secret@db/x"],
        ["--database", "postgresql://me:1/secret@db/x"],
        ["--stages", "s3://bucket/x?secret_key=secret"],
    ):
        with pytest.raises(InputError, match=r"--(database|stages): a job's words are shown") as refusal:
            words_there(words, tmp_path)
        assert "secret" not in str(refusal.value)
    with pytest.raises(InputError, match="--stages stages: is a path on the cluster"):
        words_there(["--stages", "stages"], tmp_path)
