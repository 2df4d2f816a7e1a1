"""A job's way there and what is heard of it, through Ray's own client, from a server that answers as the cluster's does."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest
from aiohttp import web
from ray.job_submission import JobSubmissionClient

from migvis.errors import InputError
from tune.job import Job
from tune.job_client import job_client
from tune.run import main


class JobServer:
    """Ray's server for jobs, of which it knows none.

    answers: by patterns of what is asked, as "GET /api/version"; None: says nothing for ever. asked: so far. uploaded: the last.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.uploaded = b""
        self.answers: dict[str, Callable[[], web.StreamResponse | None]] = {
            "GET /api/version": lambda: web.json_response({"ray_version": "2.60.0"}),
            "PUT /api/packages/*": web.Response,
        }
        self._loop, self._stop, self._started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._started.wait(30)

    async def _serve(self) -> None:
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = f"{request.method} {request.path}"
        self.asked.append(asked)
        if request.method == "PUT":
            self.uploaded = await request.read()
        for pattern, answer in self.answers.items():
            if fnmatchcase(asked, pattern):
                return answer() or await self._never()
        return web.Response(status=404, text="Job does not exist")

    async def _never(self) -> web.StreamResponse:
        await self._stop.wait()
        return web.Response(status=503)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    # Whether there is a token on this machine must not matter.
    monkeypatch.setattr("ray.dashboard.modules.dashboard_sdk.get_auth_headers_if_auth_enabled", lambda headers: {})
    # Started in the background of a shell, this process would ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = JobServer()
    yield running
    signal.signal(signal.SIGINT, before)
    running.close()


def interrupted() -> None:
    """Ctrl-C, and no answer."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def followed(client: Any, url: str, name: str = "job-404") -> tuple[int, str]:
    """The exit code and the output of following a job."""
    out = io.StringIO()
    return Job(client, url, name, out=out, patience=0).follow(), out.getvalue()


def test_a_job_that_a_new_head_does_not_know_is_said_to_be_gone(server: JobServer) -> None:
    code, said = followed(JobSubmissionClient(server.url), server.url)
    assert code == 1
    assert "does not know the job any more, its head was started anew; go on with the same words and --resume" in said
    assert "is lost" not in said


def test_a_server_that_fails_is_tried_again(server: JobServer) -> None:
    """Also where a number in its answer looks like that of an unknown job."""
    server.answers["GET /api/jobs/job-404"] = lambda: web.Response(status=500, text="job-404: no agent")
    code, said = followed(JobSubmissionClient(server.url), server.url)
    assert code == 1
    assert "is lost, trying again" in said
    assert "does not know" not in said


def test_a_cluster_that_refuses_this_machine_from_now_on_is_one_line(server: JobServer, capsys) -> None:
    """As one does that was set up anew, with another token, while a job of it was followed."""
    server.answers["POST /api/jobs/"] = lambda: web.json_response({"job_id": None, "submission_id": "migvis-1"})
    server.answers["GET /api/jobs/*"] = lambda: web.Response(status=401, text="Unauthorized")
    assert main(["--address", server.url]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --address {server.url}: refused; this machine needs the cluster's token")
    assert error.count("\n") == 1


def test_a_job_is_sent_with_an_address_that_has_no_password(server: JobServer, capsys) -> None:
    server.answers["POST /api/jobs/"] = lambda: web.json_response({"job_id": None, "submission_id": "migvis-1"})
    assert main(["--address", server.url.replace("//", "//ann:cret@")]) == 1  # it is never heard of again
    with zipfile.ZipFile(io.BytesIO(server.uploaded)) as package:
        assert json.loads(package.read("submitted.json"))["address"] == server.url
    said = capsys.readouterr()
    assert "cret" not in said.out + said.err


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("GET /api/version", "no Ray cluster takes jobs here: 500 Server Error"),
        ("PUT /api/packages/*", "does not take the job: Request failed with status code 500: no agent."),
        ("POST /api/jobs/", "does not take the job: Request failed with status code 500: no agent."),
    ],
)
def test_a_cluster_that_does_not_take_a_job_is_one_line(server: JobServer, capsys, asked: str, line: str) -> None:
    server.answers[asked] = lambda: web.Response(status=500, text="no agent")
    assert main(["--address", server.url]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --address {server.url}: {line}")
    assert error.count("\n") == 1


def test_a_job_that_may_have_been_taken_is_named(server: JobServer, capsys, monkeypatch) -> None:
    monkeypatch.setattr("tune.job_client.ANSWER_SECONDS", 0.5)
    server.answers["POST /api/jobs/"] = lambda: None
    assert main(["--address", server.url]) == 2
    error = capsys.readouterr().err
    name = r"migvis-[\w-]+"
    stop = rf"ray job stop --address {server.url} {name}"
    assert re.match(rf"error: --address {server.url}: no answer to job {name}, which may run; stop it with: {stop}: ", error)
    assert error.count("\n") == 1


def test_ctrl_c_while_a_job_is_sent_stops_it(server: JobServer) -> None:
    server.answers["POST /api/jobs/"] = interrupted
    server.answers["POST /api/jobs/*/stop"] = lambda: web.json_response({"stopped": True})
    server.answers["GET /api/jobs/*/logs/tail"] = lambda: web.Response(status=404)
    server.answers["GET /api/jobs/*"] = lambda: web.json_response({"type": "SUBMISSION", "status": "STOPPED", "entrypoint": ""})
    assert main(["--address", server.url]) == 130
    assert [asked for asked in server.asked if re.fullmatch(r"POST /api/jobs/migvis-[\w-]+/stop", asked)]


def test_ctrl_c_before_the_cluster_knows_the_job_tells_how_to_stop_it(server: JobServer, capsys) -> None:
    server.answers["POST /api/jobs/"] = interrupted
    assert main(["--address", server.url]) == 130
    assert re.search(rf"it may go on; stop it with: ray job stop --address {server.url} migvis-[\w-]+\n", capsys.readouterr().out)


def test_ctrl_c_where_the_cluster_refuses_this_machine_tells_how_to_stop_it(server: JobServer, capsys) -> None:
    server.answers["POST /api/jobs/"] = interrupted
    server.answers["POST /api/jobs/*/stop"] = lambda: web.Response(status=401, text="Unauthorized")
    assert main(["--address", server.url]) == 130
    assert f"it may go on; stop it with: ray job stop --address {server.url} migvis-" in capsys.readouterr().out


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(server: JobServer, monkeypatch) -> None:
    monkeypatch.setattr("tune.job_client.ANSWER_SECONDS", 0.5)
    client = job_client(server.url)
    server.answers["GET /api/jobs/*"] = server.answers["POST /api/jobs/*"] = lambda: None
    begin = time.monotonic()
    for ask in (client.get_job_info, client.stop_job):
        with pytest.raises(OSError, match="timed out"):
            ask("job")
    server.answers["GET /api/version"] = lambda: None
    with pytest.raises(InputError, match=rf"--address {server.url}: no Ray cluster takes jobs here: .*timed out"):
        job_client(server.url)
    assert time.monotonic() - begin < 30
