"""A command line sent to a cluster: with `--address http://HEAD:8265` it becomes a Ray job there, followed from here.

What travels: this checkout's packages (so the cluster runs the code that is here, on what `ray up` installed), the words of the
command line, and the files that they name by `--config` or as an ablation of one's own. `--data`, `--storage` and `--stages` are
the cluster's own paths; where storage and tracking are not named, the head's environment does (MIGVIS_STORAGE and
MLFLOW_TRACKING_URI).
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from migvis.errors import InputError
from tune.database import has_password
from tune.job import Job, check_answers
from tune.redact import redact
from tune.submitted import Submitted, installed_versions
from tune.summary import ROOT, git_revision

PACKAGES = ("migvis", "tune")
_ON_THE_CLUSTER = ("--data", "--storage", "--stages")
_STOP_SECONDS = 60
"""How long a job that is stopped may take to write its records, before it is killed."""


def submit(program: str, words: Sequence[str], address: str) -> int:
    """Runs `program` (run or ablate) with `words` as a job of the cluster at `address`, prints its output; its exit code.

    At Ctrl-C the job is stopped, and says how it is resumed. Raises InputError where the words do not fit a cluster, none
    answers, or it refuses this machine or the job.
    """
    check_answers(address)
    from tune.job_client import job_client, one_line  # and ray, for which a cluster that is not there need not be waited for

    with tempfile.TemporaryDirectory(prefix="migvis-job-") as name:
        folder = Path(name)
        entry = ["python", "-m", "tune.submitted", program, *words_there(words, folder)]
        for package in PACKAGES:
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        Submitted(redact(address), git_revision(), installed_versions()).write(folder)
        client = job_client(address)
        job = Job(client, address, f"migvis-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}")
        environment = {"working_dir": str(folder), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}}
        try:
            client.submit_job(entrypoint=shlex.join(entry), submission_id=job.name, runtime_env=environment)
        except KeyboardInterrupt:
            return job.stop()  # it may have been taken
        except RuntimeError as error:
            raise InputError(f"--address {redact(address)}: does not take the job: {one_line(error)}") from None
        except OSError as error:
            unclear = f"no answer to job {job.name}, which may run; stop it with: {job.command('stop')}"
            raise InputError(f"--address {redact(address)}: {unclear}: {one_line(error)}") from None
    return job.follow()


def words_there(words: Sequence[str], folder: Path) -> list[str]:
    """The words as the job shall have them: without the address, and with the files copied into `folder` that they name.

    Raises InputError for a file that cannot be read, a relative path where the cluster's own is meant, or credentials.
    """
    result: list[str] = []
    for option, value in _options(words):
        if option == "--address":
            continue
        _check_there(option, value)
        if option == "--config" or (not option and value.endswith(".py")):
            value = _carried(Path(value), folder)
        result += [option, value] if option else [value]
    return result


def _check_there(option: str, value: str) -> None:
    """Raises InputError for a value that means something else on the cluster, or must not be seen there."""
    secret = option in ("--stages", "--tracking-uri") and redact(value) != value
    if secret or (option == "--database" and has_password(value)):
        raise InputError(f"{option}: a job's words are shown by the cluster; put credentials into the head's environment")
    if option in _ON_THE_CLUSTER and not value.startswith("/") and "://" not in value:
        raise InputError(f"{option} {value}: is a path on the cluster, and has to begin with /")
    # Below the job's own folder, which Ray deletes after it.
    if option in ("--database", "--tracking-uri") and re.match(r"sqlite(\+\w+)?:(?!////)", value):
        raise InputError(f"{option} {value}: a path on the cluster begins with sqlite:////")


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) where a word is the value of the option before it, or has one after "="; else ("", word)."""
    with_value = ("--address", "--config", *_ON_THE_CLUSTER, "--database", "--tracking-uri")
    left = iter(words)
    for word in left:
        option, equals, value = word.partition("=")
        if option in with_value:
            yield option, value if equals else next(left)
        else:
            yield "", word


def _carried(path: Path, folder: Path) -> str:
    """Copies a file into a folder of its own below `folder`; its name from there."""
    place = folder / "given" / str(len(list(folder.glob("given/*"))))
    place.mkdir(parents=True)
    try:
        shutil.copyfile(path, place / path.name)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return str((place / path.name).relative_to(folder))
