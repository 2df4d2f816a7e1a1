"""Stops a cluster that `ray up` started, whole: python scripts/stop_cluster.py [ray_cluster.yaml]

`ray down` ends a cloud's instances, but of machines that one has it stops Ray on the head alone. This calls it, and then stops on
every host of the file what the cluster has started there: Ray and the tracking server. Studies that run are interrupted; their
files stay.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from migvis.errors import InputError

_STOP = "bash ~/migvis/scripts/cluster_host.sh stop"
_SSH = (
    *("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"),
    # A host that goes silent, before or after it is connected, is given up after half a minute.
    *("ConnectTimeout=20", "ServerAliveInterval=10", "ServerAliveCountMax=3"),
)
_SECONDS = 180
"""How long a host that answers may take: Ray's processes and the tracking server get time to end by themselves."""


def hosts_of(path: Path) -> tuple[list[str], dict[str, Any]]:
    """The hosts that stay when the cluster is down (a cloud's do not), and how to log in there. Raises InputError."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        provider, login = config["provider"], config["auth"]
        if provider["type"] != "local":
            return [], login
        return [*provider["worker_ips"], provider["head_ip"]], login
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a cluster: {type(error).__name__}: {' '.join(str(error).split())}") from None


def stop(host: str, login: dict[str, Any]) -> str:
    """Stops what runs on a host; an empty text, or what went wrong."""
    key = ["-i", str(Path(login["ssh_private_key"]).expanduser())] if login.get("ssh_private_key") else []
    options = [word for option in _SSH for word in ("-o", option)]
    command = ["ssh", *key, *options, f"{login['ssh_user']}@{host}", _STOP]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it did not end within {_SECONDS} s; look there what hangs"
    if ended.returncode == 0:
        return ""
    lines = (ended.stderr or ended.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit {ended.returncode}"


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 where nothing is left running, 1 where a host could not be asked, 2 for bad input."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(arguments[0] if arguments else "ray_cluster.yaml")
    try:
        hosts, login = hosts_of(path)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # First, or the head would start again what is stopped on the others.
    down = subprocess.run(["ray", "down", "--yes", str(path)]).returncode
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(lambda host: stop(host, login), hosts))
    for host, problem in zip(hosts, problems, strict=True):
        print(f"{host}: {f'NOT stopped: {problem}' if problem else 'stopped'}")
    return 1 if any(problems) or (down and not hosts) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
