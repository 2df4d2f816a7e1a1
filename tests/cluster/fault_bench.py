"""Three test hosts with Ray on them and drivers where one wants them: what faults are injected into.

Ray is started by hand and without its dashboard, which takes seconds, not the minutes of `ray up`; that has a test of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.hosts import Hosts
from tune.ray_session import RAY_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
PORT = 6379
_PORTS = {"dashboard-agent-grpc": 6801, "metrics-export": 6802, "dashboard-agent-listen": 6803, "runtime-env-agent": 6804}
# `ray start` for a busy machine. It waits 30 s for itself, and the raylet 15 s for its agent to write down a port that is given
# anyway; so the one has a slower clock, and the other finds it written. Without Ray Client's server, which nobody needs here.
_RAY = f"""
import time
from pathlib import Path
from types import SimpleNamespace
from ray._private.node import Node
from ray._private import node
from ray.scripts.scripts import main

start_raylet = Node.start_raylet

def start_raylet_with_port(self, *arguments, **options):
    Path(self._session_dir, f"dashboard_agent_listen_port_{{self._node_id}}").write_text("{_PORTS["dashboard-agent-listen"]}")
    return start_raylet(self, *arguments, **options)

Node.start_raylet = start_raylet_with_port
Node.start_ray_client_server = lambda self: None
node.time = SimpleNamespace(**{{**vars(time), "monotonic": lambda: time.monotonic() / 10}})
main()
"""


class Driver:
    """A driver that was started on a host; all that it prints goes to a file."""

    def __init__(self, outer: subprocess.Popen[bytes], log: Path) -> None:
        self._outer, self._log = outer, log
        self.begin = time.monotonic()

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def ended(self) -> bool:
        return self._outer.poll() is not None

    def wait(self, timeout: float) -> int:
        """Its exit code. Raises RuntimeError, with what it printed, where it does not end in time."""
        try:
            return self._outer.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the driver has not ended after {timeout:.0f} s:\n{self.output}") from None

    def signal(self, number: int) -> None:
        """Sends a signal to the driver itself, not to what brought it to its host."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        os.kill(int(children[0]) if children else self._outer.pid, number)

    def kill(self) -> None:
        """kill -9, if it is still there."""
        with contextlib.suppress(OSError):
            self.signal(signal.SIGKILL)
        self._outer.wait(60)


_SLEEP = '''"""libfaketime 0.9.10 shifts what time.sleep asks of the monotonic clock, also where it is to leave that alone."""
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
'''


class Bench:
    """Three hosts: a head that runs no trials, and two with one CPU each, as Ray is told.

    folder: short; in it are `storage` and `small`, which the hosts share; `small` is a file system of its own, 48 MB large.
    subnet, bridge: of the hosts. clocks: by host, what `faketime` shows there (such as "+1h").
    """

    def __init__(self, folder: Path, subnet: str = "10.77.1", bridge: str = "migbr1") -> None:
        self.folder, self.storage, self.small = folder, folder / "storage", folder / "small"
        self.hosts = Hosts(folder / "h", 3, subnet=subnet, bridge=bridge)
        self.clocks: dict[int, str] = {}
        self._token = secrets.token_hex(32)
        self._drivers: list[Driver] = []

    def __enter__(self) -> Bench:
        for path in (self.storage, self.small):
            path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "small", str(self.small)], check=True)
        (self.folder / "sleep").mkdir()
        (self.folder / "sleep" / "sitecustomize.py").write_text(_SLEEP, encoding="utf-8")
        try:
            self.hosts.start()  # after the mount, which they see therefore
        except BaseException:
            self._unmount()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.hosts.stop()
        for driver in self._drivers:
            driver.kill()
        self._unmount()

    def _unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.small)], check=True)

    def environment(self, host: int) -> Mapping[str, str]:
        """Of every process that the bench starts on a host."""
        clock = {"FAKETIME": self.clocks[host], "FAKETIME_DONT_FAKE_MONOTONIC": "1"} if host in self.clocks else {}
        if clock:
            clock |= {"LD_PRELOAD": faketime_library(), "PYTHONPATH": str(self.folder / "sleep")}
        return {
            **RAY_ENVIRONMENT,
            **clock,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_agent_register_timeout_ms": "300000",  # for a busy machine
            "RAY_prestart_worker_first_driver": "0",  # which would import Ray once more on each host, for each driver
            "OMP_NUM_THREADS": "1",
            "HOME": str(self.hosts.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def _words(self, host: int, words: tuple[str, ...]) -> list[str]:
        """A command as in a session of its own, on that host."""
        return ["setsid", "--wait", "env", *(f"{name}={value}" for name, value in self.environment(host).items()), *words]

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"{self.hosts.address(0)}:{PORT}"

    def start_ray(self, host: int) -> None:
        """Ray on a host: the first is the head, which comes first."""
        own = self.hosts.address(host)
        head = ("--head", f"--port={PORT}", "--include-dashboard=false", "--no-monitor")
        which = head if host == 0 else (f"--address={self.address}",)
        ports = (f"--{name}-port={port}" for name, port in _PORTS.items())
        size = (f"--num-cpus={int(host > 0)}", "--object-store-memory=100000000", "--include-log-monitor=false")
        words = (*which, f"--node-ip-address={own}", *ports, *size)
        try:
            self.hosts.inside(host, *self._words(host, (sys.executable, "-c", _RAY, "start", *words)))
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"ray start on {self.hosts.name(host)}: {error.stdout}{error.stderr}") from None

    def start_cluster(self) -> None:
        for host in range(self.hosts.count):
            self.hosts.kill_all(host)
            self.start_ray(host)

    def driver(self, *arguments: str, host: int = 0, script: Path | None = None) -> Driver:
        """Starts tune/run.py, or a script in its place, on a host, and joins the cluster."""
        words = self._words(
            host, (sys.executable, str(script or ROOT / "tune" / "run.py"), *arguments, "--address", self.address)
        )
        log = self.folder / f"driver-{len(self._drivers)}.log"
        first = str(self.hosts._first(host))
        with log.open("wb") as output:
            outer = subprocess.Popen(
                ["nsenter", "-t", first, "-m", "-n", "-p", "-u", "-i", "--", *words],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._drivers.append(Driver(outer, log))
        return self._drivers[-1]


def faketime_library() -> str:
    """Where Debian's package faketime has its library. Raises RuntimeError without it."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found or shutil.which("faketime") is None:
        raise RuntimeError("hosts with other clocks need Debian's package faketime")
    return str(found[0])
