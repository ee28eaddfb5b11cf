"""Read the boxes of COCO-format annotations, and detect the box format that a file uses."""

from __future__ import annotations

import math
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..errors import UserError
from .annotations import is_number, number_meant, whole_number
from .coco_report import Report

#: How far coordinates in fractions may lie beyond the image.
ROUNDING = 0.01
#: Pixels by which a box or a keypoint may extend beyond the image's border.
SLACK = 1.0
# Number of boxes needed to suspect a format, and to be sure of it.
_FEW, _ENOUGH = 5, 20
# Fractions of boxes that do not fit a format: suspected to be wrong, surely wrong, and right.
_SOME, _MANY, _HARDLY_ANY = 0.1, 0.25, 0.01


class ImageEntry(NamedTuple):
    """The id under which an image is kept, and its size in pixels."""

    id: int
    width: int
    height: int


def read_box(given: Any) -> Tuple[Optional[List[float]], Optional[str]]:
    """Return the intended box, or None; and what is wrong with it, or None."""
    if given is None:
        return None, "box missing"
    box = [number_meant(value) for value in given] if isinstance(given, list) else []
    if len(box) != 4 or None in box:
        return None, "box of the wrong type"
    if not all(map(math.isfinite, box)):
        return None, "number that is not finite"
    if min(box[2:]) <= 0:
        return None, "box without area"
    return box, None if all(map(is_number, given)) else "box of the wrong type"


def is_pixel(box: Sequence[float]) -> bool:
    """Whether a box has only zeros and ones: one pixel, or in fractions the whole image."""
    return all(value in (0, 1) for value in box)


def are_fractions(
    source: object, annotations: Sequence[Any], images: Mapping[int, ImageEntry], report: Report
) -> bool:
    """Whether all boxes of a file are x, y, width and height in fractions of their images.

    If they seem to be neither fractions nor pixels, the report gets a note.

    Args:
        source: the file, for error messages.
        images: by id.

    Raises:
        UserError: they are surely not x, y, width and height.
    """
    known = []
    for annotation in annotations:
        box, _ = read_box(annotation.get("bbox")) if isinstance(annotation, dict) else (None, None)
        if box is not None:
            image = images.get(whole_number(annotation.get("image_id")))
            size = image[1:] if image else (math.nan, math.nan)
            known.append((*box, *size, bool(annotation.get("segmentation")), annotation))
    if not known:
        return False
    table = np.array([row[:7] for row in known], dtype=np.float64)
    telling = table[~np.isin(table[:, :4], (0, 1)).all(axis=1), :4]
    if len(telling) and telling.min() >= -ROUNDING and telling.max() <= 1 + ROUNDING:
        end = (telling[:, :2] + telling[:, 2:]).max()
        if end > 1 + ROUNDING:
            raise UserError(
                f"{source}: all boxes are fractions of the image, but not as x, y, width, height, since one "
                f"would end at {end:.2f} of it; write x, y, width, height in pixels"
            )
        return True
    _check_pixels(source, table, [row[-1] for row in known], report)
    return False


def _check_pixels(
    source: object, table: np.ndarray, annotations: Sequence[Mapping[str, Any]], report: Report
) -> None:
    """Note in the report if boxes seem to be two corners or percentages.

    Args:
        table: (N, 7): each annotation's box, the width and height of its image, and whether it has a mask.

    Raises:
        UserError: the boxes are surely corners.
    """
    # For a box with a mask, the mask tells more than the other boxes do.
    alone = (table[:, 6] == 0) & np.isfinite(table[:, 4])
    start, extent, size = (table[alone, columns] for columns in (slice(2), slice(2, 4), slice(4, 6)))
    count = len(start)
    if count < _FEW:
        return
    inside = (start >= -SLACK).all(axis=1)
    beyond = ~inside | (start + extent > size + SLACK).any(axis=1)
    unlike_corners = ~(inside & (extent > start).all(axis=1) & (extent <= size + SLACK).all(axis=1))
    if beyond.sum() > max(2, _SOME * count) and unlike_corners.sum() <= _HARDLY_ANY * count:
        annotation = annotations[np.flatnonzero(alone)[beyond.argmax()]]
        width, height = size[beyond.argmax()]
        line = (
            f"{beyond.sum()} of {count} boxes reach beyond their image when read as x, y, width, height, but "
            f"{unlike_corners.sum() or 'none'} when read as x1, y1, x2, y2, such as the box of annotation "
            f"{annotation.get('id')!r:.20}, {annotation['bbox']!r:.60} on {width:.0f}x{height:.0f} pixels; "
            "COCO uses x, y, width, height"
        )
        if count >= _ENOUGH and beyond.sum() >= _MANY * count:
            raise UserError(f"{source}: {line}")
        report.notes.append(line)
    largest = max(start.max(), extent.max())
    if count == len(table) >= _ENOUGH and 50 < largest <= 101 and size.min() > 2 * largest:
        report.notes.append(
            f"none of {count} boxes has a number above {largest:.0f}, on images of at least {size.min():.0f} "
            "pixels a side: are they percentages? COCO uses pixels"
        )
