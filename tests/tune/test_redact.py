"""What counts as a secret of a URI."""

from __future__ import annotations

import pytest

from migvis.errors import InputError
from tune.redact import has_password
from tune.submission import words_there


@pytest.mark.parametrize(
    ("uri", "has"),
    [
        ("postgresql://db/x", False),
        ("postgresql://me@db:5432/x", False),
        ("sqlite:////tmp/a.db", False),
        ("postgresql://me:pw@db/x", True),
        ("postgresql://:p@ss@db/x", True),
        ("postgresql://db/x?user=me&Password=pw", True),
        ("postgresql://db/x?password=", False),
    ],
)
def test_a_password_is_told_from_a_user_s_name(uri: str, has: bool) -> None:
    assert has_password(uri) is has


def test_a_database_s_password_is_never_among_the_words_of_a_job(tmp_path) -> None:
    words = ["--database", "postgresql://me@db/x", "--stages", "s3://bucket/x", "--resume"]
    assert words_there(words, tmp_path) == words
    for words in (["--database", "postgresql://me:secret@db/x"], ["--database=postgresql://me:secret@db/x"]):
        with pytest.raises(InputError, match="--database: a job's words are shown") as refusal:
            words_there(words, tmp_path)
        assert "secret" not in str(refusal.value)
    with pytest.raises(InputError, match="--stages stages: is a path on the cluster"):
        words_there(["--stages", "stages"], tmp_path)
