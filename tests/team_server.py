"""The team's tracking server as mlflow/serve_team.sh starts it, on the real services of tests/services.py."""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import services

SCRIPT = Path(__file__).resolve().parents[1] / "mlflow" / "serve_team.sh"
LAB_HOST = "mlflow.lab.example"
"""A name of the server that no resolver knows: requests give it in their Host header."""


def clean_environment() -> dict[str, str]:
    """This environment without what would lead to another server, database or bucket."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PG", "AWS_"))}


@dataclass
class TeamServer:
    """The server's address, the settings that it is started with, and one user who is no administrator."""

    postgres: services.Postgres
    store: services.ObjectStore
    folder: Path
    user: str = "ann"
    password: str = field(default_factory=lambda: f"user-{secrets.token_urlsafe(12)}", repr=False)
    admin_password: str = field(default_factory=lambda: f"admin-{secrets.token_urlsafe(12)}", repr=False)

    def __post_init__(self) -> None:
        self.port = services.free_port()
        self.database, self.bucket = self.postgres.create_database(), self.store.create_bucket()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a user of the server sets."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": self.user,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    @property
    def server_environment(self) -> dict[str, str]:
        """What serve_team.sh is given."""
        store = {name: value for name, value in self.store.environment.items() if name != "AWS_ENDPOINT_URL"}
        return {
            **self.postgres.environment,
            **store,
            "PGDATABASE": self.database,
            "BUCKET": f"s3://{self.bucket}/runs",
            "TRACKING_URL": f"http://{LAB_HOST},{self.uri}",
            "PORT": str(self.port),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.admin_password,
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts the server and waits until it answers; afterwards none of its processes is left."""
        log = self.folder / "server.log"
        with services.process(["bash", SCRIPT], log, env={**clean_environment(), **self.server_environment}) as child:
            self._process = child
            try:
                services.wait_until(lambda: child.poll() is not None or services.answers(self.port), "the team's server", 900)
                assert child.poll() is None, log.read_text()[-3000:]
                yield
            finally:
                self.signal(signal.SIGCONT)
                self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all processes of the server."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def add_user(self) -> None:
        """Creates `user`, as the administrator."""
        body = {"username": self.user, "password": self.password}
        status, answer = self.request("/api/2.0/mlflow/users/create", ("admin", self.admin_password), body=body)
        assert status == 200, answer

    def request(
        self,
        path: str,
        user: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        """The status and the text of an answer, to a GET or, with a body, to a POST."""
        sent = dict(headers or {})
        if user is not None:
            sent["Authorization"] = f"Basic {base64.b64encode(':'.join(user).encode()).decode()}"
        if body is not None:
            sent["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()
