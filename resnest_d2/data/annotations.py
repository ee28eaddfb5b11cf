"""Read annotation files in COCO's format, and complete them for evaluation."""

from __future__ import annotations

import codecs
import math
import numbers
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import pycocotools.mask as mask_util

from ..errors import UserError
from ..files import read_json

_NUMERAL = re.compile(r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*", re.ASCII)
_REMEDY = "tools/check_dataset.py shows what is wrong, and --fix writes a repaired copy"


#: Size in bytes above which a file cannot fit in memory; parsed, it needs still more.
LARGEST = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
#: The lists of a COCO file.
LISTS = ("images", "annotations", "categories")


def read_coco(json_file: Union[str, Path], *needed: str) -> Dict[str, List[Any]]:
    """Read the :data:`LISTS` of a COCO file; missing lists are empty.

    detectron2 uses the same parser.

    Args:
        needed: lists that must not be empty.

    Raises:
        UserError: the file cannot be read or is not JSON, or one of the lists is not a list, or is needed
            and empty, or the annotations are elsewhere in the file.
    """
    content = read_json(json_file, limit=LARGEST)
    with open(json_file, "rb") as file:
        if file.read(3) == codecs.BOM_UTF8:
            raise UserError(
                f"{json_file} begins with a byte-order mark, which detectron2 rejects; save it without"
            )
    lists = {name: content.get(name, []) if isinstance(content, dict) else [] for name in LISTS}
    for name, entries in lists.items():
        if not isinstance(entries, list):
            raise UserError(f"{json_file}: {name!r} is not a list; is it a COCO annotation file?")
        if not entries and name in needed:
            raise UserError(f"{json_file} has no list of {name}; is it a COCO annotation file?")
    if not lists["annotations"] and any(isinstance(i, dict) and "annotations" in i for i in lists["images"]):
        raise UserError(
            f"{json_file} has its annotations inside the entries of images; COCO's format has one list of "
            "them beside images, each with the image_id of its image"
        )
    return lists


def load_coco(json_file: Union[str, Path]) -> Dict[str, List[Any]]:
    """Read the lists of a COCO file, completed by :func:`complete`.

    Raises:
        UserError: as in :func:`read_coco`, or the file has no images, no categories, or unusable entries.
    """
    return complete(read_coco(json_file, "images", "categories"), str(json_file))


def complete(content: Mapping[str, Any], source: str = "the ground truth") -> Dict[str, Any]:
    """Copy an annotation file's content, adding whatever COCO's evaluation reads and the file lacks.

    COCO's programs treat id 0 as no annotation and disagree on negative ids, so annotations are renumbered
    from 1 unless all ids are unique and above 0. An area that is missing, or that COCO would ignore, becomes
    that of the mask, or else of the box; a missing ``iscrowd`` becomes 0. ``num_keypoints`` is recounted from
    the visibilities, since COCO ignores an object where it is 0.

    Args:
        source: the file, for error messages.

    Raises:
        UserError: an entry lacks something that cannot be filled in.
    """
    keys = {"images": ("id",), "annotations": ("image_id", "category_id"), "categories": ("id",)}
    lists = {name: content.get(name) or [] for name in keys}
    for name, ids in keys.items():
        for number, entry in enumerate(lists[name]):
            wrong = [key for key in ids if not isinstance(entry, dict) or not is_id(entry.get(key))]
            if wrong:
                raise UserError(
                    f"{source}: entry {number} of the {name} has no {wrong[0]} that is a whole number; "
                    + _REMEDY
                )
    if not all(isinstance(category.get("name"), str) for category in lists["categories"]):
        raise UserError(f"{source}: a category has no name; {_REMEDY}")
    lists["images"] = [{**image, **_whole_size(image)} for image in lists["images"]]
    lists["categories"] = [dict(category) for category in lists["categories"]]
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in lists["images"]}
    given = [annotation.get("id") for annotation in lists["annotations"]]
    # pycocotools stores matched ids as floats, which are exact up to 2**53.
    sound = all(is_id(i) and 0 < i < 2**53 for i in given) and len(set(given)) == len(given)
    lists["annotations"] = [
        _complete_annotation(annotation, number if not sound else given[number - 1], sizes, source)
        for number, annotation in enumerate(lists["annotations"], 1)
    ]
    return {**content, **lists}


def _complete_annotation(
    annotation: Dict[str, Any], number: int, sizes: Mapping[int, Sequence[Any]], source: str
) -> Dict[str, Any]:
    box, crowd, keypoints = (annotation.get(key) for key in ("bbox", "iscrowd", "keypoints"))
    where = f"{source}: annotation {annotation.get('id', f'number {number}')}"
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(map(is_finite, box)):
        has = "no box" if box is None else f"the box {box!r:.60}"
        raise UserError(f"{where} has {has}, but needs x, y, width, height; {_REMEDY}")
    if crowd not in (0, 1, None):
        raise UserError(f"{where} has iscrowd {crowd!r:.60} instead of the number 0 or 1; {_REMEDY}")
    completed = {**annotation, "id": number, "iscrowd": int(crowd or 0), "bbox": list(box)}
    if not is_area(annotation.get("area")):
        completed["area"] = area_of(annotation, sizes.get(annotation["image_id"], (None, None)))
    if isinstance(keypoints, list):
        if not all(map(is_finite, keypoints)):
            raise UserError(f"{where} has keypoints that are not finite numbers; {_REMEDY}")
        completed["num_keypoints"] = visible_keypoints(keypoints)
    return completed


def _whole_size(image: Mapping[str, Any]) -> Dict[str, int]:
    """Return width and height as integers, if their values are whole numbers of any type."""
    given = {key: whole_number(image.get(key)) for key in ("width", "height") if key in image}
    return {key: value for key, value in given.items() if value is not None}


def area_of(annotation: Mapping[str, Any], size: Sequence[Any]) -> float:
    """Compute the area of the mask in square pixels, or of the box if there is no readable mask.

    Args:
        size: height and width of the image, in pixels.
    """
    if annotation.get("segmentation"):
        try:
            return float(mask_util.area(encode_mask(annotation["segmentation"], *size)))
        except Exception:  # for an invalid mask, pycocotools raises anything, even plain Exception
            pass
    _, _, width, height = annotation["bbox"]
    return float(max(width, 0) * max(height, 0))


def encode_mask(segmentation: Any, height: int, width: int) -> Dict[str, Any]:
    """Convert polygons or run lengths to the compressed run lengths of pycocotools."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def checked_mask(mask: Any, height: int, width: int) -> Tuple[Any, Optional[str]]:
    """Convert a mask to a form that all of COCO's programs read alike.

    The polygon rasteriser's memory grows with the length of the sides. Given a polygon of four numbers,
    pycocotools would read all of them as boxes.

    Args:
        height, width: of the image, in pixels.

    Returns:
        The polygons of three or more points, or for run lengths the result of :func:`checked_runs`; and what
        the mask must be, or None if it is valid.
    """
    if isinstance(mask, dict):
        return checked_runs(mask, height, width)
    polygons = mask if isinstance(mask, list) else [None]
    sound = all(isinstance(p, list) and all(map(is_finite, p)) for p in polygons)
    drawn = [polygon for polygon in polygons if is_polygon(polygon)] if sound else []
    if not drawn or max(max(map(abs, polygon)) for polygon in drawn) > 2 * max(height, width):
        return None, f"must be polygons of three or more points on an image of {height}x{width} pixels"
    return drawn, None


def checked_runs(
    mask: Any, height: int, width: int, trusted: bool = False
) -> Tuple[Optional[Dict[str, Any]], Optional[str]]:
    """Return run lengths, compressed, in JSON's types; and what they must be, or None if they are valid.

    Given damaged ones, COCO's programs write out of bounds or hang.

    Args:
        height, width: of the image, in pixels.
        trusted: they are known to be valid, so check only their size.
    """
    counts, size = (mask.get("counts"), mask.get("size")) if isinstance(mask, dict) else (None, None)
    counts = counts.decode("latin-1") if isinstance(counts, bytes) else counts
    fits = isinstance(size, (list, tuple, np.ndarray)) and list(size) == [height, width]
    if not fits or not (trusted or run_lengths(counts, height * width) is not None):
        return None, f"must be the run-length encoding of a mask of {height}x{width} pixels"
    runs = {"size": [height, width], "counts": counts}
    return compressed(encode_mask(runs, height, width)) if isinstance(counts, list) else runs, None


def is_polygon(coordinates: Any) -> bool:
    """Whether a list x, y, x, y, ... has three or more points."""
    return len(coordinates) >= 6 and len(coordinates) % 2 == 0


def compressed(mask: Mapping[str, Any]) -> Dict[str, Any]:
    """Convert pycocotools' run lengths to types that JSON supports."""
    return {"size": list(mask["size"]), "counts": mask["counts"].decode()}


def visible_keypoints(points: Sequence[float]) -> int:
    """Count the labelled keypoints in x, y, v, x, y, v, ...: COCO's ``num_keypoints``."""
    return sum(v > 0 for v in points[2::3])


def run_lengths(counts: Any, pixels: int) -> Optional[List[int]]:
    """Return the lengths of a mask's runs, or None if they do not add up to its ``pixels``.

    Args:
        counts: a list, or COCO's compressed encoding of it. This writes each length in groups of five bits,
            lowest first, as characters from "0" on; the sixth bit says that more follow. From the third
            length on, it stores the difference from the last but one.
    """
    if isinstance(counts, str):
        decoded = _decoded(counts)
        sound = decoded is not None and decoded.min() >= 0 and decoded.sum() == pixels
        return decoded.tolist() if sound else None
    sound = isinstance(counts, list) and all(is_id(run) and run >= 0 for run in counts)
    return counts if sound and sum(counts) == pixels else None


def _decoded(text: str) -> Optional[np.ndarray]:
    codes = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), np.uint16).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    if not len(codes) or codes.min() < 0 or codes.max() >= 64 or not len(ends) or ends[-1] != len(codes) - 1:
        return None
    starts = np.append(0, ends[:-1] + 1)
    groups = ends - starts + 1
    if groups.max() > 6:  # with their 32 bits, COCO's programs misread longer ones
        return None
    place = np.arange(len(codes)) - np.repeat(starts, groups)
    runs = np.add.reduceat((codes & 31) << 5 * place, starts)
    runs -= (codes[ends] & 16 > 0) << 5 * groups
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def spread(count: int, most: int) -> List[int]:
    """Return at most ``most`` evenly spaced indices of ``count`` entries, with the first and the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def whole_number(value: Any) -> Optional[int]:
    """Read 7, 7.0 or "7" as a whole number of at most 64 bits; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,19}\s*", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if is_id(value) else None


def number_meant(value: Any) -> Optional[float]:
    """Read 7.5 or "7.5" as a number; NaN for null and what a float cannot hold, None for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, str) and _NUMERAL.fullmatch(value):
        return float(value)
    return value if is_finite(value) else math.nan if is_number(value) else None


def is_id(value: Any) -> bool:
    """Whether a value is a whole number of at most 64 bits, including numpy's."""
    return (
        isinstance(value, (int, numbers.Integral))
        and not isinstance(value, bool)
        and -(2**63) <= value < 2**63
    )


def is_number(value: Any) -> bool:
    return isinstance(value, (float, int, numbers.Real)) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold, which JSON does not guarantee."""
    return is_number(value) and abs(value) <= sys.float_info.max


def is_area(value: Any) -> bool:
    """Whether an area is usable; some programs write 0 for no area.

    COCO's evaluation ignores objects of more than 1e10 square pixels.
    """
    return is_finite(value) and 0 < value <= 1e10
