"""Write an evaluation as one self-contained HTML page, which needs no network and no other files."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError, check_number, needs
from ...files import atomic_write_text, check_writable, writing
from ..labels import label
from .classification import ClassificationEvaluation
from .load import AnyEvaluation, load_evaluation
from .semantic import SemanticEvaluation
from .text import figure

__all__ = ["load_evaluation", "write_report"]

_REMEDY = "make room, or name another file with --output"
_MOST_PICTURES = 200  # best or worst ones: makes a page of 50 MB


def write_report(evaluation: AnyEvaluation, output: Path, num_pictures: int = 6) -> None:
    """Write the page.

    Args:
        evaluation: see :func:`load_evaluation`.
        output: the HTML file.
        num_pictures: number of best images to show, and of worst ones.

    Raises:
        UserError: the file cannot be written, exists and is not an HTML page, or jinja2 is missing.
    """
    check_number("--num-pictures", num_pictures, at_least=0, at_most=_MOST_PICTURES)
    _check_page(check_writable(output, _REMEDY))
    with needs("jinja2", "a report"):
        import jinja2
    with needs("matplotlib", "a report"):
        from . import charts, classification_page, detection, semantic_page
    pages = {SemanticEvaluation: semantic_page, ClassificationEvaluation: classification_page}
    page = pages.get(type(evaluation), detection)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(figure=figure, label=label)
    text = templates.get_template(page.TEMPLATE).render(
        evaluation=evaluation,
        training=charts.training(evaluation.metrics),
        **page.content(evaluation, num_pictures),
    )
    atomic_write_text(output, text)


def _check_page(target: Path) -> None:
    """Raise UserError if the page would replace something else, even through a link."""
    if target.exists():
        with writing(target, _REMEDY), target.open("rb") as file:
            start = file.read(100).lstrip().lower()
        if start and not start.startswith(b"<!doctype html"):
            raise UserError(f"{target} exists and is not an HTML page; name another file with --output")
