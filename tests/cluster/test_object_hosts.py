"""A study on two hosts that share no folder: an object store and a database is all that they have in common."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services
from tests.cluster.hosts import Hosts, unavailable
from tests.tune.test_object_study import SCIENCE

pytestmark = [pytest.mark.slow, pytest.mark.skipif(unavailable() is not None, reason=unavailable() or "")]
RAY = Path(sys.executable).with_name("ray")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with (
        tempfile.TemporaryDirectory(prefix="mo", dir="/tmp") as folder,
        Hosts(Path(folder), 2, subnet="10.77.9", bridge="migbr9") as running,
    ):
        yield running


def test_trials_run_on_both_hosts_and_their_files_come_back(hosts: Hosts, postgres: services.Postgres) -> None:
    # What this machine's hosts can both reach of PostgreSQL is its socket.
    (socket,) = Path(tempfile.gettempdir()).glob(f"migvis-pg-*/.s.PGSQL.{postgres.port}")
    database = f"postgresql://{postgres.user}@/{postgres.create_database()}?host={socket.parent}&port={postgres.port}"
    calls, script = hosts.folder / "calls.txt", hosts.folder / "driver.py"
    script.write_text(SCIENCE)
    environment = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PGPASSWORD": postgres.password,
        "CALLS": str(calls),
        "TRIAL_SECONDS": "10",
        "HOME": str(hosts.home),
        "PATH": os.environ["PATH"],
    }
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
    ray = [*words, str(RAY), "start", "--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"]
    hosts.inside(0, *ray, "--head", f"--node-ip-address={hosts.address(0)}", "--include-dashboard=false")
    hosts.inside(1, *ray, f"--address={hosts.address(0)}:6379", f"--node-ip-address={hosts.address(1)}")
    stages = (hosts.folder / "bucket").as_uri()
    options = ["--set", "search.concurrent_trials=2", "--set", "search.threads_per_trial=2", "--trials", "4", "--stages", stages]
    study = [*words, sys.executable, str(script), "--address", f"{hosts.address(0)}:6379", *options]

    def run(*more: str) -> tuple[int, str, str]:
        """The driver on the first host: exit code, output and errors."""
        output, errors = hosts.folder / "output", hosts.folder / "errors"
        command = f"{shlex.join([*study, *more])} > {output} 2> {errors} < /dev/null; echo $?"
        code = int(hosts.inside(0, "bash", "-c", command).stdout)
        return code, output.read_text(), errors.read_text()

    refusal = f"error: --stages {stages}: on 2 hosts it needs --database postgresql://HOST/NAME, for its leases\n"
    refused = run("--study", "refused")
    assert (refused[0], refused[2]) == (2, refusal), refused
    done = run("--study", "s", "--database", database)
    assert done[0] == 0, done
    folder = hosts.home_of(0) / ".local" / "share" / "migvis" / "s"
    trials = json.loads((folder / "summary.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 4
    assert {trial["host"] for trial in trials} == {hosts.name(0), hosts.name(1)}
    for number in range(4):
        own = folder / "trials" / f"{number:03d}"
        assert (own / "edits.png").is_file()
        assert (own / "models" / "vae.safetensors").read_bytes() == bytes([10 + number]) * 10
    assert not (hosts.home_of(1) / ".local" / "share" / "migvis").exists()
    assert (hosts.home_of(1) / ".cache" / "migvis").is_dir()
