"""Read what evaluations that count true and predicted classes have in common, for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from ...errors import UserError
from ...files import read_json
from ..results import is_number, refuse

#: Fields of :class:`CountedEvaluation` that are in the file as they are.
SHARED = ("dataset", "classes", "results", "confusion")
#: Limits of a file: bytes, and number of classes, the square of which are numbers in the matrix.
_MOST_BYTES, _MOST_CLASSES = 1 << 30, 5000


@dataclass(kw_only=True)
class CountedEvaluation:
    """The files of one such evaluation.

    Attributes:
        name: name of the folder or the configuration.
        dataset: name of the dataset.
        classes: their names.
        results: metrics by name, in percent; None for undefined ones.
        confusion: (classes, classes) counts by true and predicted class.
        images: an entry of each image.
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


def read_counted(file: Path, what: str) -> Dict[str, Any]:
    """Read the file of an evaluation.

    Args:
        what: kind of evaluation, for error messages.

    Returns:
        The content, with ``confusion`` as an array; entries of images are not checked.

    Raises:
        UserError: the file cannot be read, or an entry cannot be shown.
    """
    content = read_json(file, limit=_MOST_BYTES)
    if not isinstance(content, dict) or "confusion" not in content:
        raise UserError(f"{file} is not an evaluation of {what}: it has no confusion")
    classes, dataset = content.get("classes"), content.get("dataset")
    if not isinstance(dataset, str):
        raise refuse(file, "dataset", "must be a name", dataset)
    if not isinstance(classes, list) or not classes or not all(isinstance(c, str) for c in classes):
        raise refuse(file, "classes", "must be a list of names", classes)
    if len(classes) > _MOST_CLASSES:
        raise UserError(f"{file}: classes must be at most {_MOST_CLASSES}, got {len(classes)}")
    results = content.get("results")
    if not isinstance(results, dict) or not all(v is None or is_number(v) for v in results.values()):
        raise refuse(file, "results", "must be finite numbers or null by name", results)
    rows = content["confusion"]
    square = isinstance(rows, list) and len(rows) == len(classes)
    if not square or not all(isinstance(row, list) and len(row) == len(classes) for row in rows):
        raise refuse(file, "confusion", f"must be {len(classes)} lists of as many counts", rows)
    for i, row in enumerate(rows):
        if not all(type(count) is int and 0 <= count < 2**53 for count in row):
            raise refuse(file, f"confusion[{i}]", "must be counts", row)
    if not isinstance(content.get("images"), list):
        raise refuse(file, "images", "must be a list", content.get("images"))
    return {**content, "confusion": np.array(rows, np.int64)}
