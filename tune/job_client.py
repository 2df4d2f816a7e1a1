"""Ray's client for jobs, whose every request ends: Ray gives none of them a limit."""

from __future__ import annotations

import logging
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from migvis.errors import InputError
from tune.redact import redact

CONNECT_SECONDS = 10
ANSWER_SECONDS = 60
"""How long a server that took the connection may say nothing."""


class JobClient(JobSubmissionClient):
    """What its methods raise, beside Ray's RuntimeError, is an OSError, or InputError where the cluster refuses this machine."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            return super()._do_request(method, endpoint, **{"timeout": (CONNECT_SECONDS, ANSWER_SECONDS), **options})
        except AuthenticationError:
            raise InputError(
                f"--address {redact(self._address)}: refused; this machine needs the cluster's token, in RAY_AUTH_TOKEN, in the "
                "file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
            ) from None


def job_client(address: str) -> JobClient:
    """The client of the cluster at an http address. Raises InputError where none takes jobs there, or it refuses this machine."""
    for name in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
    try:
        return JobClient(address)
    except (OSError, RuntimeError) as error:
        raise InputError(f"--address {redact(address)}: no Ray cluster takes jobs here: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """What a server says, without credentials; of a long text, such as a traceback, the beginning and the end."""
    text = redact(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:80]} … {text[-200:]}"
