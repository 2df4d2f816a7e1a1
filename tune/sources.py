"""Which source files compute a stage, and their digest: found by reading them, without importing any."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path

SERVICE = "tune"
"""Its modules count alone: what they call of the science, a stage names itself."""
READ_ELSEWHERE = frozenset({"migvis.config", "migvis.errors"})
"""Their values stand in a stage's configuration, and their messages change no content."""


def _location(module: str) -> Path | None:
    """A module's file, or a package's folder; None where there is neither. Raises ModuleNotFoundError without its top."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)  # of a submodule it would import the parents
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no source of {module}")
    folder = Path(spec.origin).parent.joinpath(*rest)
    single = Path(spec.origin) if not rest and not spec.submodule_search_locations else folder.with_suffix(".py")
    return single if single.is_file() else folder if (folder / "__init__.py").is_file() else None


def _imported(file: Path, package: str) -> set[str]:
    """The modules of `package` that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    # the package itself is no more than the names that it hands on
    return {name for name in names if name.startswith(f"{package}.") and _location(name) is not None}


def source_files(modules: Iterable[str]) -> list[Path]:
    """The files of `modules` (a package counts with all of its own) and of what they import of their package, sorted.

    Modules of SERVICE count alone, READ_ELSEWHERE not at all. Raises ModuleNotFoundError for a name without source.
    """
    files: set[Path] = set()
    seen: set[str] = set()
    waiting = [(module, True) for module in modules]
    while waiting:
        module, named = waiting.pop()
        place = _location(module)
        if place is None:
            raise ModuleNotFoundError(f"no source of {module}")
        if place.is_file():
            found = [place]
        else:
            found = sorted(place.rglob("*.py")) if named else [place / "__init__.py"]
        files.update(found)
        top = module.partition(".")[0]
        if top == SERVICE:
            continue
        for name in {name for file in found for name in _imported(file, top)} - seen - READ_ELSEWHERE:
            seen.add(name)
            waiting.append((name, False))
    return sorted(files)


@cache
def source_digest(modules: tuple[str, ...]) -> str:
    """SHA-256 of the source bytes of `source_files`, by their places in their packages."""
    digest = hashlib.sha256()
    files = source_files(modules)
    tops = {_location(module.partition(".")[0]) for module in modules}
    roots = {place if place.is_dir() else place.parent for place in tops if place is not None}
    for file in files:
        content = file.read_bytes()
        root = next(root for root in roots if file.is_relative_to(root))
        digest.update(f"{root.name}/{file.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
