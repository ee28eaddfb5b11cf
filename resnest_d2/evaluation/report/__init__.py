"""Write an evaluation as one self-contained HTML page, which needs no network and no other files."""

from __future__ import annotations

from pathlib import Path

from ...errors import check_number, needs
from ...files import check_writable
from .classification import ClassificationEvaluation
from .load import AnyEvaluation, load_evaluation
from .page import REMEDY, check_page, write_page
from .semantic import SemanticEvaluation

__all__ = ["load_evaluation", "write_report"]

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
    check_page(check_writable(output, REMEDY))
    with needs("jinja2", "a report"):
        import jinja2  # noqa: F401
    with needs("matplotlib", "a report"):
        from . import charts, classification_page, detection, semantic_page
    pages = {SemanticEvaluation: semantic_page, ClassificationEvaluation: classification_page}
    page = pages.get(type(evaluation), detection)
    write_page(
        output,
        Path(__file__).with_name(page.TEMPLATE),
        evaluation=evaluation,
        training=charts.training(evaluation.metrics),
        **page.content(evaluation, num_pictures),
    )
