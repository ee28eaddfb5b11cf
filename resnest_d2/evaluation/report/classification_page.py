"""The page of image classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
from PIL import Image

from ...errors import UserError
from ...published.classifiers import CLASSIFIERS, VALIDATION
from ..labels import label
from . import charts, gallery
from .classification import ClassificationEvaluation

TEMPLATE = "classification.html.j2"
_MEANS = ("top1", "top5", "mean_class_top1")
_MOST_CLASSES = 25  # in the chart of confusion


def content(evaluation: ClassificationEvaluation, num_pictures: int) -> Dict[str, Any]:
    """Compute what the template shows."""
    counts, names = evaluation.confusion, [label(name, 40) for name in evaluation.classes]
    row = CLASSIFIERS.get(evaluation.published or "")
    true, predicted, right = counts.sum(1), counts.sum(0), counts.diagonal()
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = 100 * right / true, 100 * right / predicted
    most = np.sort(np.argsort(-(true - right), kind="stable")[:_MOST_CLASSES])

    def certainty(image: Dict[str, Any]) -> float:
        """The probability of the predicted class, negative where it is not the true one."""
        return image["probabilities"][0] * (1 if image["top5"][0] == image["label"] else -1)

    ranked = sorted(evaluation.images, key=certainty, reverse=True)
    return {
        "row": row,
        "full": (evaluation.dataset, len(evaluation.images)) == VALIDATION,
        "summary": {n: evaluation.results[n] for n in _MEANS if n in evaluation.results},
        "rows": [
            {"name": n, "images": int(true[i]), "recall": float(recall[i]), "precision": float(precision[i])}
            for i, n in enumerate(names)
        ],
        "confusion": charts.confusion(counts, names, most),
        "shown": len(most),
        "left_out": len(names) > len(most),
        "gallery": gallery.shelves(ranked, num_pictures, lambda image: _entry(image, names)),
    }


def _entry(image: Dict[str, Any], names: List[str]) -> Dict[str, Any]:
    """Make one entry of the gallery; without a picture if the file cannot be read."""
    entry = {"name": label(Path(image["file_name"]).name, 100)}
    try:
        pixels = gallery.read(Path(image["file_name"]))
    except UserError as e:
        return {**entry, "problem": label(e, 300)}
    size = _fitting(*pixels.shape[:2])
    guesses = ", ".join(f"{names[i]} {p:.0%}" for i, p in zip(image["top5"], image["probabilities"]))
    return {
        **entry,
        "measured": f"{names[image['label']]}: predicted {guesses}",
        "picture": gallery.picture(np.asarray(Image.fromarray(pixels).resize(size))),
    }


def _fitting(height: int, width: int) -> Tuple[int, int]:
    scale = min(1.0, 280 / max(height, width))
    return max(round(scale * width), 1), max(round(scale * height), 1)
