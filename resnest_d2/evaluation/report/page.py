"""Write a self-contained HTML page from a template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import UserError, needs
from ...files import atomic_write_text, writing
from ..labels import label
from .text import figure

#: Remedy for an output file that cannot be written.
REMEDY = "make room, or name another file with --output"


def write_page(target: Path, template: Path, **content: Any) -> None:
    """Fill in a template, whose values are escaped, and write the page.

    Args:
        template: may extend those beside it and those of this folder.
        content: its variables.

    Raises:
        UserError: the file cannot be written, or jinja2 is missing.
    """
    with needs("jinja2", "a report"):
        import jinja2
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(figure=figure, label=label)
    atomic_write_text(target, templates.get_template(template.name).render(content))


def check_page(target: Path) -> None:
    """Raise UserError if the page would replace something else, even through a link."""
    if target.exists():
        with writing(target, REMEDY), target.open("rb") as file:
            start = file.read(100).lstrip().lower()
        if start and not start.startswith(b"<!doctype html"):
            raise UserError(f"{target} exists and is not an HTML page; name another file with --output")
