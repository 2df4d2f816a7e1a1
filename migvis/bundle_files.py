"""The files of a bundle: their names, their digests, and how a folder is written whole or not at all."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from migvis import weights
from migvis.config import Configuration
from migvis.errors import InputError

FORMAT, VERSION = "migvis-bundle", 1
MANIFEST, CONFIGURATION = "bundle.json", "configuration.json"
MODEL_FILES = ("vae.safetensors", "vae.json", "critic.safetensors", "critic.json", "bank.safetensors")
DENOISER_FILES = ("denoiser.safetensors", "denoiser.json")


def check_subject_name(name: str) -> str:
    """A subject's name as the name of a folder. Raises InputError for one that is no plain name, such as `..`."""
    if not re.fullmatch(r"\w[\w .+-]{0,99}", name):
        raise InputError(f"subject {name!r}: expected a name of letters, digits, '_', '.', '+', '-' and spaces")
    return name


def verify(folder: Path) -> list[str]:
    """The subjects of a bundle, all of whose files are as they were written.

    Raises InputError for a folder that is no bundle, a version that is not known, and files missing or altered.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: not a bundle, there is no {MANIFEST}")
    manifest = weights.read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise InputError(
            f"{folder / MANIFEST}: expected {FORMAT} version {VERSION}, got {manifest.get('format')} {manifest.get('version')}"
        )
    names, files = manifest.get("subjects"), manifest.get("files")
    if not isinstance(names, list) or not names or not isinstance(files, dict):
        raise InputError(f"{folder / MANIFEST}: subjects and files are missing")
    names = [check_subject_name(str(name)) for name in names]
    for file in _files_read(names):
        path = folder / file
        if not path.is_file():
            raise InputError(f"{path}: missing")
        if digest(path) != files.get(file):
            raise InputError(f"{path}: its content does not match the digest in {MANIFEST}")
    return names


def _files_read(names: Sequence[str]) -> list[str]:
    """The files that `load` reads; pictures and the model card may be edited by hand."""
    own = [f"subjects/{name}/{file}" for name in names for file in MODEL_FILES]
    return [*DENOISER_FILES, *own, CONFIGURATION, "metrics.json", "provenance.json"]


def read_configuration(path: Path) -> tuple[Configuration, float]:
    content = weights.read_json(path)
    try:
        configuration, variance = Configuration.model_validate(content["configuration"]), float(content["pixel_variance"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise InputError(f"{path}: not a configuration with its pixel variance ({str(error).splitlines()[0]})") from error
    if not (math.isfinite(variance) and variance > 0):
        raise InputError(f"{path}: pixel_variance: expected a positive number, got {variance}")
    return configuration, variance


def file_name(key: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", key).strip("._") or "picture"


def copy_files(source: Path, folder: Path, names: Sequence[str], renamed: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            shutil.copyfile(source / name, folder / (renamed or name))
        except FileNotFoundError:
            raise InputError(f"{source / name}: missing") from None


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON takes it: numbers of other libraries as numbers, paths as text, what is not finite as null."""

    def value(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(key): value(below) for key, below in item.items()}
        if isinstance(item, (list, tuple)):
            return [value(below) for below in item]
        if hasattr(item, "tolist"):
            return value(item.tolist())
        if isinstance(item, float):
            return item if math.isfinite(item) else None
        return item if item is None or isinstance(item, (str, int)) else str(item)

    converted: dict[str, Any] = value(content)
    return converted


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when everything is written; whatever was there is removed then."""
    aside = out.parent / f".{out.name}.{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        if out.exists():
            old = out.parent / f".{out.name}.{os.getpid()}.old"
            os.rename(out, old)
            os.rename(aside, out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(aside, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
