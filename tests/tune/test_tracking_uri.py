from __future__ import annotations

import base64
import http.server
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from migvis.errors import InputError
from tune.redact import redact
from tune.tracking_uri import check_tracking, default_uri, given_uri
from tune.tracking_writer import import_mlflow


def test_redact() -> None:
    assert (
        redact("at postgresql+psycopg2://me:pw@db:5432/x and http://a:b@h") == "at postgresql+psycopg2://db:5432/x and http://h"
    )
    assert redact("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"
    assert redact("http://me:p@ss@h:5/x") == "http://h:5/x"
    assert redact("postgresql://h/d?user=me&password=pw&sslmode=require") == "postgresql://h/d?user=me&password=&sslmode=require"


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:secret@127.0.0.1:9",
        "postgresql://user:secret@127.0.0.1:9/x",
        "sqlite:////no/such/folder/m.db",
        "mlruns",
        "http://h:x",
        "http://user:sec/ret@h:5",
    ],
)
def test_unreachable_is_one_line_within_seconds(uri) -> None:
    begin = time.monotonic()
    with pytest.raises(InputError) as caught:
        check_tracking(uri, timeout=2)
    assert time.monotonic() - begin < 5
    assert "\n" not in str(caught.value)
    assert "sec" not in str(caught.value).replace("seconds", "")
    assert str(caught.value).startswith("--tracking-uri")


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    """A server whose paths have the prefixes of the faults that they show; /guarded asks for the user `me`."""
    me = f"Basic {base64.b64encode(b'me:p@ss').decode()}"

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            prefix, _, rest = self.path.removeprefix("/").partition("/")
            status = {"elsewhere": 500, "another-service": 404}.get(prefix, 200)
            if prefix == "guarded" and rest != "health" and self.headers["Authorization"] != me:
                status = 401
            if prefix == "renamed" and rest != "health":
                status = 403
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"Invalid Host header" if prefix == "renamed" else b"")

        def log_message(self, *arguments) -> None:
            pass

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_answers_is_reachable(server, tmp_path) -> None:
    check_tracking(f"http://{server}/")
    with pytest.raises(InputError, match="500"):
        check_tracking(f"http://{server}/elsewhere")
    with pytest.raises(InputError, match="404 at /health, as no MLflow server"):
        check_tracking(f"http://{server}/another-service")
    with pytest.raises(InputError, match="refuses: Invalid Host header"):
        check_tracking(f"http://{server}/renamed")
    check_tracking(default_uri(tmp_path))


def test_credentials_are_checked_and_never_shown(server, monkeypatch) -> None:
    uri = f"http://{server}/guarded"
    with pytest.raises(InputError, match="asks who you are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        check_tracking(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wr0ng")
    with pytest.raises(InputError, match="does not accept this user and password") as caught:
        check_tracking(uri)
    assert "wr0ng" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p@ss")
    check_tracking(uri)
    # Those of the URI come first, as they do for MLflow.
    with pytest.raises(InputError, match="does not accept") as caught:
        check_tracking(f"http://me:wr0ng@{server}/guarded")
    assert "wr0ng" not in str(caught.value)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    check_tracking(f"http://me:p%40ss@{server}/guarded")


def test_the_environment_names_the_server_where_the_command_line_does_not(server, monkeypatch) -> None:
    assert given_uri(None) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{server}/elsewhere")
    assert given_uri(None) == f"http://{server}/elsewhere"
    assert given_uri("sqlite:///a.db") == "sqlite:///a.db"
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI http://[\d.:]+/elsewhere: cannot be reached"):
        check_tracking(f"http://{server}/elsewhere")


def test_a_folder_named_mlflow_is_not_the_library(tmp_path, monkeypatch) -> None:
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name == "mlflow" or name.startswith("mlflow.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match="not installed"):
        import_mlflow()
    with pytest.raises(InputError, match="not installed"):
        check_tracking(default_uri(tmp_path))
    del sys.modules["mlflow"]
