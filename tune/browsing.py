"""Where people look at what MLflow has of a study: commands and addresses to paste, without credentials."""

from __future__ import annotations

import getpass
import shlex
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from tune.redact import redact
from tune.submitted import submitted
from tune.tracking_uri import artifacts_folder

_LAPTOP = "http://127.0.0.1:5000"
"""Where mlflow/serve.sh serves unless it is told another port."""
_LOOPBACK = ("127.0.0.1", "localhost")


def command_to_browse(storage: Path, uri: str, default: str) -> str:
    """The command that serves a laptop's studies, or where a server already does."""
    shown = redact(uri)
    if is_server(uri):
        return f"open {shown}{_by_way_of_the_head(uri)}"
    if uri == default:
        return f"bash mlflow/serve.sh {storage}"
    artifacts = artifacts_folder(uri, storage)
    destination = [] if artifacts is None else ["--artifacts-destination", str(artifacts)]
    return shlex.join(["mlflow", "server", "--backend-store-uri", shown, *destination, "--host", "127.0.0.1", "--workers", "1"])


def charts_of_trials(uri: str, experiment_id: str, study_run: str, metric: str) -> str:
    """The page with charts of the trials below a study's run, best by `metric` first; on a laptop once it is served.

    MLflow's own way there shows the study's run alone, with its trials folded away, and only among what it calls model training.
    Sorted by something else than time, trials are not folded.
    """
    return _charts(uri, experiment_id, f"tags.`mlflow.parentRunId` = '{study_run}'", f"metrics.`{metric}`")


def charts_of_cases(uri: str, experiment_id: str, study_id: str) -> str:
    """The page with charts of the runs of an ablation, newest first: those with pictures are written last."""
    runs = f"tags.`migvis.study_id` = '{study_id}' AND tags.`migvis.kind` = 'case'"
    return _charts(uri, experiment_id, runs, "attributes.start_time")


def _charts(uri: str, experiment_id: str, runs: str, first: str) -> str:
    view = {
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
        "searchFilter": runs,
        "orderByKey": first,
        "orderByAsc": "false",
    }
    server = redact(uri).rstrip("/") if is_server(uri) else _LAPTOP
    return f"{server}/#/experiments/{experiment_id}/runs?{urlencode(view, quote_via=quote)}"


def is_server(uri: str) -> bool:
    """Whether MLflow is asked over the network, rather than its database."""
    return uri.startswith(("http://", "https://"))


def _by_way_of_the_head(uri: str) -> str:
    """How whoever sent this job gets to a server that only the cluster's head, which this is, can reach."""
    note, parts = submitted(), urlsplit(uri)
    if note is None or parts.hostname not in _LOOPBACK:
        return ""
    head = urlsplit(note.address).hostname
    if head in _LOOPBACK:  # of the sender, whose jobs come by ssh; by which name is not known here
        head = "HEAD"
    return f" through: ssh -NL {parts.port}:127.0.0.1:{parts.port} {getpass.getuser()}@{head}"
