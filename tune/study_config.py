"""The configuration of a study: what one configuration of the method reads, and how it is searched.

A study configuration is a preset ("quick" or "paper"), then the sections of a YAML file, then `--set
section.key=value`. Whatever is wrong with it is told in one line that names the file or the option, the
section, the field and the value.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from migvis.config import MAX_EDIT_STEP, PRESETS, Configuration, Count, NonNegative, Section
from migvis.errors import InputError

SamplerName = Literal["reuse", "tpe", "nsga2", "random"]


class SearchConfig(Section):
    """How the study searches: how many trials, over which ranges, and which of them is selected."""

    trials: Count = Field(100, description="trials in all, whole ones and those that ended after their VAE")
    seeds_per_trial: Count = Field(5, description="fits per trial, each with a seed of its own")
    final_seeds: Count = Field(5, description="fits of the selected configuration in the final stage")
    sampler: SamplerName = Field("reuse", description="what proposes trials: reuse, tpe, nsga2 or random")
    startup_trials: Count = Field(10, description="random trials before tpe learns; the population of nsga2")
    r2_margin: NonNegative = Field(0.03, description="neural_r2 that a trial may lose against the standard VAE")
    concurrent_trials: Count = Field(1, description="trials at once; the study is deterministic with 1 only")
    threads_per_trial: Count = Field(2, description="CPU threads of one trial; fewer where all trials would not find room else")
    fit_workers: Count = Field(1, description="workers of a fit; of a trial's fits where they find room beside all trials")
    retries: int = Field(2, ge=0, description="how often a failed trial is tried again")
    rule: str = Field("ideal_corner", description='"ideal_corner", "best:METRIC", or a function of one\'s own, "module:function"')
    pc_weight: tuple[float, float] = Field((1e-6, 1e-1), description="least and largest, searched on a log scale")
    group_count: tuple[int, int] = (2, 8)
    group_rank: tuple[int, int] = (1, 8)
    infonce_batch: tuple[int, ...] = Field((16, 32, 64, 128, 256, 512), min_length=1, description="the choices")
    edit_step: tuple[float, float] = Field((0.3, MAX_EDIT_STEP), description="least and largest, in steps of 0.05")
    guidance_scale: tuple[float, float] = Field((0.1, 100.0), description="least and largest, searched on a log scale")

    @model_validator(mode="after")
    def _ranges(self) -> SearchConfig:
        bounds: dict[str, tuple[float, float]] = {
            "pc_weight": (1e-12, 1e6),
            "group_count": (2, 64),
            "group_rank": (1, 64),
            "edit_step": (0.01, MAX_EDIT_STEP),
            "guidance_scale": (1e-6, 1e6),
        }
        for name, (least, largest) in bounds.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= largest:
                raise ValueError(f"{name}: a range inside {least:g} to {largest:g}, got {[low, high]}")
        if min(self.infonce_batch) < 2 or len(set(self.infonce_batch)) != len(self.infonce_batch):
            raise ValueError(f"infonce_batch: distinct choices of at least 2, got {list(self.infonce_batch)}")
        return self


class StudyConfig(Configuration):
    """A configuration of the method (trial 0 of the study) and its search."""

    preset: str = Field("paper", description="the preset that it started from")
    search: SearchConfig = SearchConfig()

    @property
    def configuration(self) -> Configuration:
        """The preset's own configuration of the method, without the search."""
        return Configuration(**{name: getattr(self, name) for name in Configuration.model_fields})

    def identity(self) -> dict[str, dict[str, Any]]:
        """What decides a trial's results, by "section.key": the "search" and the "configuration" of the method.

        Left out is what may change from session to session: `changeable`.
        """
        fields = {name: value for name, value in self._fields().items() if name not in self.changeable()}
        search = {name: value for name, value in fields.items() if name.startswith("search.")}
        return {"search": search, "configuration": {name: value for name, value in fields.items() if name not in search}}

    def changeable(self) -> dict[str, Any]:
        """How many trials there are, how they are run and where the data lies, by "section.key"."""
        return {name: value for name, value in self._fields().items() if name in _CHANGEABLE}

    def _fields(self) -> dict[str, Any]:
        sections = self.model_dump(mode="json", exclude={"preset"})
        return {f"{section}.{name}": value for section, fields in sections.items() for name, value in fields.items()}


def check_method(config: StudyConfig) -> None:
    """Raises InputError unless the study is one of mutual information: nothing else is searched or exported."""
    method = config.synthesis.method
    if method != "information":
        raise InputError(f"synthesis.method: a study searches information only; the others are for ablations, got {method!r}")


_HOW_IT_RUNS = {"trials", "concurrent_trials", "threads_per_trial", "fit_workers", "final_seeds", "rule", "retries"}
_CHANGEABLE = {"data.path", *(f"search.{name}" for name in _HOW_IT_RUNS)}

STUDY_PRESETS: dict[str, StudyConfig] = {
    "paper": StudyConfig(**dict(PRESETS["paper"]), preset="paper"),
    "quick": StudyConfig(
        **dict(PRESETS["quick"]),
        preset="quick",
        search=SearchConfig(
            trials=18,
            seeds_per_trial=1,
            final_seeds=2,
            startup_trials=3,
            # a dozen edited ones are too few to be spent where no edit moves, or on critics that cost as much as the rest
            infonce_batch=(16, 32, 64, 128, 256),
            edit_step=(0.5, MAX_EDIT_STEP),
            guidance_scale=(1.0, 100.0),
        ),
    ),
}

_SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in StudyConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def _nearest(name: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"did you mean {match[0]}?" if match else f"known: {', '.join(known)}"


def _check_known(source: str, section: str, field: str | None) -> None:
    """Raises InputError, with the nearest known name, where there is no such section or field."""
    if section not in _SECTIONS:
        # A field may have been written without its section, or with another one.
        owners = [f"{owner}.{field or section}" for owner, kind in _SECTIONS.items() if (field or section) in kind.model_fields]
        hint = f"did you mean {owners[0]}?" if owners else _nearest(section, list(_SECTIONS))
        raise InputError(f"{source}: unknown section {section!r}; {hint}")
    if field is not None and field not in _SECTIONS[section].model_fields:
        own = list(_SECTIONS[section].model_fields)
        owners = [f"{owner}.{field}" for owner, kind in _SECTIONS.items() if field in kind.model_fields]
        close = difflib.get_close_matches(field, own, n=1)
        hint = f"did you mean {section}.{close[0]}?" if close or not owners else f"did you mean {owners[0]}?"
        if not close and not owners:
            hint = _nearest(f"{section}.{field}", [f"{section}.{name}" for name in own])
        raise InputError(f"{source}: unknown key {section}.{field}; {hint}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter also for a date that does not exist
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected sections such as `vae:`, got {type(content).__name__}")
    return content


def _parse_override(text: str) -> tuple[str, str, Any]:
    key, equals, value = text.partition("=")
    section, dot, field = key.strip().partition(".")
    if not equals or not dot or not field:
        raise InputError(f"--set {text}: expected section.key=value")
    _check_known(f"--set {text}", section, field)
    try:
        return section, field, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):  # the latter for a date that does not exist
        raise InputError(f"--set {text}: the value is not YAML") from None


def _one_line(error: ValidationError, sources: dict[tuple[str, str], str], fallback: str) -> str:
    """The first pydantic error as `source: section.field: message, got value`."""
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if len(place) >= 2:
        source = sources.get((place[0], place[1]), fallback)
        return f"{source}: {'.'.join(place)}: {message}, got {first['input']!r}"
    # A rule over several fields of a section: name the last thing that the user set there.
    given = [text for (section, _), text in sources.items() if place and section == place[0]]
    return f"{given[-1] if given else fallback}: {'.'.join([*place, message]) if place else message}"


def load_study_config(
    path: Path | None,
    overrides: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    base: StudyConfig = STUDY_PRESETS["quick"],
) -> StudyConfig:
    """The study configuration of a YAML file and of `--set` options, the later winning.

    path: a YAML file with `preset: quick` (or paper) and sections that override it; none: `base`.
    overrides: texts `section.key=value`, the values parsed as YAML.
    options: values of other command-line options, by the dotted field that each stands for, such as
        {"search.trials": 0}; errors name the option instead of `--set`.
    Raises InputError with one line that names the source, the section, the field and the value.
    """
    content = {} if path is None else _read_yaml(path)
    file_source = f"preset {base.preset}" if path is None else str(path)
    if path is not None:
        preset = content.pop("preset", "paper")
        if not isinstance(preset, str) or preset not in STUDY_PRESETS:
            raise InputError(f"{file_source}: preset: expected one of {', '.join(STUDY_PRESETS)}, got {preset!r}")
        base = STUDY_PRESETS[preset]
    values = base.model_dump()
    sources: dict[tuple[str, str], str] = {}

    for section, fields in content.items():
        _check_known(file_source, str(section), None)
        if not isinstance(fields, dict):
            raise InputError(f"{file_source}: {section}: expected keys and values, got {fields!r}")
        for field, value in fields.items():
            _check_known(file_source, section, str(field))
            values[section][field] = value
            sources[section, field] = file_source
    for text in overrides:
        section, field, value = _parse_override(text)
        values[section][field] = value
        sources[section, field] = f"--set {text}"
    for key, value in (options or {}).items():
        section, field = key.split(".")
        values[section][field] = value
        sources[section, field] = f"--{'data' if key == 'data.path' else field}"
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(_one_line(error, sources, file_source)) from None
