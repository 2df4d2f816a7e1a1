"""A job on a cluster, followed from here: its output as it comes, through lost connections, until its exit code."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Any, TextIO
from urllib.parse import urlsplit

from migvis.errors import InputError
from tune.redact import redact

_LAST_LINE_OF_RAY = "Running entrypoint for job "
"""The output begins after it."""
_NO_OUTPUT = (401, 403, 404)
"""Answers of a cluster that refuses this machine, or does not know the job; asked for the job itself, it tells which."""


class Lost(Exception):
    """The cluster does not answer."""


def check_answers(address: str, timeout: float = 5.0) -> None:
    """Raises InputError where nothing listens at an http address."""
    try:
        _connect(address, timeout)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--address {redact(address)}: no Ray cluster answers: {reason}") from None


def _connect(address: str, timeout: float) -> None:
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout).close()


class Job:
    """The job `name` of the cluster at `address`, through Ray's client.

    patience: seconds for which a cluster that does not answer is tried again. quiet: seconds without output after which it is
    asked whether it is there: a host that lost its power never says so.
    """

    def __init__(
        self, client: Any, address: str, name: str, *, out: TextIO | None = None, patience: float = 600, quiet: float = 30
    ) -> None:
        self.name = name
        self._client, self._address = client, address
        self._out, self._patience, self._quiet = out or sys.stdout, patience, quiet
        self._printed = 0
        self._begun = False

    def follow(self) -> int:
        """Prints the job's output until it ends; its exit code, or 130 where Ctrl-C stopped it.

        Raises InputError where the cluster comes to refuse this machine.
        """
        self._say(f"job {self.name} at {self._address}; Ctrl-C stops it")
        self._say(f"to look on from elsewhere: {self.command('logs --follow')}")
        try:
            return self._follow()
        except KeyboardInterrupt:
            return self.stop()

    def _follow(self) -> int:
        lost_at: float | None = None
        while True:
            try:
                asyncio.run(self._print_output())
                info = self._info()
            except Lost as lost:
                if lost_at is None:
                    lost_at = time.monotonic()
                    self._say(f"the connection to {self._address} is lost, trying again: {lost}")
                elif time.monotonic() - lost_at > self._patience:
                    self._say(f"gave up; if the cluster is still there, so is the job: {self.command('logs --follow')}")
                    return 1
                time.sleep(2)
                continue
            lost_at = None
            if info is None:
                self._say(
                    f"{self._address} does not know the job any more, its head was started anew; go on with the same words and"
                    " --resume"
                )
                return 1
            if info.status.is_terminal():
                return self._exit_code(info)
            time.sleep(1)

    def _exit_code(self, info: Any) -> int:
        if info.status.value == "STOPPED":
            return 130
        if info.driver_exit_code is None and info.status.value != "SUCCEEDED":
            self._say(f"error: {self.name}: {' '.join((info.message or 'it failed').split())}")
            return 1
        return int(info.driver_exit_code or 0)

    def stop(self) -> int:
        """Stops the job and prints its output until it ends; 130. Where it may go on, says how it is stopped."""
        self._say("stopping the job; Ctrl-C again leaves it running")
        try:
            self._reachable()
            self._client.stop_job(self.name)
            self._follow()
        except (KeyboardInterrupt, Lost, OSError, RuntimeError, InputError):
            self._say(f"it may go on; stop it with: {self.command('stop')}")
        return 130

    def command(self, what: str) -> str:
        """The line by which Ray does something with the job, without credentials."""
        return f"ray job {what} --address {redact(self._address)} {self.name}"

    def _say(self, text: str) -> None:
        print(redact(text), file=self._out, flush=True)

    def _reachable(self) -> None:
        try:
            _connect(self._address, 5.0)
        except OSError as error:
            raise Lost(error.strerror or str(error)) from None

    def _info(self) -> Any:
        """What the cluster knows of the job; None: it does not know it."""
        self._reachable()
        try:
            return self._client.get_job_info(self.name)
        except (OSError, RuntimeError) as error:
            if "status code 404" in str(error):  # the job's name may have such digits, too
                return None
            raise Lost(_first_line(error)) from None

    async def _print_output(self) -> None:
        """Prints what is new of the job's output, until that ends or the cluster gives none. Raises Lost."""
        import aiohttp

        stream = self._client.tail_job_logs(self.name)
        seen = 0
        waiting: asyncio.Task[str] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(stream))
                done, _ = await asyncio.wait({waiting}, timeout=self._quiet)
                if not done:
                    await asyncio.to_thread(self._reachable)
                    continue
                text, waiting = waiting.result(), None
                # A connection made anew hands out everything from the beginning.
                self._print(text[max(0, self._printed - seen) :])
                seen += len(text)
                self._printed = max(self._printed, seen)
        except StopAsyncIteration:
            return
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            if isinstance(error, aiohttp.WSServerHandshakeError) and error.status in _NO_OUTPUT:
                return
            raise Lost(_first_line(error)) from None
        finally:
            if waiting is not None:
                waiting.cancel()

    def _print(self, text: str) -> None:
        for line in text.splitlines(keepends=True):
            if self._begun:
                self._out.write(line)
            self._begun = self._begun or line.startswith(_LAST_LINE_OF_RAY)
        self._out.flush()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
