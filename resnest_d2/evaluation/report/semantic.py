"""Read the evaluation of semantic segmentation for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from ..results import is_number, refuse
from .counted import read_counted


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
    counted = read_counted(file, "semantic segmentation")
    return SemanticEvaluation(
        name=name,
        folder=file.parent,
        dataset=counted.dataset,
        classes=counted.classes,
        colours=_colours(file, counted.content.get("colours"), len(counted.classes)),
        results=counted.results,
        confusion=counted.confusion,
        images=[_image(file, f"images[{i}]", entry) for i, entry in enumerate(counted.images)],
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
