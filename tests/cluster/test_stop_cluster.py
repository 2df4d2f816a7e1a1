"""A host that hangs is not waited for: with an ssh that does what such a host makes it do."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from scripts import stop_cluster

LOGIN = {"ssh_user": "lab"}


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is taken for ssh."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "ssh"
    path.touch(mode=0o755)
    return path


def test_a_host_that_hangs_is_one_line(ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh.write_text("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr(stop_cluster, "_SECONDS", 1)
    begin = time.monotonic()
    assert stop_cluster.stop("10.0.0.9", LOGIN) == "it did not end within 1 s; look there what hangs"
    assert time.monotonic() - begin < 20


def test_a_host_that_goes_silent_is_given_up_by_ssh(ssh: Path) -> None:
    ssh.write_text('#!/bin/sh\necho "$@"\nexit 1\n')
    words = stop_cluster.stop("10.0.0.9", LOGIN)
    for option in ("ConnectTimeout=20", "ServerAliveInterval=10", "ServerAliveCountMax=3"):
        assert f"-o {option}" in words
