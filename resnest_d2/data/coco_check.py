"""What is wrong with a COCO-format dataset, and a mended copy of it.

The annotation file is streamed, so memory grows with the number of images and annotations (their ids), not
with the size of the file.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter, defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Set, Tuple

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image
from tqdm import tqdm

from ..errors import UserError, one_line
from ..files import atomic_writer, writing
from .annotations import (
    area_of,
    encode_mask,
    is_area,
    is_finite,
    is_id,
    is_number,
    read_list,
    run_lengths,
    whole_number,
)

#: Kinds of problem and whether training would stop at them or go silently wrong.
KINDS = {
    "entry is no object": True,
    "id missing or of a wrong type": True,
    "duplicate image id": True,
    "duplicate annotation id": True,
    "duplicate category id": True,
    "duplicate category name": False,
    "annotation id below 1": False,
    "name that is no Unicode": True,
    "keypoint names of a wrong type": True,
    "file_name, width or height of a wrong type": True,
    "image listed twice": False,
    "image file missing": True,
    "image file unreadable": True,
    "image of another size": True,
    "image of more than 8 bits a channel": True,
    "unknown image": True,
    "unknown category": True,
    "box of a wrong type": True,
    "number that is not finite": True,
    "box without area": False,
    "box outside the image": False,
    "segmentation of a wrong type": True,
    "polygon as pairs of points": True,
    "degenerate polygon": True,
    "polygon far outside the image": True,
    "run-length encoding damaged or of another size": True,
    "mask without pixels": True,
    "crowd as polygon": False,
    "area missing or not above 0": False,
    "iscrowd missing": False,
    "iscrowd of a wrong type": True,
    "ignore, which detectron2 does not know": True,
    "keypoints missing": False,
    "keypoints of a wrong type": True,
}
_EXAMPLES = 5
#: Pixels by which a box may overlap the image's border.
_SLACK = 1.0


class Report:
    """Findings of :func:`check_coco`.

    Attributes:
        images, annotations, categories: how many entries there are.
        empty: images without annotations, which is no problem.
        objects: annotations that are no crowd.
        without_mask: how many of them have no segmentation.
        encoded: how many of them have a mask as run lengths, for which INPUT.MASK_FORMAT must be bitmask.
        counts: occurrences by kind of problem.
        examples: up to five places by kind.
    """

    def __init__(self) -> None:
        self.images = self.annotations = self.categories = self.empty = 0
        self.objects = self.without_mask = self.encoded = 0
        self.counts: Counter = Counter()
        self.examples: Dict[str, List[str]] = defaultdict(list)

    def add(self, kind: str, where: str) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < _EXAMPLES:
            self.examples[kind].append(one_line(where, 200))  # names may hold anything

    @property
    def fatal(self) -> List[str]:
        """Kinds found at which training would stop or go wrong."""
        return [kind for kind in self.counts if KINDS[kind]]

    def __str__(self) -> str:
        lines = [
            f"{self.images} images ({self.empty} without annotations), {self.annotations} annotations, "
            f"{self.categories} categories"
        ]
        if self.encoded:
            lines.append(
                f"{self.encoded} of {self.objects} objects have masks as run lengths: train on them with "
                "INPUT.MASK_FORMAT bitmask"
            )
        for kind, count in self.counts.most_common():
            shown = ", ".join(self.examples[kind]) + (", ..." if count > _EXAMPLES else "")
            lines.append(f"{'problem' if KINDS[kind] else 'warning'}: {count} x {kind}: {shown}")
        return "\n".join(lines if self.counts else [*lines, "no problems found"])


class _Image(NamedTuple):
    """Id that an image is kept under, and its size in pixels."""

    id: int
    width: int
    height: int


def check_coco(
    json_file: Path, image_root: Path, images: str = "decode", fix: Optional[Path] = None
) -> Report:
    """Check a dataset, and with ``fix`` write a mended copy of its annotations.

    The copy lacks entries that cannot be mended; boxes are cut at the image's border, sizes are those of
    the files, annotations are numbered from 1, crowd polygons become masks, an image that is listed twice
    has the annotations of both.

    Args:
        images: what of the image files is looked at: ``none``, ``exist``, ``header`` or ``decode``.

    Raises:
        UserError: the file cannot be read, is no JSON, or holds no lists of images and annotations; there
            is no folder of images; or the copy cannot be written, or would replace the file itself or what
            is no annotation file.
    """
    report, json_file = Report(), Path(json_file)
    if images != "none" and not os.path.isdir(image_root):
        raise UserError(f"there is no folder of images {os.path.abspath(image_root)}")
    if fix:
        _check_target(Path(fix), json_file)
    with atomic_writer(fix) if fix else nullcontext() as file:
        kept: Dict[str, Any] = {}
        categories = _check_categories(json_file, report, kept)
        known = _check_images(json_file, Path(image_root), images, report, kept)
        writer = _Writer(file, kept) if file else None
        inspector = _Inspector(known, categories, report)
        for index, annotation in enumerate(read_list(json_file, "annotations")):
            mended = inspector.inspect(annotation, index)
            if mended is not None and writer:
                writer.annotation(mended)
        report.empty = len({image.id for image in known.values()} - inspector.annotated)
        if writer:
            writer.close()
    return report


def _check_target(fix: Path, json_file: Path) -> None:
    """Raise UserError where the mended copy would replace what is no earlier one."""
    if not os.path.isfile(fix):  # atomic_writer refuses what is no file
        return
    if os.path.exists(json_file) and os.path.samefile(fix, json_file):
        raise UserError(f"{fix} is the annotation file itself; name another file for the mended copy")
    with writing(fix, "name another file for the mended copy"), fix.open("rb") as file:
        start = file.read(100).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start and not start.startswith(b"{"):
        raise UserError(f"{fix} is there and no annotation file; name another file for the mended copy")


# --------------------------------------------------------------------------- categories and images


def _id(value: Any, where: str, report: Report) -> Optional[int]:
    """The id that was meant, or None."""
    if not is_id(value):
        report.add("id missing or of a wrong type", where)
    return whole_number(value)


def _check_categories(json_file: Path, report: Report, kept: Dict[str, Any]) -> Dict[int, int]:
    """How many keypoints each category names, by id."""
    keypoints: Dict[int, int] = {}
    names: Set[str] = set()
    kept["categories"] = []
    for index, category in enumerate(read_list(json_file, "categories")):
        report.categories += 1
        where = f"category {index}"
        if not isinstance(category, dict):
            report.add("entry is no object", where)
            continue
        number = _id(category.get("id"), where, report)
        if number is None:
            continue
        where, name = f"category {number}", category.get("name")
        if not isinstance(name, str):
            report.add("id missing or of a wrong type", f"{where} (its name)")
            continue
        if number in keypoints:
            report.add("duplicate category id", where)
            continue
        if "\ufffd" in name:
            report.add("name that is no Unicode", f"{where} ({name})")
            name = name.replace("\ufffd", "?")
        if name in names:
            report.add("duplicate category name", f"{where} ({name})")
            while name in names:
                name = f"{name} {number}"
        mended = {**category, "id": number, "name": name}
        points = category.get("keypoints", [])
        if not isinstance(points, list) or not all(isinstance(point, str) for point in points):
            report.add("keypoint names of a wrong type", where)
            points = []
            del mended["keypoints"]
        names.add(name)
        keypoints[number] = len(points)
        kept["categories"].append(mended)
    if not report.categories:
        raise UserError(f"{json_file} holds no list of categories; is it a COCO annotation file?")
    return keypoints


def _check_images(
    json_file: Path, root: Path, how: str, report: Report, kept: Dict[str, Any]
) -> Dict[int, _Image]:
    known: Dict[int, _Image] = {}
    by_name: Dict[str, _Image] = {}
    kept["images"] = []
    entries = read_list(json_file, "images")
    for index, image in enumerate(tqdm(entries, desc="images", disable=how in ("none", "exist"))):
        report.images += 1
        if not isinstance(image, dict):
            report.add("entry is no object", f"image {index}")
            continue
        number = _id(image.get("id"), f"image number {index}", report)
        if number is None:
            continue
        where = f"image {number}"
        if number in known:
            report.add("duplicate image id", where)
            continue
        given, name = (image.get("width"), image.get("height")), image.get("file_name")
        size = tuple(whole_number(value) or 0 for value in given)
        if not isinstance(name, str) or min(size) <= 0 or not all(map(is_id, given)):
            report.add("file_name, width or height of a wrong type", where)
            if not isinstance(name, str) or min(size) <= 0:
                continue
        path = os.path.normpath(name)
        if path in by_name:
            report.add("image listed twice", f"{where} ({name})")
            known[number] = by_name[path]
            continue
        real = _real_size(os.path.join(root, name), how, f"{where} ({name})", report)
        if real is None:
            continue
        if real and real != size:
            report.add("image of another size", f"{where} ({name} is {real[0]}x{real[1]})")
            size = real
        known[number] = by_name[path] = _Image(number, *size)
        kept["images"].append({**image, "id": number, "width": size[0], "height": size[1]})
    if not report.images:
        raise UserError(f"{json_file} holds no list of images; is it a COCO annotation file?")
    return known


def _real_size(path: str, how: str, where: str, report: Report) -> Optional[Tuple[int, ...]]:
    """(width, height) as detectron2 reads the file, EXIF rotation applied; () if not looked at; or None."""
    if how == "none":
        return ()
    if not os.path.isfile(path):  # False too for what cannot be a name
        report.add("image file missing", where)
        return None
    if how == "exist":
        return ()
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip what is above 255
                report.add("image of more than 8 bits a channel", where)
                return None
            if how == "header" and image.format != "TIFF":  # which Pillow turns itself when it decodes
                return image.size[::-1] if _is_turned(image) else image.size
        height, width = read_image(path, "RGB").shape[:2]
        return width, height
    except Exception:  # a broken file makes Pillow raise nearly anything
        report.add("image file unreadable", where)
        return None


def _is_turned(image: Image.Image) -> bool:
    """Whether detectron2 turns the image by a quarter; it takes a broken EXIF header for none."""
    try:
        return image.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception:
        return False


# --------------------------------------------------------------------------- annotations


class _Inspector:
    """Reports what is wrong with annotations, and mends them.

    Args:
        images: by id.
        keypoints: how many keypoints a category names, by id.
        report: where it is reported.

    Attributes:
        annotated: images with annotations that are kept.
    """

    def __init__(self, images: Dict[int, _Image], keypoints: Dict[int, int], report: Report) -> None:
        self._images, self._keypoints, self._report = images, keypoints, report
        self._ids: Set[int] = set()
        self._merged = {image.id for number, image in images.items() if number != image.id}
        self._objects: Set[Tuple] = set()
        self.annotated: Set[int] = set()

    def inspect(self, annotation: Any, index: int) -> Optional[Dict[str, Any]]:
        """The annotation mended, or None where it must go."""
        report = self._report
        report.annotations += 1
        if not isinstance(annotation, dict):
            report.add("entry is no object", f"annotation number {index}")
            return None
        number = _id(annotation.get("id"), f"annotation number {index}", report)
        where = f"annotation number {index}" if number is None else f"annotation {number}"
        if number in self._ids:
            report.add("duplicate annotation id", where)
        elif number is not None:
            self._ids.add(number)
            if number < 1:
                report.add("annotation id below 1", where)
        image = self._find("image_id", self._images, "unknown image", annotation, where)
        category = self._find("category_id", self._keypoints, "unknown category", annotation, where)
        if image is None or category is None:
            return None
        crowd = self._crowd(annotation, where)
        if crowd is None:
            return None
        size = self._images[image]
        box = self._box(annotation.get("bbox"), size, where)
        if box is None:
            return None
        mended = {
            **{key: value for key, value in annotation.items() if key != "ignore"},
            **{"image_id": size.id, "category_id": category, "iscrowd": crowd, "bbox": box},
        }
        if not self._mend_keypoints(mended, where):
            return None
        if annotation.get("segmentation"):
            mended["segmentation"] = self._segmentation(annotation["segmentation"], crowd, size, where)
            if mended["segmentation"] is None:
                return None
        if not is_area(annotation.get("area")):
            report.add("area missing or not above 0", where)
            mended["area"] = area_of(mended, (size.height, size.width))
        elif box != annotation["bbox"] and not mended.get("segmentation"):
            mended["area"] = area_of(mended, (size.height, size.width))  # of what is inside the image
        if not crowd:
            report.objects += 1
            report.without_mask += not mended.get("segmentation")
            report.encoded += isinstance(mended.get("segmentation"), dict)
        if size.id in self._merged:  # the same object may be listed with both entries
            same = (size.id, category, *box, str(mended.get("segmentation")))
            if same in self._objects:
                return None
            self._objects.add(same)
        self.annotated.add(size.id)
        return mended

    def _find(
        self, key: str, known: Dict[int, Any], kind: str, annotation: Dict[str, Any], where: str
    ) -> Optional[int]:
        given = annotation.get(key)
        number = whole_number(given)
        if number not in known:
            self._report.add(kind, f"{where} ({key} {given})")
            return None
        if not is_id(given):
            self._report.add("id missing or of a wrong type", f"{where} ({key} {given!r})")
        return number

    def _crowd(self, annotation: Dict[str, Any], where: str) -> Optional[int]:
        if annotation.get("iscrowd") is None:
            self._report.add("iscrowd missing", where)
        crowd = annotation.get("iscrowd") or 0
        if crowd not in (0, 1):
            self._report.add("iscrowd of a wrong type", where)
            return None
        if annotation.get("ignore", 0) != 0:  # detectron2 stops there; a crowd is what COCO ignores
            self._report.add("ignore, which detectron2 does not know", where)
            return 1
        return int(crowd)

    def _box(self, box: Any, size: _Image, where: str) -> Optional[List[float]]:
        report = self._report
        if not isinstance(box, list) or len(box) != 4 or not all(is_number(v) or v is None for v in box):
            report.add("box of a wrong type", where)
            return None
        if not all(map(is_finite, box)):
            report.add("number that is not finite", where)
            return None
        x, y, w, h = box
        if w <= 0 or h <= 0:
            report.add("box without area", f"{where} ({w:g}x{h:g})")
            return None
        if min(x, y) < -_SLACK or x + w > size.width + _SLACK or y + h > size.height + _SLACK:
            report.add("box outside the image", where)
            left, top = max(x, 0), max(y, 0)
            w, h = min(x + w, size.width) - left, min(y + h, size.height) - top
            return [left, top, w, h] if w > 0 and h > 0 else None
        return box

    def _mend_keypoints(self, annotation: Dict[str, Any], where: str) -> bool:
        """Whether the annotation can stay."""
        named, points = self._keypoints[annotation["category_id"]], annotation.get("keypoints")
        if points is None:
            if named:
                self._report.add("keypoints missing", where)
                annotation.update(keypoints=[0] * 3 * named, num_keypoints=0)
            return True
        right = 3 * named if named else len(points) // 3 * 3 if isinstance(points, list) else 0
        if not isinstance(points, list) or len(points) != right or not all(map(is_number, points)):
            self._report.add("keypoints of a wrong type", where)
            return False
        if not is_id(annotation.get("num_keypoints")):
            annotation["num_keypoints"] = sum(visible > 0 for visible in points[2::3])
        return True

    def _segmentation(self, segmentation: Any, crowd: int, size: _Image, where: str) -> Optional[Any]:
        report = self._report
        if isinstance(segmentation, dict):
            return self._runs(segmentation, size, where)
        if not isinstance(segmentation, list):
            report.add("segmentation of a wrong type", where)
            return None
        good = [self._polygon(polygon, size, where) for polygon in self._flat(segmentation, where)]
        good = [polygon for polygon in good if polygon]
        if not good:
            return None
        if crowd:
            report.add("crowd as polygon", where)
            rle = encode_mask(good, size.height, size.width)
            return {"size": [size.height, size.width], "counts": rle["counts"].decode()}
        return good

    def _flat(self, segmentation: List[Any], where: str) -> List[Any]:
        """A list of polygons, each [x, y, x, y, ...]."""
        if all(map(is_number, segmentation)):  # one polygon, not in a list
            self._report.add("segmentation of a wrong type", where)
            return [segmentation]
        one = len(segmentation) > 2 and all(map(_is_pair, segmentation))
        pairs = [one or (isinstance(p, list) and p and all(map(_is_pair, p))) for p in segmentation]
        if not any(pairs):
            return segmentation
        self._report.add("polygon as pairs of points", where)
        if one:
            return [list(itertools.chain(*segmentation))]
        return [list(itertools.chain(*p)) if paired else p for p, paired in zip(segmentation, pairs)]

    def _polygon(self, polygon: Any, size: _Image, where: str) -> Optional[List[float]]:
        report, points = self._report, _points(polygon)
        if points is None:
            report.add("segmentation of a wrong type", where)
            return None
        if not np.isfinite(points).all():
            report.add("number that is not finite", where)
            return None
        if points.size < 6 or points.size % 2:
            report.add("degenerate polygon", where)
            return None
        limits = np.resize((size.width, size.height), points.size)
        if ((points < -limits) | (points > 2 * limits)).any():  # drawing it would need its size in memory
            report.add("polygon far outside the image", where)
            polygon = np.clip(points, 0, limits).tolist()
            return polygon if _area(np.array(polygon)) > 0 else None
        if _area(points) == 0:
            report.add("degenerate polygon", where)
            return None
        return polygon

    def _runs(self, segmentation: Dict[str, Any], size: _Image, where: str) -> Optional[Dict[str, Any]]:
        counts, shape = segmentation.get("counts"), segmentation.get("size")
        if not isinstance(counts, (str, list)) or not isinstance(shape, list):
            self._report.add("segmentation of a wrong type", where)
            return None
        runs = run_lengths(counts, size.height * size.width)
        if runs is None or not all(map(is_id, shape)) or shape != [size.height, size.width]:
            self._report.add("run-length encoding damaged or of another size", where)
            return None
        if not any(runs[1::2]):  # no prediction could find it
            self._report.add("mask without pixels", where)
            return None
        return segmentation


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def _points(polygon: Any) -> Optional[np.ndarray]:
    """The coordinates, NaN for null, or None where it is no list of numbers."""
    try:
        points = np.array(polygon)
    except ValueError:  # lists of different lengths
        return None
    if points.ndim != 1:
        return None
    if points.dtype == object and all(value is None or is_number(value) for value in polygon):
        points = np.array(polygon, dtype=float)
    return points.astype(float) if points.dtype.kind in "iuf" else None


def _area(points: np.ndarray) -> float:
    x, y = points[0::2], points[1::2]
    return abs(x @ np.concatenate((y[1:], y[:1])) - y @ np.concatenate((x[1:], x[:1]))) / 2


# --------------------------------------------------------------------------- writing


class _Writer:
    """The mended copy, written as the annotations come.

    Args:
        file: where to.
        kept: the lists that come first.
    """

    def __init__(self, file: BinaryIO, kept: Dict[str, Any]) -> None:
        self.file, self.count = file, 0
        lists = ", ".join(f'"{name}": {json.dumps(entries)}' for name, entries in kept.items())
        self.file.write(f'{{{lists}, "annotations": ['.encode())

    def annotation(self, annotation: Dict[str, Any]) -> None:
        self.count += 1
        entry = json.dumps({**annotation, "id": self.count})
        self.file.write(f"{', ' if self.count > 1 else ''}{entry}".encode())

    def close(self) -> None:
        self.file.write(b"]}")
