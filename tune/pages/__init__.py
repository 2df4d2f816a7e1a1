"""Reports: self-contained HTML pages from templates in this folder, to read on a laptop or to print."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The page of a template; values are escaped. Raises jinja2's errors for a name that the template lacks."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def embedded(path: Path) -> str:
    """A PNG file as a page holds it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
