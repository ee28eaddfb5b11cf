"""Write an evaluation as one self-contained HTML page, which needs no network and no other files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, List

from tqdm import tqdm

from ...errors import UserError, check_number, needs
from ...files import atomic_write_text, check_writable, writing
from ...published.detectors import DETECTORS
from ..labels import label
from .measure import SCORE_THRESHOLD, TITLES, Evaluation, Task, load_evaluation, measure, rank_pictures

__all__ = ["load_evaluation", "write_report"]

_REMEDY = "make room, or name another file with --output"
_MOST_PICTURES = 200  # best or worst ones: makes a page of 50 MB
_INSTALL_TIDE = "pip install --no-deps tidecv && pip install appdirs pandas seaborn"


def write_report(evaluation: Evaluation, output: Path, num_pictures: int = 6) -> None:
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
        from . import charts, gallery
    tasks = [measure(evaluation, kind) for kind in tqdm(evaluation.tasks, desc="figures")]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template.filters.update(figure=_figure, label=label)
    text = Path(__file__).with_name("page.html.j2").read_text("utf-8")
    page = template.from_string(text).render(
        evaluation=evaluation,
        tasks=[_sections(task) for task in tasks],
        row=DETECTORS.get(evaluation.published),
        full=_is_full_val2017(evaluation),
        objects=sum(not a.get("iscrowd") for a in evaluation.truth["annotations"]),
        training=charts.training(evaluation.metrics),
        threshold=SCORE_THRESHOLD,
        install_tide=_INSTALL_TIDE,
        gallery=_gallery(evaluation, num_pictures),
        legend=gallery.LEGEND,
    )
    atomic_write_text(output, page)


def _check_page(target: Path) -> None:
    """Raise UserError if the page would replace something else, even through a link."""
    if target.exists():
        with writing(target, _REMEDY), target.open("rb") as file:
            start = file.read(100).lstrip().lower()
        if start and not start.startswith(b"<!doctype html"):
            raise UserError(f"{target} exists and is not an HTML page; name another file with --output")


def _figure(value: Any, digits: int = 1) -> str:
    """Format a number, or return an en dash if there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def _is_full_val2017(evaluation: Evaluation) -> bool:
    names = {dataset["name"] for dataset in evaluation.run.get("datasets", [])}
    return any(n.startswith("coco_2017_val") for n in names) and len(evaluation.truth["images"]) == 5000


def _sections(task: Task) -> Dict[str, Any]:
    """Collect the figures and charts that the page shows for a task."""
    from . import charts  # needs matplotlib

    objects = sum(category["objects"] for category in task.categories)
    figures: List[Dict[str, str]] = [
        {
            "title": "Precision and recall",
            "note": "Mean over the classes, by the IoU required of a detection.",
            "svg": charts.precision_recall(task.curves, "precision-recall curves by IoU"),
        },
        {
            "title": "By class, at IoU 0.50",
            "note": "The classes with the most objects.",
            "svg": charts.precision_recall(task.category_curves, "precision-recall curves by class"),
        },
        {
            "title": "Scores",
            "note": "Detections that found an object at IoU 0.50, and all others. Logarithmic above 1.",
            "svg": charts.scores(task),
        },
        {
            "title": "Choosing a score threshold",
            "note": "Precision and recall at IoU 0.50, over all classes, of detections above the threshold.",
            "svg": charts.trade_off(task, objects),
        },
        {
            "title": "By object size",
            "note": f"AP by area, and the objects found at IoU 0.50 and score {SCORE_THRESHOLD}.",
            "svg": charts.bars(
                task.sizes,
                "AP",
                lambda row: f"{_figure(row['AP'])} · found {row['found']:,} of {row['objects']:,}",
                "AP (%)",
            ),
        },
    ]
    if task.errors:
        figures.append(
            {
                "title": "Kinds of error (TIDE)",
                "note": "AP50 gained by fixing all errors of a kind, and their number. TIDE's own "
                f"AP50 is {_figure(task.errors['AP50'])}; it also counts classes without objects.",
                "svg": charts.bars(
                    task.errors["types"],
                    "AP50",
                    lambda row: f"{_figure(row['AP50'])} · {row['count']:,} errors",
                    "AP50 gain (points)",
                ),
            }
        )
    return {"title": TITLES[task.kind], "task": task, "figures": figures}


def _gallery(evaluation: Evaluation, count: int) -> Dict[str, List[Dict[str, Any]]]:
    """Draw the best and worst images by the last task, which shows most: keypoints, masks or boxes."""
    if evaluation.images is None:
        return {}
    from . import gallery  # needs matplotlib

    kind = evaluation.tasks[-1]
    ranked = rank_pictures(evaluation, kind)
    worst = ranked[max(count, len(ranked) - count) :][::-1]
    shelves = {"Best": ranked[:count], "Worst": worst}
    progress = tqdm(total=sum(map(len, shelves.values())), desc="pictures")
    drawn: Dict[str, List[Dict[str, Any]]] = {}
    for title, pictures in shelves.items():
        drawn[title] = []
        for picture in pictures:
            drawn[title].append(gallery.draw(evaluation, picture, kind))
            progress.update()
    progress.close()
    return {title: entries for title, entries in drawn.items() if entries}
