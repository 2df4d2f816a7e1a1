"""A job's way there and what is heard of it, through Ray's own client, from a server that answers as the cluster's does."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from ray.job_submission import JobSubmissionClient

from tune.job import Job


class JobServer:
    """Ray's server for jobs, of which it knows none. asked: what it was asked for, as "GET /api/version"."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Callable[[], web.StreamResponse]] = {
            "GET /api/version": lambda: web.json_response({"ray_version": "2.60.0"}),
        }
        self._loop, self._stop, self._started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._started.wait(30)

    async def _serve(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = f"{request.method} {request.path}"
        self.asked.append(asked)
        answer = self.answers.get(asked, lambda: web.Response(status=404, text="Job does not exist"))
        return answer()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    running = JobServer()
    yield running
    running.close()


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
