"""Read the evaluation of a classifier for a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..results import is_number, refuse
from .counted import SHARED, CountedEvaluation, read_counted


class ClassificationEvaluation(CountedEvaluation):
    """The files of one evaluation of a classifier, which counts images.

    Attributes:
        images: of each image its path, ``label``, and the indices and ``probabilities`` of the ``top5``.
    """


def read_classification(file: Path, **known: Any) -> ClassificationEvaluation:
    """Read what :class:`ClassificationEvaluator` has written.

    Args:
        known: the fields that are not in the file.

    Raises:
        UserError: the file cannot be read, or an entry cannot be shown.
    """
    content = read_counted(file, "classification")
    for i, entry in enumerate(content["images"]):
        _check_image(file, f"images[{i}]", entry, len(content["classes"]))
    return ClassificationEvaluation(
        images=content["images"], **{key: content[key] for key in SHARED}, **known
    )


def _check_image(file: Path, where: str, entry: Any, classes: int) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise refuse(file, where, "must be an object with a file_name", entry)
    best, probabilities = entry.get("top5"), entry.get("probabilities")
    indices = [entry.get("label"), *(best if isinstance(best, list) else [None])]
    if len(indices) < 2 or not all(type(i) is int and 0 <= i < classes for i in indices):
        raise refuse(file, where, "must have a label and top5 that are indices of classes", indices)
    if not isinstance(probabilities, list) or not probabilities or not all(map(is_number, probabilities)):
        raise refuse(file, f"{where}: probabilities", "must be finite numbers", probabilities)
