"""The nodes of the stage graph: what each stage reads, and its key.

A stage's key hashes only what determines its content: its kind, the configuration it reads, its inputs' keys, its
seed and dtype, and the bytes of the source files that compute it. So a change of anything else reuses it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

Scope = Literal["study", "trial"]
ProgressCallback = Callable[["Stage", Any], None]


@cache
def source_digest(modules: tuple[str, ...]) -> str:
    """SHA-256 of the source bytes of `modules`, found without importing them; a package counts with all its modules.

    Raises ModuleNotFoundError for a name without source.
    """
    digest = hashlib.sha256()
    for module in sorted(set(modules)):
        top, *rest = module.split(".")
        spec = importlib.util.find_spec(top)  # of a submodule it would import the parents
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"no source of {module}")
        folder = Path(spec.origin).parent.joinpath(*rest)
        single = Path(spec.origin) if not rest and not spec.submodule_search_locations else folder.with_suffix(".py")
        files = [single] if single.is_file() else sorted(folder.rglob("*.py"))
        if not files:
            raise ModuleNotFoundError(f"no source of {module}")
        for file in files:
            content = file.read_bytes()
            digest.update(f"{module} {file.relative_to(folder.parent).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Stage:
    """One node of the graph.

    `config` holds only what the stage reads, as JSON values; `modules` name the source that computes it; `inputs` are the
    stages it reads, by name; `build` writes its files into `context.folder`. What may differ without changing the
    content (threads, paths, progress) belongs into `build` itself (functools.partial), not into `config`.
    """

    kind: str
    config: Mapping[str, Any]
    build: Callable[[StageContext], None]
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    seed: int | None = None
    dtype: str = "float32"
    modules: tuple[str, ...] = ()
    label: str = ""
    scope: Scope = "trial"

    @cached_property
    def key(self) -> str:
        """24 hex digits; raises TypeError or ValueError if `config` is not JSON (or holds a NaN)."""
        parts = {
            "kind": self.kind,
            "config": dict(self.config),
            "inputs": {name: stage.key for name, stage in self.inputs.items()},
            "seed": self.seed,
            "dtype": self.dtype,
            "source": source_digest(self.modules),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()[:24]

    def __str__(self) -> str:
        return f"{self.kind} {self.label}".strip()


@dataclass
class StageContext:
    """What a stage's `build` works with.

    `folder` takes the files; `scratch` survives a killed build, for a fit's checkpoint; `log` (JSON values) goes into the
    manifest.
    """

    stage: Stage
    folder: Path
    scratch: Path
    inputs: Mapping[str, Path]
    _progress: ProgressCallback | None = None
    log: dict[str, Any] = field(default_factory=dict)

    def input(self, name: str) -> Path:
        """The folder of the finished input `name`; its files are read-only by agreement."""
        return self.inputs[name]

    def progress(self, update: Any) -> None:
        """Passes an update (a migvis.training.Progress, say) to whoever asked for the stage."""
        if self._progress is not None:
            self._progress(self.stage, update)


def topological(stages: Iterable[Stage]) -> list[Stage]:
    """The distinct stages (by kind and key) that `stages` need, themselves included, every one after its inputs."""
    order: dict[tuple[str, str], Stage] = {}

    def visit(stage: Stage) -> None:
        if (stage.kind, stage.key) not in order:
            for below in stage.inputs.values():
                visit(below)
            order[stage.kind, stage.key] = stage

    for stage in stages:
        visit(stage)
    return list(order.values())
