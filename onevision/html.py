"""Web pages in one file that loads nothing, from the templates and the style sheet in ``pages/``."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: object) -> str:
    """Fill a template, such as ``demo.html``; values are escaped."""
    return _environment().get_template(template).render(**values)


def data_uri(data: bytes, kind: str) -> str:
    """A ``data:`` URI of a file inside the page; ``kind`` is its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("pages")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
