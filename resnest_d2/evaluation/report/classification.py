"""Read the evaluation of a classifier for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from ..results import is_number, refuse
from .counted import read_counted


@dataclass
class ClassificationEvaluation:
    """The files of one evaluation of a classifier.

    Attributes:
        name: name of the folder or the configuration.
        dataset: name of the dataset.
        classes: their names.
        results: metrics by name, in percent; None for undefined ones.
        confusion: (classes, classes) images by true and predicted class.
        images: of each image its path, ``label``, and the indices and ``probabilities`` of the ``top5``.
        run: content of ``results.json``; empty if there is none.
        metrics: lines of ``metrics.json``; empty if nothing was trained.
        published: name of the published row to compare with.
    """

    name: str
    dataset: str
    classes: List[str]
    results: Dict[str, Optional[float]]
    confusion: np.ndarray
    images: List[Dict[str, Any]]
    run: Dict[str, Any]
    metrics: List[Dict[str, Any]]
    published: Optional[str]


def read_classification(
    file: Path, name: str, run: Dict[str, Any], metrics: List[Dict[str, Any]], published: Optional[str]
) -> ClassificationEvaluation:
    """Read what :class:`ClassificationEvaluator` has written.

    Raises:
        UserError: the file cannot be read, or an entry cannot be shown.
    """
    counted = read_counted(file, "classification")
    for i, entry in enumerate(counted.images):
        _check_image(file, f"images[{i}]", entry, len(counted.classes))
    rest = (run, metrics, published)
    return ClassificationEvaluation(name, *counted[1:], *rest)


def _check_image(file: Path, where: str, entry: Any, classes: int) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise refuse(file, where, "must be an object with a file_name", entry)
    best, probabilities = entry.get("top5"), entry.get("probabilities")
    indices = [entry.get("label"), *(best if isinstance(best, list) else [None])]
    if len(indices) < 2 or not all(type(i) is int and 0 <= i < classes for i in indices):
        raise refuse(file, where, "must have a label and top5 that are indices of classes", indices)
    if not isinstance(probabilities, list) or not probabilities or not all(map(is_number, probabilities)):
        raise refuse(file, f"{where}: probabilities", "must be finite numbers", probabilities)
