"""Test hosts: several machines to ssh into, on this one, for what needs real addresses and the loss of real nodes.

Each host is a set of namespaces (network, mounts, processes, host name, shared memory) whose first process is an sshd. It has
an address on a bridge, a home, a /tmp/ray and a /dev/shm of its own; the rest of the file system is this machine's, which is
how the hosts share a folder. They reach each other and this machine, nothing else. Needs root, and Debian's iproute2,
openssh-server, openssh-client and procps.

    python tests/cluster/hosts.py up FOLDER [COUNT]     prints the hosts and the key; they stay until
    python tests/cluster/hosts.py down FOLDER           which ends what is in their namespaces, and nothing else
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "rsync", "ps", "/usr/sbin/sshd")
_SSH_OPTIONS = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes", "ConnectTimeout=9")


def unavailable() -> str | None:
    """Why this machine cannot have test hosts, in one line; None: it can."""
    if os.geteuid() != 0:
        return "test hosts need root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"test hosts need {', '.join(missing)}"
    for command in (["unshare", "-nmpui", "--fork", "--mount-proc", "true"], ["ip", "link", "add", "migtry", "type", "bridge"]):
        tried = subprocess.run(command, capture_output=True, text=True)
        if tried.returncode:
            return f"this machine does not allow namespaces: {' '.join(command)}: {tried.stderr.strip()}"
    subprocess.run(["ip", "link", "del", "migtry"], check=True)
    return None


def _ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _process_space(pid: int | str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


@dataclass(frozen=True)
class Process:
    """A process of a host. pid: as this machine counts."""

    pid: int
    command: str


class Hosts:
    """`count` hosts named mig0, mig1, … at <subnet>.10, <subnet>.11, …; this machine is <subnet>.1.

    folder: theirs, short enough for a path in a socket's name; it holds the `key` to log in with as root, and each host's
    home, which every host sees at `folder/home`. Two sets may be up at once if their subnets and bridges differ.
    outlive: whether they stay when the process that starts them ends, however it ends.
    """

    def __init__(
        self, folder: Path, count: int = 3, *, subnet: str = "10.77.0", bridge: str = "migbr0", outlive: bool = False
    ) -> None:
        self.folder, self.count, self.subnet, self.bridge, self.outlive = folder.absolute(), count, subnet, bridge, outlive
        self.key = self.folder / "key"
        self.home = self.folder / "home"
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Hosts:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def name(self, host: int) -> str:
        return f"mig{host}"

    def address(self, host: int) -> str:
        return f"{self.subnet}.{10 + host}"

    def home_of(self, host: int) -> Path:
        """Where this machine sees what a host sees at `home`."""
        return self.folder / self.name(host) / "home"

    # ------------------------------------------------------------------------------------------------- up and down

    def start(self) -> None:
        """All hosts up, with ssh answering. Raises RuntimeError where others of this bridge are up already."""
        self._make_files()
        self._make_bridge()
        try:
            for host in range(self.count):
                self.power_on(host)
        except BaseException:
            self.stop()
            raise

    def _make_files(self) -> None:
        for folder in (self.folder, self.home, Path("/run/sshd"), Path("/tmp/ray")):
            folder.mkdir(parents=True, exist_ok=True)
        for name in ("key", "host_key"):
            if not (self.folder / name).exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)], check=True)
        users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
        of_hosts = [[*user[:5], str(self.home), "/bin/bash"] if user[0] == "root" else user for user in users]
        (self.folder / "passwd").write_text("".join(":".join(user) + "\n" for user in of_hosts))
        names = [f"{self.address(host)} {self.name(host)}" for host in range(self.count)]
        (self.folder / "addresses").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))

    def _make_bridge(self) -> None:
        if Path(f"/sys/class/net/{self.bridge}").exists():
            if os.listdir(f"/sys/class/net/{self.bridge}/brif"):
                raise RuntimeError(f"the bridge {self.bridge} is in use: other test hosts are up")
            _ip("link", "del", self.bridge)  # its hosts were killed with the process that started them
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.subnet}.1/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def power_on(self, host: int) -> None:
        """A host that is off comes up, with the files that it had."""
        own = self.folder / self.name(host)
        (own / "ray").mkdir(parents=True, exist_ok=True)
        if not (own / "home").exists():
            shutil.copytree("/etc/skel", own / "home")
            self._give_uv(own / "home")
        environment = ["-o", f"SetEnv={' '.join(self._environment())}"]
        words = ["bash", str(Path(__file__).with_name("host.sh")), str(self.folder), self.name(host), self.address(host)]
        alone = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        bound = [] if self.outlive else ["setpriv", "--pdeathsig", "KILL"]
        with open(own / "console.log", "ab") as console:
            outer = subprocess.Popen(
                [*bound, *alone, *words, *environment],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self._started[host] = outer
        first = self._first_child(outer, own)
        (own / "pid").write_text(f"{first} {_process_space(first)}")
        card = f"{self.bridge}-{host}"
        _ip("link", "add", card, "type", "veth", "peer", "name", "eth0", "netns", first)
        _ip("link", "set", card, "master", self.bridge, "up")
        self._wait_for_ssh(host)

    @staticmethod
    def _first_child(outer: subprocess.Popen[bytes], own: Path) -> int:
        while True:
            found = [pid for pid in _children(outer.pid) if _process_space(pid) not in (None, _process_space("self"))]
            if found:
                return found[0]
            if outer.poll() is not None:
                raise RuntimeError(f"{own.name} did not start: {(own / 'console.log').read_text()}")
            time.sleep(0.02)

    def _wait_for_ssh(self, host: int, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while self.ssh(host, "true", check=False).returncode:
            if time.monotonic() > deadline or self._first(host) is None:
                log = self.folder / self.name(host) / "console.log"
                raise RuntimeError(f"{self.name(host)}: no ssh: {log.read_text()}")
            time.sleep(0.1)

    def _give_uv(self, home: Path) -> None:
        """uv as this machine has it: the hosts cannot download it."""
        uv = os.environ.get("UV") or shutil.which("uv")
        if uv is not None:
            (home / ".local" / "bin").mkdir(parents=True)
            (home / ".local" / "bin" / "uv").symlink_to(uv)

    def _environment(self) -> Iterator[str]:
        """What makes uv install from this machine's cache, with this Python."""
        uv = os.environ.get("UV") or shutil.which("uv")
        if uv is not None:
            cache = subprocess.run([uv, "cache", "dir"], check=True, capture_output=True, text=True).stdout.strip()
            yield from (f"UV_CACHE_DIR={cache}", "UV_OFFLINE=1")
        yield f"UV_PYTHON={Path(sys.executable).resolve()}"

    def power_off(self, host: int) -> None:
        """All that runs on a host is gone at once, itself too; `power_on` brings it back."""
        first = self._first(host)
        if first is not None:
            os.kill(first, signal.SIGKILL)
            while _process_space(first) is not None:
                time.sleep(0.02)
        if host in self._started:
            self._started.pop(host).wait()
        subprocess.run(["ip", "link", "del", f"{self.bridge}-{host}"], capture_output=True)

    def stop(self) -> None:
        """All hosts off, and no bridge."""
        for host in range(self.count):
            self.power_off(host)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)

    # ------------------------------------------------------------------------------------------------ what runs there

    def _first(self, host: int) -> int | None:
        """A host's process 1; None: it is off."""
        try:
            pid, space = (self.folder / self.name(host) / "pid").read_text().split()
        except OSError:
            return None
        return int(pid) if _process_space(pid) == space else None

    def ssh(self, host: int, command: str, *, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Runs a command in a login shell of a host, as a person who logs in there would."""
        options = [word for option in _SSH_OPTIONS for word in ("-o", option)]
        words = ["ssh", "-i", str(self.key), *options, f"root@{self.address(host)}", f"bash -lc {_quoted(command)}"]
        return subprocess.run(words, check=check, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)

    def inside(self, host: int, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in a host's namespaces, without its sshd; as its administrator at the machine itself."""
        command = ["nsenter", "-t", str(self._first(host)), "-m", "-n", "-p", "-u", "-i", "--", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True)

    def hide(self, host: int, folder: Path) -> None:
        """From now on a host has an empty folder of its own there, as where a shared one was not mounted."""
        self.inside(host, "mount", "-t", "tmpfs", "-o", "size=64m", "private", str(folder))

    def unplug(self, host: int) -> None:
        """Takes a host off the network."""
        _ip("link", "set", f"{self.bridge}-{host}", "down")

    def plug_in(self, host: int) -> None:
        _ip("link", "set", f"{self.bridge}-{host}", "up")

    def processes(self, host: int) -> list[Process]:
        """What runs on a host, besides its sshd."""
        first = self._first(host)
        space = _process_space(first) if first is not None else None
        found = []
        for folder in Path("/proc").iterdir():
            if space is None or not folder.name.isdigit() or int(folder.name) == first or _process_space(folder.name) != space:
                continue
            with contextlib.suppress(OSError):  # it ended meanwhile
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if command and not command.startswith("sshd:"):  # a zombie has none, and who is logged in is no one's service
                    found.append(Process(int(folder.name), command))
        return found

    def kill_all(self, host: int) -> list[Process]:
        """kill -9 of all that runs on a host, Ray above all, until nothing is left; what it was."""
        killed: list[Process] = []
        while running := self.processes(host):
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            killed += [process for process in running if process not in killed]
            time.sleep(0.05)
        return killed


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2 or arguments[0] not in ("up", "down"):
        print(__doc__, file=sys.stderr)
        return 2
    hosts = Hosts(Path(arguments[1]), int(arguments[2]) if len(arguments) > 2 else 3, outlive=True)
    if arguments[0] == "down":
        hosts.stop()
        return 0
    reason = unavailable()
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    hosts.start()
    for host in range(hosts.count):
        print(hosts.name(host), hosts.address(host))
    print(f"ssh -i {hosts.key} root@{hosts.address(0)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
