"""A cluster on test hosts, brought up by the project's own ray_cluster.yaml after the edits that a lab makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.hosts import Hosts

ROOT = Path(__file__).resolve().parents[2]


class Cluster:
    """`ray up` and the command lines on `hosts`: the first is the head, this machine is the laptop.

    cpus: of each host, as Ray is told. The token, the storage folder and the edited ray_cluster.yaml are in the hosts' folder.
    """

    def __init__(self, hosts: Hosts, cpus: int = 1) -> None:
        self.hosts = hosts
        self.storage = hosts.folder / "storage"
        self.url = f"http://{hosts.address(0)}:8265"
        self.yaml = hosts.folder / "ray_cluster.yaml"
        laptop = hosts.folder / "laptop"
        laptop.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(laptop),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": str(hosts.folder / "t"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._write_yaml(cpus)

    def _write_yaml(self, cpus: int) -> None:
        hosts = self.hosts
        text = (ROOT / "ray_cluster.yaml").read_text()
        text = text.replace("192.168.1.10", hosts.address(0)).replace("/srv/migvis", str(self.storage))
        # The hosts share this machine's memory, of which Ray would take a third for each.
        text = text.replace("ray start ", f"ray start --num-cpus={cpus} --object-store-memory=150000000 ")
        content: dict[str, Any] = yaml.safe_load(text)
        content["cluster_name"] = f"migvis-{hosts.bridge}"
        content["provider"]["worker_ips"] = [hosts.address(host) for host in range(1, hosts.count)]
        content["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
        self.yaml.write_text(yaml.safe_dump(content, sort_keys=False))

    def laptop(self, *words: str, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the checkout, as on the laptop; its output and errors together."""
        return subprocess.run(
            words,
            cwd=ROOT,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """As `laptop`, without waiting for its end."""
        return subprocess.Popen(
            words,
            cwd=ROOT,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Ctrl-C reaches it even where these tests run in the background of a shell, whose children ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def up(self) -> None:
        """The token, `ray up`, and all nodes there. Raises RuntimeError with what was printed where that fails."""
        self._must("ray", "get-auth-token", "--generate")
        self._must("ray", "up", "--yes", str(self.yaml))
        self.wait_for_nodes(self.hosts.count)

    def down(self) -> str:
        """Everything stopped by the project's helper; what it printed."""
        return self._must(sys.executable, "scripts/stop_cluster.py", str(self.yaml))

    def _must(self, *words: str) -> str:
        ended = self.laptop(*words)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit {ended.returncode}\n{ended.stdout}")
        return ended.stdout

    def nodes(self) -> list[str]:
        """Addresses of the nodes that are alive, as the head says."""
        script = "import ray, json; ray.init(logging_level='ERROR', log_to_driver=False); print(json.dumps(ray.nodes()))"
        ended = self.hosts.ssh(0, f'python -c "{script}"', check=False)
        try:
            nodes = json.loads(ended.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            return []
        return sorted(node["NodeManagerAddress"] for node in nodes if node["Alive"])

    def wait_for_nodes(self, count: int, timeout: float = 600) -> None:
        deadline = time.monotonic() + timeout
        while len(found := self.nodes()) != count:
            if time.monotonic() > deadline:
                log = self.hosts.ssh(0, "tail -n 60 /tmp/ray/session_latest/logs/monitor.*", check=False).stdout
                raise RuntimeError(f"{found} instead of {count} nodes after {timeout:.0f} s\n{log}")
            time.sleep(1)
