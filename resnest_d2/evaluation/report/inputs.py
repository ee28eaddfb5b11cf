"""Readers of the files for a report, which reject everything that would fail later.

Errors are one line that names the file and the entry. Unused fields are dropped, since COCO's tools would
misinterpret some of them.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ...data import load_coco
from ...data.annotations import checked_mask, checked_runs
from ...errors import UserError
from ...files import check_readable, parse_json, read_json, read_text
from ..labels import label
from ..results import is_number, refuse

logger = logging.getLogger(__name__)

#: Kinds of detection and their fields, in both results and annotations.
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
_KEYPOINTS = 17  # of COCO's person, which the OKS constants are for
_MAX_DETECTIONS = 4 << 30  # bytes
# COCO's encoding counts pixels in 32 bits, and masks are decoded to one byte per pixel.
_MAX_PIXELS = 1 << 28


@contextmanager
def remedied(remedy: str) -> Iterator[None]:
    """Context that adds a remedy to UserErrors."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{e}; {remedy}") from None


def read_truth(file: Path, what: str = "") -> Dict[str, List[Dict[str, Any]]]:
    """Read the images, annotations and categories of a COCO file.

    Category names are made printable and unique. Run-length encodings are compressed.

    Args:
        what: the flag that names the file, for error messages.

    Raises:
        UserError: the file cannot be read, or an entry cannot be evaluated.
    """
    content = load_coco(check_readable(file, what))
    with remedied("tools/check_dataset.py shows what else is wrong, and --fix writes a repaired copy"):
        return _read_truth(file, content)


def _read_truth(file: Path, content: Dict[str, List[Any]]) -> Dict[str, List[Dict[str, Any]]]:
    images, categories = _read_images(file, content["images"]), _read_categories(file, content["categories"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    known = {category["id"] for category in categories}
    annotations = []
    for i, entry in enumerate(content["annotations"]):  # completed by load_coco
        where = f"annotations[{i}]"
        _check_place(file, where, entry, sizes, known)
        good = {key: entry[key] for key in ("id", "image_id", "category_id", "area", "iscrowd")}
        good["bbox"] = _box(file, where, entry["bbox"])
        if entry.get("segmentation"):
            good["segmentation"], flaw = checked_mask(entry["segmentation"], *sizes[entry["image_id"]])
            if flaw:
                raise refuse(file, f"{where}: segmentation", flaw, entry["segmentation"])
        if entry.get("keypoints"):
            good["keypoints"] = _keypoints(file, where, entry["keypoints"])
            good["num_keypoints"] = entry["num_keypoints"]
        annotations.append(good)
    return {"images": images, "annotations": annotations, "categories": categories}


def read_detections(file: Path, truth: Dict[str, List[Dict[str, Any]]]) -> List[Dict[str, Any]]:
    """Read detections in COCO's format, all with the same fields.

    Args:
        truth: from :func:`read_truth`, with the images and categories of the detections.

    Raises:
        UserError: the file cannot be read, or an entry cannot be evaluated.
    """
    content = read_json(file, limit=_MAX_DETECTIONS)
    if not isinstance(content, list):
        raise UserError(f"{file} is not a list of detections")
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    known = {category["id"] for category in truth["categories"]}
    fields: Optional[List[str]] = None
    detections = []
    for i, entry in enumerate(content):
        where = f"detection {i}"
        _check_object(file, where, entry)
        _check_place(file, where, entry, sizes, known)
        if not is_number(entry.get("score")):
            raise refuse(file, f"{where}: score", "must be a finite number", entry.get("score"))
        good = {key: entry[key] for key in ("image_id", "category_id", "score")}
        if fields is None:
            fields = [field for field in FIELDS.values() if entry.get(field) not in (None, [])]
            if not fields:
                raise refuse(file, where, f"must have one of {', '.join(FIELDS.values())}", entry)
        for field in fields:
            value = entry.get(field)
            if field == "bbox":
                good[field] = _box(file, where, value)
            elif field == "segmentation":
                good[field], flaw = checked_runs(value, *sizes[entry["image_id"]])
                if flaw:
                    raise refuse(file, f"{where}: segmentation", flaw, value)
            else:
                good[field] = _keypoints(file, where, value)
                if len(value) != len(content[0][field]):
                    raise refuse(file, f"{where}: keypoints", "must be as many as in detection 0", value)
        detections.append(good)
    return detections


def comparable(
    truth_file: Path, truth: Dict[str, List[Dict[str, Any]]], detections: List[Dict[str, Any]]
) -> List[str]:
    """Return the kinds that are both predicted and annotated, of ``bbox``, ``segm`` and ``keypoints``.

    Raises:
        UserError: there are none, or some annotations lack a field that others have.
    """
    annotations = truth["annotations"]
    tasks = []
    for task, field in FIELDS.items():
        have = [field in annotation for annotation in annotations]
        if (detections and field not in detections[0]) or (annotations and not any(have)):
            continue
        if task == "keypoints":
            lengths = {len(e[field]) // 3 for e in [*annotations, *detections[:1]] if field in e}
            if lengths - {_KEYPOINTS}:
                logger.warning("keypoints are left out: COCO's metric is for %d, not %s", _KEYPOINTS, lengths)
                continue
        if not detections and tasks:  # one task says it all if nothing was found
            continue
        if not all(have):
            number = annotations[have.index(False)]["id"]
            raise UserError(f"{truth_file}: annotation {number} has no {field}, but others have one")
        tasks.append(task)
    if not tasks:
        found = ", ".join(f for f in FIELDS.values() if detections and f in detections[0])
        raise UserError(f"{truth_file}: its annotations have nothing to compare with the detections' {found}")
    return tasks


def read_metrics(file: Path) -> List[Dict[str, Any]]:
    """Read the lines of a ``metrics.json``, keeping values that are finite numbers.

    A killed process may cut off its last line, and a resumed one writes after it, so damaged lines are
    skipped with a warning.

    Raises:
        UserError: the file cannot be read, or has no valid line.
    """
    good, bad = [], []
    for i, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line, str(file))
        except UserError:
            entry = None
        if isinstance(entry, dict) and is_number(entry.get("iteration")):
            good.append({key: value for key, value in entry.items() if is_number(value)})
        else:
            bad.append(i)
    if len(bad) > 1 and not good:
        raise UserError(f"{file} has no metrics: a line must be an object with an iteration")
    if bad:
        logger.warning("%s: skipping %d damaged lines, the first is line %d", file, len(bad), bad[0])
    return good


def _identified(file: Path, key: str, name: str, entries: List[Any]) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Yield each entry with its place, after checking for a unique id and a string under ``name``."""
    seen = set()
    for i, entry in enumerate(entries):
        where = f"{key}[{i}]"
        _check_object(file, where, entry)
        if not _is_id(entry.get("id")) or entry["id"] in seen:
            raise refuse(file, f"{where}: id", "must be a unique whole number", entry.get("id"))
        if not isinstance(entry.get(name), str):
            raise refuse(file, f"{where}: {name}", "must be a string", entry.get(name))
        seen.add(entry["id"])
        yield where, entry


def _read_images(file: Path, entries: List[Any]) -> List[Dict[str, Any]]:
    images = []
    for where, entry in _identified(file, "images", "file_name", entries):
        size = entry.get("height"), entry.get("width")
        if not all(_is_id(side) and side > 0 for side in size) or math.prod(size) > _MAX_PIXELS:
            raise refuse(file, f"{where}: height and width", "must be the size of an image in pixels", size)
        named = {key: entry[key] for key in ("id", "file_name")}
        images.append({**named, "height": size[0], "width": size[1]})
    return images


def _read_categories(file: Path, entries: List[Any]) -> List[Dict[str, Any]]:
    categories = [
        {"id": entry["id"], "name": label(entry["name"], 100)}
        for _, entry in _identified(file, "categories", "name", entries)
    ]
    times = Counter(category["name"] for category in categories)
    return [
        {**c, "name": c["name"] if times[c["name"]] == 1 else f"{c['name']} ({c['id']})"} for c in categories
    ]


def _is_id(value: Any) -> bool:
    """Whether a value is a whole number that stays exact as a float, which COCO's tools turn ids into."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53


def _check_object(file: Path, where: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise refuse(file, where, "must be an object", entry)


def _check_place(
    file: Path, where: str, entry: Dict[str, Any], sizes: Dict[int, Tuple[int, int]], categories: set
) -> None:
    for key, known in (("image_id", sizes), ("category_id", categories)):
        if not _is_id(entry.get(key)) or entry[key] not in known:
            raise refuse(file, f"{where}: {key}", "must be one in the annotation file", entry.get(key))


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _box(file: Path, where: str, value: Any) -> List[float]:
    if not _numbers(value) or len(value) != 4 or min(value[2:]) < 0:
        raise refuse(file, f"{where}: bbox", "must be x, y, width and height as finite numbers", value)
    return value


def _keypoints(file: Path, where: str, value: Any) -> List[float]:
    if not _numbers(value) or not value or len(value) % 3:
        raise refuse(file, f"{where}: keypoints", "must be x, y and a third number for each", value)
    return value
