"""Real services for tests, installed from packages, each in a folder of its own, on loopback ports of its own.

PostgreSQL (Debian's `postgresql`), and an S3-compatible object store: OpenStack Swift with its `s3api` (of the dev group).
"""

from __future__ import annotations

import getpass
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PATIENCE = 300.0
"""Seconds that a service may take to start or to stop on a busy machine."""


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether something listens on this loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_until(holds: Callable[[], bool], what: str, patience: float = _PATIENCE, every: float = 0.1) -> None:
    """Returns as soon as `holds()`. Raises TimeoutError, naming `what`, after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {patience:.0f} s")
        time.sleep(every)


@contextmanager
def process(
    command: Sequence[str | Path], log: Path, stop: signal.Signals = signal.SIGTERM, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in a process group of its own, its output in `log`; afterwards none of the group is left."""
    with open(log, "ab") as output:
        child = subprocess.Popen(
            [str(word) for word in command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options
        )
    try:
        yield child
    finally:
        end_group(child, stop)


def end_group(child: subprocess.Popen[bytes], stop: signal.Signals = signal.SIGTERM) -> None:
    """Sends `stop` to a process, and SIGKILL to what is left of its group 30 s later."""
    if child.poll() is None:
        child.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            child.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _wait_for_port(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    def listens() -> bool:
        if child.poll() is not None:
            raise RuntimeError(f"{log.stem} ended with {child.returncode}: {log.read_text(errors='replace')[-2000:]}")
        return answers(port)

    wait_until(listens, f"{log.stem} on port {port}")


def missing_postgres() -> str:
    """Why PostgreSQL cannot be started here; empty: it can."""
    if not _postgres_programs():
        return "PostgreSQL's initdb is not installed (Debian: postgresql)"
    if os.geteuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        return "PostgreSQL does not run as root, and there is no user `postgres`"
    return ""


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "/nowhere")]
    return found[-1].parent if found[-1].exists() else None


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL: its superuser's name and password, and how libpq finds it."""

    port: int
    user: str
    password: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which libpq, so psql, pg_dump and `postgresql:///NAME`, connect."""
        return {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": self.user, "PGPASSWORD": self.password}

    def uri(self, database: str) -> str:
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def address(self, database: str) -> str:
        """A database's URI without the password."""
        return self.uri(database).replace(f":{self.password}", "")

    def query(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a statement, each outside a transaction."""
        import psycopg

        with psycopg.connect(self.uri(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str = "") -> str:
        """The name of a new, empty database."""
        name = name or f"test_{secrets.token_hex(4)}"
        self.query("postgres", f'CREATE DATABASE "{name}"')
        return name


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Starts PostgreSQL on a new, empty cluster; it asks for a password. See `missing_postgres`."""
    programs, reason = _postgres_programs(), missing_postgres()
    if programs is None or reason:
        raise RuntimeError(reason)
    as_user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    service = Postgres(free_port(), "migvis", secrets.token_urlsafe(12))
    folder = Path(tempfile.mkdtemp(prefix="migvis-pg-"))
    try:
        secret = folder / "password"
        secret.write_text(service.password)
        if as_user:
            for path in (folder, secret):
                shutil.chown(path, "postgres", "postgres")
        data = folder / "data"
        initialise = [programs / "initdb", "-D", data, "-U", service.user, "--pwfile", secret, "--auth", "scram-sha-256"]
        subprocess.run(
            [*initialise, "--no-sync", "-E", "UTF8", "--locale", "C"], check=True, capture_output=True, cwd=folder, **as_user
        )
        secret.unlink()
        settings = [f"port={service.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
        command = [programs / "postgres", "-D", data, *(word for setting in settings for word in ("-c", setting))]
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients.
        with process(command, folder / "postgres.log", signal.SIGINT, cwd=folder, **as_user) as child:
            _wait_for_port(child, service.port, folder / "postgres.log")
            yield service
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_SWIFT = {"account": "", "container": "", "object": "", "proxy": "catch_errors cache s3api tempauth copy slo dlo "}
"""Swift's four servers, with the filters before each."""


def missing_object_store() -> str:
    """Why no S3-compatible object store can be started here; empty: one can."""
    if not (_swift_programs() / "swift-proxy-server").exists():
        return "OpenStack Swift is not installed (uv sync, which brings the dev group)"
    probe = Path(tempfile.gettempdir()) / f".xattr-{os.getpid()}"
    try:
        probe.touch()
        os.setxattr(probe, "user.migvis", b"1")
    except OSError as error:
        return f"Swift needs extended attributes, which {probe.parent} does not take: {error.strerror}"
    finally:
        probe.unlink(missing_ok=True)
    return ""


def _swift_programs() -> Path:
    return Path(sys.executable).parent


@dataclass(frozen=True)
class ObjectStore:
    """A running S3-compatible object store, and the keys of its one account."""

    endpoint: str
    access_key: str = "migvis:tests"
    secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)
    region: str = "us-east-1"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which boto3, so MLflow's server, and the SDK of pyarrow.fs find it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
        }

    def client(self) -> Any:
        """A boto3 client of it."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
        )

    def create_bucket(self, name: str = "") -> str:
        """The name of a new, empty bucket."""
        name = name or f"test-{secrets.token_hex(4)}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys of all objects, sorted."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(found["Key"] for page in pages for found in page.get("Contents", ()))


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Starts Swift: one replica on one device, S3 requests only. See `missing_object_store`."""
    if reason := missing_object_store():
        raise RuntimeError(reason)
    ports = {server: free_port() for server in _SWIFT}
    store = ObjectStore(f"http://127.0.0.1:{ports['proxy']}")
    folder = Path(tempfile.mkdtemp(prefix="migvis-s3-"))
    try:
        _write_swift(folder, ports, store)
        with ExitStack() as stack:
            for server, _port in ports.items():
                log = folder / f"swift-{server}.log"
                program = _swift_programs() / f"swift-{server}-server"
                child = stack.enter_context(process([program, folder / f"{server}.conf", "-v"], log))
                stack.callback(_tail, log, child)
                if server == "proxy":
                    for name in ports:
                        _wait_for_port(child, ports[name], folder / f"swift-{name}.log")
            wait_until(lambda: _lists_buckets(store), "Swift's S3 interface")
            yield store
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tail(log: Path, child: subprocess.Popen[bytes]) -> None:
    """Shows the end of the log of a server that ended by itself."""
    if child.poll() is not None:
        print(f"{log.name}: {log.read_text(errors='replace')[-2000:]}", file=sys.stderr)


def _lists_buckets(store: ObjectStore) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        store.client().list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


def _write_swift(folder: Path, ports: Mapping[str, int], store: ObjectStore) -> None:
    """Writes what Swift's servers read: a file each, and for the three that store something a ring of one device."""
    (folder / "devices" / "d").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = migvis\n[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    account, user = store.access_key.split(":")
    for server, filters in _SWIFT.items():
        lines = ["[DEFAULT]", "bind_ip = 127.0.0.1", f"bind_port = {ports[server]}", "workers = 0"]
        lines += [f"user = {getpass.getuser()}", f"swift_dir = {folder}", f"devices = {folder}/devices"]
        lines += ["mount_check = false", "disable_fallocate = true", "fallocate_reserve = 0"]
        lines += ["[pipeline:main]", f"pipeline = {filters}{server}-server"]
        lines += [f"[app:{server}-server]", f"use = egg:swift#{server}"]
        if server == "proxy":
            lines += ["account_autocreate = true"]
            lines += [f"[filter:{name}]\nuse = egg:swift#{name}" for name in filters.split() if name not in ("cache", "tempauth")]
            # Nothing listens there: the caches stay empty, and every answer is what is stored.
            lines += ["[filter:cache]", "use = egg:swift#memcache", "memcache_servers = 127.0.0.1:1"]
            lines += ["[filter:tempauth]", "use = egg:swift#tempauth", f"user_{account}_{user} = {store.secret_key} .admin"]
        (folder / f"{server}.conf").write_text("\n".join(lines) + "\n")
        if server != "proxy":
            builder = folder / f"{server}.builder"
            for words in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{ports[server]}/d", "1"], ["rebalance"]):
                program = _swift_programs() / "swift-ring-builder"
                subprocess.run([program, builder, *words], check=True, capture_output=True)
