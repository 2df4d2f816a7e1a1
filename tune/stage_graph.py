"""The nodes of the stage graph: what each stage reads, and its key.

A stage's key hashes only what determines its content: its kind, the configuration it reads, its inputs' keys, its
seed and dtype, and the bytes of the source files that compute it. So a change of anything else reuses it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tune.sources import source_digest

Scope = Literal["study", "trial"]
ProgressCallback = Callable[["Stage", Any], None]


@dataclass(frozen=True)
class Together:
    """How stages of one `bucket` are built at once: `build` writes the files of each into its context's folder."""

    bucket: str
    build: Callable[[Sequence[StageContext]], None]


@dataclass(frozen=True, eq=False)
class Stage:
    """One node of the graph.

    `config` holds only what the stage reads, as JSON values; `modules` name its source (see tune.sources); `inputs` are the
    stages it reads, by name; `build` writes its files into `context.folder`. What may differ without changing the content
    (threads, paths, progress) belongs into `build` itself (functools.partial), not into `config`.
    `together` builds several stages alike, for less.
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
    together: Together | None = None

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
