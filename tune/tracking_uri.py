"""Where tracking goes: the URI, without the credentials in it, and whether what is there can be written to."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import os
import socket
import ssl
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from migvis.errors import InputError
from tune.redact import redact

URI, USERNAME, PASSWORD = "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def default_uri(storage: Path) -> str:
    """The laptop's tracking database, beside the studies."""
    return f"sqlite:///{storage / 'mlflow.db'}"


def given_uri(option: str | None) -> str | None:
    """`--tracking-uri`, or what stands for it in the environment; None: neither."""
    return option or os.environ.get(URI) or None


def absolute(uri: str) -> str:
    """`uri` as it is understood from any folder: the path of a SQLite database made absolute."""
    path = uri.removeprefix("sqlite:///")
    return uri if path in (uri, ":memory:") else f"sqlite:///{Path(path).absolute()}"


def artifacts_folder(uri: str, storage: Path) -> Path | None:
    """Where a database's artifacts are kept: beside the studies; None: the server at `uri` decides."""
    return storage / "mlflow-artifacts" if urlsplit(uri).scheme.partition("+")[0] in _DATABASES else None


def check_tracking(uri: str, timeout: float = 5.0) -> None:
    """Raises InputError, one line and within some `timeout` seconds, where `uri` cannot be tracked to.

    A server is asked as MLflow will ask it, with the credentials of `uri` or of the environment.
    """
    shown = f"{URI if uri == os.environ.get(URI) else '--tracking-uri'} {redact(uri)}"
    spec = importlib.util.find_spec("mlflow")
    if spec is None or spec.origin is None:
        raise InputError("mlflow: the library is not installed; `import mlflow` finds a folder of that name only")
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        # What was taken for a port may be a part of a password.
        hint = "what follows the host's colon is no port; in a password, / is written %2F and @ %40"
        raise InputError(f"{shown.split()[0]}: not a URI: {hint}") from None
    if parts.scheme in ("", "file"):
        raise InputError(f"{shown}: expected sqlite:///FILE, http(s)://HOST:PORT or a database; MLflow keeps no plain folders")
    if parts.scheme == "sqlite":
        folder = Path(uri.removeprefix("sqlite:///")).parent
        if not os.access(folder, os.W_OK):
            raise InputError(f"{shown}: the folder {folder} does not exist or cannot be written")
        return
    if not parts.hostname:
        return  # a scheme of a hosted service, which MLflow resolves itself
    try:
        if parts.scheme in ("http", "https"):
            _check_server(parts, timeout)
        else:
            port = port or {"postgresql": 5432, "mysql": 3306}.get(parts.scheme.partition("+")[0], 1433)
            socket.create_connection((parts.hostname, port), timeout).close()
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last one for a host's name that cannot be one
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown}: cannot be reached: {reason}") from None
    except PermissionDenied as denied:
        raise InputError(f"{shown}: {denied}") from None


class PermissionDenied(Exception):
    """A server is there, but does not let this user in; the message says why."""


def _check_server(parts: SplitResult, timeout: float) -> None:
    """Raises OSError where no MLflow server answers, PermissionDenied where it refuses the user or the host name."""
    status, _ = _get(parts, "/health", timeout)
    if status >= 500:
        raise OSError(f"the server answers {status}")
    if status >= 400 and status not in (401, 403):
        raise OSError(f"it answers {status} at /health, as no MLflow server does")
    # The server's health is open to all; this is not. An experiment that does not exist is answered by 404.
    status, body = _get(parts, "/api/2.0/mlflow/experiments/get-by-name?experiment_name=migvis", timeout)
    if status == 401 and _authorization(parts):
        raise PermissionDenied(f"the server does not accept this user and password ({USERNAME}, {PASSWORD})")
    if status == 401:
        raise PermissionDenied(f"the server asks who you are: set {USERNAME} and {PASSWORD}")
    if status == 403:
        raise PermissionDenied(f"the server refuses: {redact(body)}")
    if status >= 500:
        raise OSError(f"the server answers {status}")


def _get(parts: SplitResult, path: str, timeout: float) -> tuple[int, str]:
    """The status and the beginning of the answer, on one line."""
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=_tls())
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path.rstrip("/") + path, headers=_authorization(parts))
        response = connection.getresponse()
        return response.status, " ".join(response.read(300).decode(errors="replace").split())
    finally:
        connection.close()


def _tls() -> ssl.SSLContext:
    """What MLflow will trust: the variables are its own."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        return ssl._create_unverified_context()
    return ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None)


def _authorization(parts: SplitResult) -> dict[str, str]:
    """The header that MLflow will send: of the URI's credentials, else of those in the environment; empty: none."""
    user, password = parts.username, parts.password
    if user is not None:
        user, password = unquote(user), unquote(password or "")
    else:
        user, password = os.environ.get(USERNAME), os.environ.get(PASSWORD)
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
