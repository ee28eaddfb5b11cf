"""The page of boxes, masks and keypoints."""

from __future__ import annotations

from typing import Any, Dict, List

from tqdm import tqdm

from ...published.detectors import DETECTORS
from . import charts, gallery
from .measure import SCORE_THRESHOLD, TITLES, Evaluation, Task, measure, rank_pictures
from .text import figure

TEMPLATE = "detection.html.j2"
_INSTALL_TIDE = "pip install --no-deps tidecv && pip install appdirs pandas seaborn"


def content(evaluation: Evaluation, num_pictures: int) -> Dict[str, Any]:
    """Compute what the template shows."""
    tasks = [measure(evaluation, kind) for kind in tqdm(evaluation.tasks, desc="figures")]
    return {
        "tasks": [_sections(task) for task in tasks],
        "row": DETECTORS.get(evaluation.published),
        "full": _is_full_val2017(evaluation),
        "objects": sum(not a.get("iscrowd") for a in evaluation.truth["annotations"]),
        "threshold": SCORE_THRESHOLD,
        "install_tide": _INSTALL_TIDE,
        "gallery": _gallery(evaluation, num_pictures),
        "legend": gallery.LEGEND,
    }


def _is_full_val2017(evaluation: Evaluation) -> bool:
    names = {dataset["name"] for dataset in evaluation.run.get("datasets", [])}
    return any(n.startswith("coco_2017_val") for n in names) and len(evaluation.truth["images"]) == 5000


def _sections(task: Task) -> Dict[str, Any]:
    """Collect the figures and charts that the page shows for a task."""
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
                lambda row: f"{figure(row['AP'])} · found {row['found']:,} of {row['objects']:,}",
                "AP (%)",
            ),
        },
    ]
    if task.errors:
        figures.append(
            {
                "title": "Kinds of error (TIDE)",
                "note": "AP50 gained by fixing all errors of a kind, and their number. TIDE's own "
                f"AP50 is {figure(task.errors['AP50'])}; it also counts classes without objects.",
                "svg": charts.bars(
                    task.errors["types"],
                    "AP50",
                    lambda row: f"{figure(row['AP50'])} · {row['count']:,} errors",
                    "AP50 gain (points)",
                ),
            }
        )
    return {"title": TITLES[task.kind], "task": task, "figures": figures}


def _gallery(evaluation: Evaluation, count: int) -> Dict[str, List[Dict[str, Any]]]:
    """Draw the best and worst images by the last task, which shows most: keypoints, masks or boxes."""
    if evaluation.images is None:
        return {}
    kind = evaluation.tasks[-1]
    return gallery.shelves(
        rank_pictures(evaluation, kind), count, lambda picture: gallery.draw(evaluation, picture, kind)
    )
