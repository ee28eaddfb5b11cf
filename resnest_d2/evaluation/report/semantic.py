"""Read the evaluation of semantic segmentation for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ..results import is_number, refuse
from .counted import SHARED, CountedEvaluation, read_counted


@dataclass(kw_only=True)
class SemanticEvaluation(CountedEvaluation):
    """The files of one evaluation of semantic segmentation, which counts pixels.

    Attributes:
        folder: folder of the file, which has the predictions below it.
        colours: (R, G, B) of each class, if the dataset has any.
        images: of each image, the paths of itself, its label map and its prediction, and its ``mIoU``.
    """

    folder: Path
    colours: Optional[List[Tuple[int, int, int]]]


def read_semantic(file: Path, **known: Any) -> SemanticEvaluation:
    """Read what :class:`SemanticEvaluator` has written.

    Args:
        known: the fields that are not in the file.

    Raises:
        UserError: the file cannot be read, or an entry cannot be shown.
    """
    content = read_counted(file, "semantic segmentation")
    return SemanticEvaluation(
        folder=file.parent,
        colours=_colours(file, content.get("colours"), len(content["classes"])),
        images=[_image(file, f"images[{i}]", entry) for i, entry in enumerate(content["images"])],
        **{key: content[key] for key in SHARED},
        **known,
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
