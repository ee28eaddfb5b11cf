"""Read the evaluation of semantic segmentation for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from ...errors import UserError
from ...files import read_json
from ..results import is_number, refuse

#: Limits of a file: bytes, and number of classes, the square of which are numbers in the matrix.
_MOST_BYTES, _MOST_CLASSES = 1 << 30, 5000


@dataclass
class SemanticEvaluation:
    """The files of one evaluation of semantic segmentation.

    Attributes:
        name: name of the folder or the configuration.
        folder: folder of the file, which has the predictions below it.
        dataset: name of the dataset.
        classes: their names.
        colours: (R, G, B) of each, if the dataset has any.
        results: metrics by name, in percent; None for undefined ones.
        confusion: (classes, classes) pixels by true and predicted class.
        images: of each image, the paths of itself, its label map and its prediction, and its ``mIoU``.
        run: content of ``results.json``; empty if there is none.
        metrics: lines of ``metrics.json``; empty if nothing was trained.
        published: name of the published row to compare with.
    """

    name: str
    folder: Path
    dataset: str
    classes: List[str]
    colours: Optional[List[Tuple[int, int, int]]]
    results: Dict[str, Optional[float]]
    confusion: np.ndarray
    images: List[Dict[str, Any]]
    run: Dict[str, Any]
    metrics: List[Dict[str, Any]]
    published: Optional[str]


def read_semantic(
    file: Path, name: str, run: Dict[str, Any], metrics: List[Dict[str, Any]], published: Optional[str]
) -> SemanticEvaluation:
    """Read what :class:`SemanticEvaluator` has written.

    Raises:
        UserError: the file cannot be read, or an entry cannot be shown.
    """
    content = read_json(file, limit=_MOST_BYTES)
    if not isinstance(content, dict) or "confusion" not in content:
        raise UserError(f"{file} is not an evaluation of semantic segmentation: it has no confusion")
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
    return SemanticEvaluation(
        name=name,
        folder=file.parent,
        dataset=dataset,
        classes=classes,
        colours=_colours(file, content.get("colours"), len(classes)),
        results=results,
        confusion=np.array(rows, np.int64),
        images=[_image(file, f"images[{i}]", entry) for i, entry in enumerate(images)],
        run=run,
        metrics=metrics,
        published=published,
    )


def _colours(file: Path, colours: Any, count: int) -> Optional[List[Tuple[int, int, int]]]:
    if colours is None:
        return None
    if not isinstance(colours, list) or len(colours) != count or not all(map(_is_colour, colours)):
        raise refuse(file, "colours", f"must be null or {count} lists of R, G, B from 0 to 255", colours)
    return [tuple(colour) for colour in colours]


def _is_colour(colour: Any) -> bool:
    return (
        isinstance(colour, list) and len(colour) == 3 and all(type(v) is int and 0 <= v < 256 for v in colour)
    )


def _image(file: Path, where: str, entry: Any) -> Dict[str, Any]:
    if not isinstance(entry, dict):
        raise refuse(file, where, "must be an object", entry)
    for key in ("file_name", "sem_seg_file_name", "prediction"):
        if not isinstance(entry.get(key), str):
            raise refuse(file, f"{where}: {key}", "must be a path", entry.get(key))
    if entry.get("mIoU") is not None and not is_number(entry["mIoU"]):
        raise refuse(file, f"{where}: mIoU", "must be a finite number or null", entry["mIoU"])
    return entry
