"""A whole cluster on three test hosts, as its user has it: `ray up`, studies from the laptop, lost hosts, and the end of it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.hosts import Hosts, Process, unavailable
from tune.summary import git_revision

pytestmark = pytest.mark.slow
SMALL = ("--config", "tests/cluster/small.yaml")
TRIALS = 9


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three hosts with a cluster. Not where nobody is root, or network namespaces or ssh are missing: they are made of these."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="mig-", dir="/tmp"))  # pytest's own would be too long for Ray's sockets
    try:
        with Hosts(folder) as hosts:
            cluster = Cluster(hosts)
            cluster.storage.mkdir()
            cluster.up()
            warm_up(hosts)
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def warm_up(hosts: Hosts) -> None:
    """Has every host compile what trials import, as on machines where a study has run before."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda host: hosts.ssh(host, "python -c 'import tune.trial, ray.tune, timm, sklearn'"), range(hosts.count)))


class Client:
    """A command line on the laptop, watched."""

    def __init__(self, cluster: Cluster, *words: str, **environment: str) -> None:
        self.process = cluster.start(sys.executable, *words, **environment)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, condition: Callable[[], object], timeout: float = 900) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.2)

    def end(self, timeout: float = 1500) -> int:
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code


def summary_of(cluster: Cluster, study: str) -> dict:
    try:
        return json.loads((cluster.storage / study / "summary.json").read_text())
    except FileNotFoundError:
        return {"trials": []}


def hosts_of(cluster: Cluster, study: str) -> set[str]:
    return {trial["host"] for trial in summary_of(cluster, study)["trials"] if trial["host"]}


def status(url: str, token: str | None) -> int:
    request = urllib.request.Request(url, headers={} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_nobody_without_the_token_is_let_in(cluster) -> None:
    token = (cluster.hosts.folder / "laptop" / ".ray" / "auth_token").read_text().strip()
    jobs = f"{cluster.url}/api/jobs/"
    assert [status(jobs, offered) for offered in (None, "0" * 64, token)] == [401, 403, 200]
    refused = cluster.laptop(sys.executable, "tune/run.py", "--address", cluster.url, "--dry-run", RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode == 2
    assert f"error: --address {cluster.url}: refused" in refused.stdout
    assert token not in refused.stdout
    head = f"{cluster.hosts.address(0)}:6379"
    assert cluster.laptop("ray", "status", "--address", head, RAY_AUTH_TOKEN="0" * 64).returncode != 0
    assert cluster.laptop("ray", "status", "--address", head).returncode == 0


def test_the_tracking_server_is_on_loopback_and_jobs_are_taken_at_the_head_only(cluster) -> None:
    listening = cluster.hosts.inside(0, "ss", "-tlnH").stdout.split()
    assert [place for place in listening if place.endswith(":5000")] == ["127.0.0.1:5000"]
    assert [place for place in listening if place.endswith(":8265")] == [f"{cluster.hosts.address(0)}:8265"]


def test_exit_code_and_message_come_back(cluster) -> None:
    bad = cluster.laptop(sys.executable, "tune/run.py", "--address", cluster.url, *SMALL, "--set", "vae.group_count=1")
    assert bad.returncode == 2
    assert bad.stdout.splitlines()[-1].startswith("error: --set vae.group_count=1: vae.group_count: ")
    assert not list(cluster.storage.glob("*/study.json"))


def test_study_survives_ctrl_c_a_lost_connection_and_a_lost_host(cluster) -> None:
    client = Client(cluster, "tune/run.py", "--address", cluster.url, *SMALL, "--study", "first")
    client.wait_for(lambda: summary_of(cluster, "first")["trials"] and hosts_of(cluster, "first"))
    client.process.send_signal(signal.SIGINT)
    assert client.end() == 130, client.output
    resume = re.search(r"interrupted; go on with: python (tune/run\.py .*)", client.output)
    assert resume is not None, client.output
    words = shlex.split(resume[1])
    assert words == ["tune/run.py", "--study", "first", "--resume", "--address", cluster.url]
    assert summary_of(cluster, "first")["state"] == "interrupted"
    finished = {trial["number"]: trial["seconds"] for trial in summary_of(cluster, "first")["trials"] if trial["host"]}

    # The same line, but the address from the environment, and by way of a tunnel.
    tunnel = Tunnel(cluster)
    try:
        client = Client(cluster, *words[:-2], RAY_ADDRESS=tunnel.url)
        # One that has done a trial is killed in a later one.
        client.wait_for(lambda: "mig2" in hosts_of(cluster, "first") and trial_processes(cluster.hosts.processes(2)))
        killed = cluster.hosts.kill_all(2)
        assert any("raylet" in process.command for process in killed)
        assert trial_processes(killed)
        tunnel.close()
        client.wait_for(lambda: "is lost, trying again" in client.output)
        tunnel.open()
        assert client.end() == 0, client.output
    finally:
        tunnel.close()
    summary = summary_of(cluster, "first")
    trials = summary["trials"]
    assert summary["state"] == "finished"
    assert [trial["number"] for trial in trials] == list(range(TRIALS))
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert hosts_of(cluster, "first") == {"mig0", "mig1", "mig2"}
    assert {number: trials[number]["seconds"] for number in finished} == finished
    assert summary["git_revision"] == git_revision()
    said = [line for line in client.lines if line.startswith("trial ")]
    assert len(said) == len(set(said)), "what was printed before the connection was lost is not printed again"
    assert client.lines[-1] == f"summary:           {cluster.storage / 'first' / 'summary.json'}"
    assert "through: ssh -NL 5000:127.0.0.1:5000 root@HEAD" in client.output  # it came through a tunnel of its own
    check_tracked(cluster, "first")
    cluster.wait_for_nodes(3)  # the head has started the killed host's Ray again


def check_tracked(cluster: Cluster, study: str) -> None:
    """MLflow has each trial once, with its host."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{cluster.storage / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("migvis").experiment_id], max_results=100)
    tags = [run.data.tags for run in runs if "migvis.trial" in run.data.tags]
    assert sorted(int(tag["migvis.trial"]) for tag in tags) == list(range(TRIALS))
    assert {tag["migvis.host"] for tag in tags} == hosts_of(cluster, study)


def trial_processes(processes: list[Process]) -> list[Process]:
    return [process for process in processes if process.command.startswith("ray::ImplicitFunc")]


class Tunnel:
    """ssh -L from a port of the laptop to the head's jobs, which can be cut and opened again."""

    def __init__(self, cluster: Cluster) -> None:
        self._hosts, self._process = cluster.hosts, None
        self.url = "http://127.0.0.1:18265"
        self.open()

    def open(self) -> None:
        hosts = self._hosts
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        there = f"18265:{hosts.address(0)}:8265"
        command = ["ssh", "-N", "-i", str(hosts.key), *options, "-L", there, f"root@{hosts.address(0)}"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        while True:
            try:
                status(f"{self.url}/api/version", None)
                return
            except OSError:
                assert self._process.poll() is None
                time.sleep(0.1)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def test_a_host_that_does_not_see_the_storage_is_named(cluster) -> None:
    private = cluster.hosts.folder / "private"
    private.mkdir()
    cluster.hosts.hide(1, private)
    data = next((cluster.storage / "data").glob("*.h5"))
    words = ("--address", cluster.url, *SMALL, "--storage", str(private), "--data", str(data), "--study", "hidden")
    refused = cluster.laptop(sys.executable, "tune/run.py", *words)
    assert refused.returncode == 2
    expected = f"error: --storage {private}: has to be one folder on all hosts: mig1 ({cluster.hosts.address(1)}) does not see"
    assert refused.stdout.splitlines()[-1].startswith(expected)


def test_on_the_head_the_cluster_is_joined_by_itself(cluster) -> None:
    """The storage, the tracking server and the cluster come from the environment of a login shell."""
    done = cluster.hosts.ssh(0, "cd ~/migvis && python tune/run.py --resume --study first")
    assert "open http://127.0.0.1:5000\n" in done.stdout
    assert "done in" in done.stdout


def test_nothing_is_left_running(cluster) -> None:
    printed = cluster.down()
    for host in range(cluster.hosts.count):
        assert f"{cluster.hosts.address(host)}: stopped" in printed
    deadline = time.monotonic() + 30  # the head's ssh connections to the workers stay for ten seconds
    while left := [cluster.hosts.processes(host) for host in range(3) if cluster.hosts.processes(host)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
