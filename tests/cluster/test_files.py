"""The cluster files, as far as they can be checked without a cluster: Ray's own schema, and what must never be open."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from migvis.errors import InputError
from tune.resources import Share, place

ROOT = Path(__file__).resolve().parents[2]
FILES = ("ray_cluster.yaml", "scripts/ray_cluster_aws.yaml")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", FILES)
def test_all_that_is_copied_exists_and_nothing_is_secret(name) -> None:
    mounts = read(name)["file_mounts"]
    local = [path for path in mounts.values() if not path.startswith("~") and path != "uv.lock"]
    assert [path for path in local if not (ROOT / path).exists()] == []
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [path for path in tracked if "auth_token" in path or path.endswith((".pem", ".key"))] == []


def test_in_the_cloud_only_ssh_is_open_to_the_outside() -> None:
    cluster = read("scripts/ray_cluster_aws.yaml")
    own = cluster["provider"]["security_group"].get("IpPermissions", [])
    assert own == []  # Ray's own rules are added to these
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert cluster["available_node_types"]["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}

    pytest.importorskip("boto3", reason="Ray's own rules are in a module that needs boto3")
    from ray.autoscaler._private.aws.config import _create_default_inbound_rules

    rules = _create_default_inbound_rules({"sg-1"}, own)
    assert [(rule["FromPort"], rule["ToPort"]) for rule in rules if rule.get("IpRanges") or rule.get("Ipv6Ranges")] == [(22, 22)]


def test_in_the_cloud_there_are_machines_before_a_study_starts() -> None:
    """The head runs no trials, and a study asks for no machine that is not there."""
    kinds = read("scripts/ray_cluster_aws.yaml")["available_node_types"]
    nodes = [Share(kinds["head"]["resources"]["CPU"])]
    with pytest.raises(InputError, match="no CPU for trials yet"):
        place(nodes, threads=1, concurrent=1, workers=1)
    nodes += [Share(4, 1)] * kinds["worker"]["min_workers"]
    assert place(nodes, threads=1, concurrent=1, workers=1).trial.gpus


def host_script(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """scripts/cluster_host.sh in a home of its own, with a uv that does nothing."""
    uv = home / ".local" / "bin" / "uv"
    if not uv.exists():
        uv.parent.mkdir(parents=True)
        uv.write_text("#!/bin/sh\n")
        uv.chmod(0o755)
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    return subprocess.run(
        ["bash", str(ROOT / "scripts/cluster_host.sh"), *words], env=environment, capture_output=True, text=True
    )


def test_the_environment_is_first_in_every_shell_and_written_once(tmp_path) -> None:
    (tmp_path / ".bashrc").write_text("return\n")
    install = ("install", f"storage={tmp_path / 'shared folder'}", "tracking=http://127.0.0.1:5000")
    for _ in range(2):
        done = host_script(tmp_path, *install)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / ".bashrc").read_text().count("\n") == 2
    shown = subprocess.run(
        ["bash", "--rcfile", str(tmp_path / ".bashrc"), "-ic", "env"], env={"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    environment = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    assert environment["MIGVIS_STORAGE"] == str(tmp_path / "shared folder")
    assert environment["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_ADDRESS"] == "auto"
    assert environment["PATH"].startswith(str(ROOT / ".venv" / "bin"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("storage=relative", "tracking=http://h:1"), "storage=relative: expected"),
        (("storage=/proc/nothing", "tracking=http://h:1"), "/proc/nothing: the storage folder cannot be written"),
        (("tracking=http://h:1",), "expected storage=/FOLDER and tracking=URI"),
    ],
)
def test_a_host_that_cannot_be_installed_says_why_in_one_line(tmp_path, words, part) -> None:
    done = host_script(tmp_path, "install", *words)
    assert done.returncode == 1
    assert part in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: ")
