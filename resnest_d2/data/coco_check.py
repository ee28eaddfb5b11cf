"""Find what is wrong with a COCO-format dataset, and write a repaired copy of it."""

from __future__ import annotations

import json
import os
import re
import time
import unicodedata
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple
from urllib.parse import unquote

from tqdm import tqdm

from ..errors import UserError
from ..files import atomic_write_text, check_writable, read_json
from .annotations import LARGEST, LISTS, is_id, read_coco, spread, whole_number
from .coco_boxes import ImageEntry, are_fractions
from .coco_objects import Inspector, check_id
from .coco_report import Report
from .findings import NARROW, Lost
from .image_files import is_narrow, real_size

#: detectron2's default for INPUT.MAX_SIZE_TRAIN and INPUT.MAX_SIZE_TEST.
MAX_SIZE = 1333
# Number of images in a sample, and the time limit for reading their headers.
_SAMPLE, _SECONDS = 200, 2.0


def check_coco(
    json_file: Path,
    image_root: Path,
    images: str = "decode",
    fix: Optional[Path] = None,
    overwrite: bool = False,
    max_size: float = MAX_SIZE,
) -> Report:
    """Check a dataset, and with ``fix`` write a repaired copy of its annotations.

    The copy leaves out entries that cannot be repaired, which the report counts, and images whose annotated
    size is off by more than a pixel, since the coordinates may be for either size. Boxes are clipped to the
    image, missing sizes are read from the files, annotations are numbered from 1, crowd polygons become
    masks, and an image that is listed twice gets the annotations of both.

    Args:
        images: how to check the image files: ``none``, ``exist``, ``header`` or ``decode``; ``sample``
            checks that all exist, and reads the headers of some.
        overwrite: let the copy replace an annotation file, though never the one that is checked.
        max_size: largest length in pixels of an image's longer side after resizing.

    Raises:
        UserError: the file cannot be read, is not JSON, has no lists of images and categories, or has boxes
            that cannot be x, y, width and height; there is no image folder; or the copy cannot be written,
            would have no images or none of the annotations, or would replace a file that must be kept.
    """
    report, json_file = Report(), Path(json_file)
    if images != "none" and not os.path.isdir(image_root):
        raise UserError(f"there is no folder of images {os.path.abspath(image_root)}")
    if fix:
        check_writable(fix)
        _check_target(Path(fix), json_file, overwrite)
    content = read_coco(json_file, "categories", "images")
    copy: Dict[str, Any] = {}
    copy["categories"], keypoints = _check_categories(content["categories"], report)
    copy["images"], known, lost = _check_images(content["images"], Path(image_root), images, max_size, report)
    annotations = content["annotations"]
    fractions = are_fractions(json_file, annotations, known, report)
    inspector = Inspector(known, keypoints, lost, fractions, report)
    copy["annotations"] = []
    for index, annotation in enumerate(annotations):
        mended = inspector.inspect(annotation, index)
        if fix and mended is not None:
            copy["annotations"].append({**mended, "id": len(copy["annotations"]) + 1})
    report.empty = len({image.id for image in known.values()} - inspector.annotated)
    if any(keypoints.values()) and report.objects and not report.visible:
        report.notes.append("no object has a visible keypoint, so keypoints cannot be learned")
    if not annotations:
        report.notes.append("there are no annotations, which is right only for test images")
    if fix:
        for name, entries in copy.items():
            if not entries and content[name]:
                reasons = "; ".join(map(report.line, report.lost.get(name) or report.counts))
                raise UserError(f"{json_file}: no {name} would be left in the repaired copy: {reasons}")
        atomic_write_text(fix, json.dumps(copy))
    return report


def _check_target(fix: Path, json_file: Path, overwrite: bool) -> None:
    """Raise UserError if the repaired copy would replace a file that must be kept."""
    if not os.path.isfile(fix):  # atomic_writer refuses anything else that exists
        return
    if os.path.exists(json_file) and os.path.samefile(fix, json_file):
        raise UserError(f"{fix} is the annotation file itself; name another file for the repaired copy")
    try:
        content = read_json(fix, limit=LARGEST)
    except UserError:
        content = None
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in LISTS):
        raise UserError(f"{fix} exists and is not an annotation file; name another for the repaired copy")
    if not overwrite:  # it may be another part of the dataset
        raise UserError(
            f"{fix} exists; name another file for the repaired copy, or replace it with --overwrite"
        )


def _check_categories(categories: List[Any], report: Report) -> Tuple[List[Dict[str, Any]], Dict[int, int]]:
    """Return the categories that are kept, and how many keypoints each names, by id."""
    kept: List[Dict[str, Any]] = []
    keypoints: Dict[int, int] = {}
    names: Set[str] = set()
    report.categories = len(categories)
    for index, category in enumerate(categories):
        where = f"category {index}"
        if not isinstance(category, dict):
            report.add("entry is not an object", where)
            continue
        number = check_id(category.get("id"), where, report)
        if number is None:
            continue
        where, name = f"category {number}", category.get("name")
        if number in keypoints:
            report.add("duplicate category id", where)
            continue
        if not isinstance(name, str):
            report.add("category name is not a string", f"{where} ({name!r:.60})")
            name = f"class {number}"
        plain = name.encode("utf-8", "replace").decode()  # without lone surrogates
        if name != plain:
            report.add("name is not valid Unicode", f"{where} ({name})")
            name = plain
        if name in names:
            report.add("duplicate category name", f"{where} ({name})")
            while name in names:
                name = f"{name} {number}"
        mended = {**category, "id": number, "name": name}
        points = category.get("keypoints", [])
        if not isinstance(points, list) or not all(isinstance(point, str) for point in points):
            report.add("keypoint names of the wrong type", where)
            points = []
            del mended["keypoints"]
        names.add(name)
        keypoints[number] = len(points)
        kept.append(mended)
    lists = {tuple(c["keypoints"]): c["name"] for c in kept if c.get("keypoints")}
    if len(lists) > 1:
        one, other, *_ = lists.values()
        report.notes.append(
            f"the categories {one!r:.60} and {other!r:.60} name different keypoints, but a model has one list"
        )
    return kept, keypoints


def _check_images(
    images: List[Any], root: Path, how: str, max_size: float, report: Report
) -> Tuple[List[Dict[str, Any]], Dict[int, ImageEntry], Dict[int, str]]:
    """Return the images that are kept, the kept image of each id, and why the others are lost, by id."""
    kept: List[Dict[str, Any]] = []
    known: Dict[int, ImageEntry] = {}
    by_name: Dict[str, ImageEntry] = {}
    lost: Dict[int, str] = {}
    folder = _Folder(root)
    report.images = len(images)
    sample = set(spread(len(images), _SAMPLE) if how == "sample" else ())
    end = time.monotonic() + _SECONDS
    for index, image in enumerate(tqdm(images, desc="images", disable=how not in ("header", "decode"))):
        number = whole_number(image.get("id")) if isinstance(image, dict) else None
        look = how
        if how == "sample":
            look = "header" if index in sample and time.monotonic() < end else "exist"
        try:
            mended = _mended_image(image, index, known, folder, look, report)
            width, height = mended["width"], mended["height"]
            if is_narrow(width, height, max_size):
                report.give_up(NARROW, f"image {number} ({mended['file_name']} is {width}x{height})")
        except Lost as e:
            report.lost["images"][str(e)] += 1
            if number is not None:
                lost.setdefault(number, str(e))
            continue
        path = os.path.normpath(mended["file_name"])
        if path in by_name:
            report.add("image listed twice", f"image {number} ({mended['file_name']})")
            known[number] = by_name[path]
            continue
        known[number] = by_name[path] = ImageEntry(number, width, height)
        kept.append(mended)
    return kept, known, lost


def _mended_image(
    image: Any, index: int, known: Dict[int, ImageEntry], folder: _Folder, how: str, report: Report
) -> Dict[str, Any]:
    if not isinstance(image, dict):
        report.give_up("entry is not an object", f"image {index}")
    number = check_id(image.get("id"), f"image number {index}", report)
    if number is None:
        raise Lost("id missing or of the wrong type")
    where = f"image {number}"
    if number in known:
        report.give_up("duplicate image id", where)
    given, name = (image.get("width"), image.get("height")), image.get("file_name")
    size = tuple(whole_number(value) or 0 for value in given)
    if not isinstance(name, str) or min(size) <= 0 or not all(map(is_id, given)):
        kind = "file_name, width or height of the wrong type"
        report.add(kind, where)
        # The size can be read from the file.
        if not isinstance(name, str) or (min(size) <= 0 and how in ("none", "exist")):
            raise Lost(kind)
    if how != "none" and not os.path.isfile(os.path.join(folder.root, name)):  # False for an invalid name
        near = folder.nearest(name)
        if near is None:
            report.give_up("image file missing", f"{where} ({name}{folder.hint(name)})")
        report.add("image file has a slightly different name", f"{where} ({name} is {near})")
        name = near
    real = real_size(os.path.join(folder.root, name), how, f"{where} ({name})", report)
    if real and real != size:
        if min(size) > 0:
            kind = "image of another size"
            report.add(kind, f"{where} ({name} is {real[0]}x{real[1]}, annotated as {size[0]}x{size[1]})")
            if max(abs(real[0] - size[0]), abs(real[1] - size[1])) > 1:  # coordinates may be for either
                raise Lost(kind)
        size = real
    return {**image, "id": number, "file_name": name, "width": size[0], "height": size[1]}


class _Folder:
    """An image folder, which resolves file names as written by other programs and systems."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: Dict[str, Dict[str, List[str]]] = {}

    def nearest(self, name: str) -> Optional[str]:
        """Find the one file that a name means despite case, backslashes, or this folder's name as a prefix.

        Accents may be separate from their letters, as on macOS, and spaces percent-encoded, as in a URL.

        The names of other folders are not accepted as a prefix, since their files are not those of this one.
        """
        parts = [part for part in re.split(r"[\\/]", name) if part not in ("", ".")]
        here = os.path.basename(os.path.realpath(self.root)).casefold()
        starts = [0, *(i for i, part in enumerate(parts, 1) if part.casefold() == here)]
        spelt = [parts[start:] for start in starts]
        spelt += [list(map(unquote, parts)) for parts in spelt]
        return next(filter(None, map(self._find, spelt)), None)

    def hint(self, name: str) -> str:
        """Suggest a file that may have been meant, if that is not certain."""
        last = re.split(r"[\\/]", name)[-1]
        found = self._find([last]) if last != name else None
        return f"; there is {found}" if found else ""

    def _find(self, parts: List[str]) -> Optional[str]:
        """Find the one file at a path, ignoring case, or return None."""
        path = ""
        for part in parts:
            names = self._names(path).get(_plain(part), [])
            if part == ".." or "/" in part or (part not in names and len(names) != 1):
                return None
            path = os.path.join(path, part if part in names else names[0])
        return path if path and os.path.isfile(os.path.join(self.root, path)) else None

    def _names(self, folder: str) -> Dict[str, List[str]]:
        """List a folder below the root by :func:`_plain` name."""
        if folder not in self._listings:
            names: Dict[str, List[str]] = {}
            try:
                for entry in os.listdir(os.path.join(self.root, folder)):
                    names.setdefault(_plain(entry), []).append(entry)
            except OSError:
                pass
            self._listings[folder] = names
        return self._listings[folder]


def _plain(name: str) -> str:
    """Normalise a name's case, surrounding spaces and encoding of accents."""
    return unicodedata.normalize("NFC", name).casefold().strip()
