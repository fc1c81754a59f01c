"""Self-contained HTML pages from the templates beside this file: no script and no request."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pocketlm.errors import MissingExtraError, storage_errors


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """A page from a template's name and what it shows.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup  # comes with jinja2
    except ImportError as error:
        raise MissingExtraError("jinja2", "report") from error
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    page = environment.get_template(template).render({"style": Markup(_source("style.css")), **values})
    # HTML has no place for these, and a lone surrogate cannot even be written as UTF-8.
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", page)


def write_page(page: str, path: Path) -> None:
    """Write a page aside, then rename: a reader sees the old one or the new one, never a half.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    aside = path.with_name(path.name + ".partial")
    with storage_errors(path.parent):
        aside.write_text(page, encoding="utf-8")
        os.replace(aside, path)


def _source(name: str) -> str:
    return resources.files("pocketlm.report").joinpath(name).read_text(encoding="utf-8")


def _breakable(text: str) -> Any:
    """A label that a line may break after each underscore, hyphen, dot and slash."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_\-./])(?=\w)", r"\1<wbr>", str(escape(text))))
