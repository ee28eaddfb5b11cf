"""Read what evaluations that count true and predicted classes have in common, for a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np

from ...errors import UserError
from ...files import read_json
from ..results import is_number, refuse

#: Limits of a file: bytes, and number of classes, the square of which are numbers in the matrix.
_MOST_BYTES, _MOST_CLASSES = 1 << 30, 5000


class Counted(NamedTuple):
    """The common content of such a file.

    Attributes:
        content: all of it.
        dataset: name of the dataset.
        classes: their names.
        results: metrics by name, in percent; None for undefined ones.
        confusion: (classes, classes) counts by true and predicted class.
        images: entries of the images, which are not checked.
    """

    content: Dict[str, Any]
    dataset: str
    classes: List[str]
    results: Dict[str, Optional[float]]
    confusion: np.ndarray
    images: List[Any]


def read_counted(file: Path, what: str) -> Counted:
    """Read the file of an evaluation.

    Args:
        what: kind of evaluation, for error messages.

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
    images = content.get("images")
    if not isinstance(images, list):
        raise refuse(file, "images", "must be a list", images)
    return Counted(content, dataset, classes, results, np.array(rows, np.int64), images)
