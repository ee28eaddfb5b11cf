"""The page of semantic segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
from PIL import Image

from ...data.semantic_masks import check_size, read_labels
from ...errors import UserError
from ...files import inside
from ...published.segmentors import SEGMENTORS, VALIDATION
from ..label_maps import class_colours, overlay
from ..labels import label
from ..semantic import PREDICTIONS, scores
from . import charts, gallery
from .semantic import SemanticEvaluation

TEMPLATE = "semantic.html.j2"
_MEANS = ("mIoU", "mIoU_all", "fwIoU", "mACC", "pACC", "mBoundaryIoU")
_MOST_CLASSES = 25  # in the chart of confusion


def content(evaluation: SemanticEvaluation, num_pictures: int) -> Dict[str, Any]:
    """Compute what the template shows."""
    measured = scores(evaluation.confusion)
    colours = evaluation.colours or class_colours(len(evaluation.classes))
    row = SEGMENTORS.get(evaluation.published)
    names = [label(name, 40) for name in evaluation.classes]
    most = np.sort(np.argsort(-measured.share, kind="stable")[:_MOST_CLASSES])
    return {
        "row": row,
        "compared": _compared(evaluation, row) if row else [],
        "full": bool(row) and _is_full(evaluation, row.dataset),
        "pixels": int(evaluation.confusion.sum()),
        "summary": {n: evaluation.results[n] for n in _MEANS if n in evaluation.results},
        "rows": [
            {
                "name": name,
                "colour": "#{:02x}{:02x}{:02x}".format(*colours[i]),
                "share": 100 * float(measured.share[i]),
                "iou": 100 * float(measured.iou[i]),
                "accuracy": 100 * float(measured.accuracy[i]),
            }
            for i, name in enumerate(names)
        ],
        "confusion": charts.confusion(evaluation.confusion, names, most),
        "shown": len(most),
        "left_out": len(names) > len(most),
        "gallery": _gallery(evaluation, colours, num_pictures),
    }


def _compared(evaluation: SemanticEvaluation, row: Any) -> List[Tuple[str, Any, float]]:
    figures = (("mIoU", row.miou), ("pACC", row.pixel_accuracy))
    return [(name, evaluation.results.get(name), value) for name, value in figures if value is not None]


def _is_full(evaluation: SemanticEvaluation, dataset: str) -> bool:
    """Whether it is of all validation images, with TEST.AUG."""
    name, images = VALIDATION[dataset]
    found = (evaluation.dataset, len(evaluation.images), evaluation.folder.name)
    return found == (name, images, "inference_TTA") and evaluation.results.get("mIoU") is not None


def _gallery(
    evaluation: SemanticEvaluation, colours: List[Tuple[int, int, int]], count: int
) -> Dict[str, List[Dict[str, Any]]]:
    ranked = [image for image in evaluation.images if image.get("mIoU") is not None]
    ranked.sort(key=lambda image: -image["mIoU"])
    return gallery.shelves(ranked, count, lambda image: _draw(evaluation, image, colours))


def _draw(
    evaluation: SemanticEvaluation, image: Dict[str, Any], colours: List[Tuple[int, int, int]]
) -> Dict[str, Any]:
    """Make one entry of the gallery; without pictures if a file is missing or does not fit."""
    entry = {"name": label(Path(image["file_name"]).name, 100)}
    try:
        prediction = inside(evaluation.folder / PREDICTIONS, image["prediction"], "the evaluation")
        maps = [read_labels(prediction), read_labels(image["sem_seg_file_name"])]
        pixels = gallery.read(Path(image["file_name"]), maps[0].shape)
        check_size(image["sem_seg_file_name"], maps[1].shape, image["file_name"], maps[0].shape)
    except UserError as e:
        return {**entry, "problem": label(e, 300)}
    size = gallery.fitting(*pixels.shape[:2])
    predicted, truth = (
        gallery.picture(np.asarray(Image.fromarray(overlay(pixels, labels, colours)).resize(size)))
        for labels in maps
    )
    return {**entry, "measured": f"mIoU {image['mIoU']:.1f} %", "predicted": predicted, "truth": truth}
