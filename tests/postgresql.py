"""A real PostgreSQL server for tests: made in a folder of its own, on loopback, ended with the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@contextmanager
def postgresql_server() -> Iterator[str]:
    """The URL of the database `postgres` of a new server that asks for no password.

    Raises FileNotFoundError where none is installed.
    """
    if not FOLDERS:
        raise FileNotFoundError("PostgreSQL is not installed (Debian package postgresql)")
    # The server refuses to run as root; its socket's path must be short.
    user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        if user:
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        initdb = [FOLDERS[-1] / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [FOLDERS[-1] / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"]
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **user)
        try:
            deadline = time.monotonic() + 60
            while not (folder / f".s.PGSQL.{port}").exists() or not _answers(port):
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL did not start"
                time.sleep(0.05)
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()  # waits for its clients
            try:
                server.wait(2)
            except subprocess.TimeoutExpired:
                server.send_signal(3)  # it ends all of them
                server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int) -> bool:
    import psycopg

    try:
        psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", connect_timeout=5).close()
        return True
    except psycopg.OperationalError:
        return False
