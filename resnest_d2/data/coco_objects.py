"""Check and repair the annotations of a COCO-format dataset one by one."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import pycocotools.mask as mask_util

from .annotations import (
    area_of,
    compressed,
    encode_mask,
    is_finite,
    is_id,
    is_number,
    number_meant,
    run_lengths,
    visible_keypoints,
    whole_number,
)
from .coco_boxes import ROUNDING, SLACK, ImageEntry, is_pixel, read_box
from .coco_report import Report
from .findings import Lost

#: Square pixels by which areas may differ, since some programs count the pixels that an outline touches.
_AREA_SLACK = 16.0
# Some programs write the box's area for all objects, which is close enough. An area this many times
# smaller than the mask's or larger than the box's belongs to something else.
_AREA_FACTOR = 2.0
#: A keypoint's visibility is 0, 1 or 2; some programs write 3.
_MOST_VISIBLE = 3
#: Overlap of a box with its mask's box below which they are of different objects or in different formats.
_UNLIKE = 0.5
#: Fraction of its box that a thin object may fill.
_THIN = 1e-3


class _Mask(NamedTuple):
    """A segmentation, its approximate area in square pixels, and its x, y, width and height in pixels."""

    segmentation: Any
    area: float
    extent: List[float]


class Inspector:
    """Report what is wrong with annotations, and repair them.

    Args:
        images: images by id.
        keypoints: number of keypoints that each category names, by id.
        lost: why each image that is left out of the copy is lost, by id.
        fractions: whether coordinates are fractions of the image's width and height.
        report: receives the findings.

    Attributes:
        annotated: ids of the images with annotations that are kept.
    """

    def __init__(
        self,
        images: Mapping[int, ImageEntry],
        keypoints: Mapping[int, int],
        lost: Mapping[int, str],
        fractions: bool,
        report: Report,
    ) -> None:
        self._images, self._keypoints, self._lost = images, keypoints, lost
        self._fractions, self._report = fractions, report
        self._ids: Set[int] = set()
        self._objects: Set[bytes] = set()
        self.annotated: Set[int] = set()

    def inspect(self, annotation: Any, index: int) -> Optional[Dict[str, Any]]:
        """Return the repaired annotation, or None if it must be left out."""
        self._report.annotations += 1
        try:
            return self._mended(annotation, index)
        except Lost as lost:
            self._report.lost["annotations"][str(lost)] += 1
            return None

    def _mended(self, annotation: Any, index: int) -> Dict[str, Any]:
        report = self._report
        if not isinstance(annotation, dict):
            report.give_up("entry is not an object", f"annotation number {index}")
        where = self._number(annotation, index)
        # pandas writes NaN for a missing value, which programs take for a value.
        optional = [key for key in ("iscrowd", "segmentation", "keypoints") if is_number(annotation.get(key))]
        unset = [key for key in optional if not is_finite(annotation[key])]
        if unset:
            report.add("number that is not finite", f"{where} ({', '.join(unset)})")
            annotation = {key: value for key, value in annotation.items() if key not in unset}
        image = self._find("image_id", self._images, "unknown image", annotation, where)
        category = self._find("category_id", self._keypoints, "unknown category", annotation, where)
        size, crowd = self._images[image], self._crowd(annotation, where)
        mended = {
            **{key: value for key, value in annotation.items() if key != "ignore"},
            **{"image_id": size.id, "category_id": category, "iscrowd": crowd},
        }
        mask = None
        if annotation.get("segmentation"):
            mask = self._mask(annotation["segmentation"], crowd, size, where)
            mended["segmentation"] = mask.segmentation
        if not crowd:  # kept or not, it is in the file that training reads
            report.objects += 1
            report.without_mask += mask is None
            report.encoded += isinstance(mended.get("segmentation"), dict)
        mended["bbox"] = self._box(annotation.get("bbox"), mask, size, where)
        self._mend_keypoints(mended, size, where)
        self._mend_area(mended, annotation.get("bbox"), mask, size, where)
        kept = ("image_id", "category_id", "iscrowd", "bbox", "segmentation", "keypoints")
        same = _digest([mended.get(key) for key in kept])
        if same in self._objects:
            report.give_up("object annotated twice", where)
        self._objects.add(same)
        report.visible += not crowd and bool(mended.get("num_keypoints"))
        self.annotated.add(size.id)
        return mended

    def _number(self, annotation: Dict[str, Any], index: int) -> str:
        """Check the id, and return a name of the annotation for messages."""
        report = self._report
        number = check_id(annotation.get("id"), f"annotation number {index}", report)
        where = f"annotation number {index}" if number is None else f"annotation {number}"
        if number in self._ids:
            report.add("duplicate annotation id", where)
        elif number is not None:
            self._ids.add(number)
            if number < 1:
                report.add("annotation id below 1", where)
        return where

    def _find(
        self, key: str, known: Mapping[int, Any], kind: str, annotation: Dict[str, Any], where: str
    ) -> int:
        given = annotation.get(key)
        number = whole_number(given)
        if number not in known:
            if key == "image_id" and number in self._lost:  # already reported for the image
                raise Lost(self._lost[number])
            self._report.give_up(kind, f"{where} ({key} {given})")
        if not is_id(given):
            self._report.add("id missing or of the wrong type", f"{where} ({key} {given!r})")
        return number

    def _crowd(self, annotation: Dict[str, Any], where: str) -> int:
        given = annotation.get("iscrowd")
        crowd = 0 if given is None else _flag(given)
        if given is None:
            self._report.add("iscrowd missing", where)
        elif crowd is None:
            self._report.give_up("iscrowd of the wrong type", f"{where} ({given!r:.40})")
        elif not isinstance(given, (int, float)):  # detectron2 treats any string as a crowd
            self._report.add("iscrowd of the wrong type", f"{where} ({given!r:.40})")
        if annotation.get("ignore", 0) != 0:  # detectron2 fails here; COCO ignores crowds
            self._report.add("ignore, which detectron2 does not support", where)
            return crowd if _flag(annotation["ignore"]) == 0 else 1
        return crowd

    def _box(self, given: Any, mask: Optional[_Mask], size: ImageEntry, where: str) -> List[float]:
        """Return the box clipped to the image, or the mask's box if there is no readable one."""
        report = self._report
        box, kind = read_box(given)
        within = box and min(box) >= -ROUNDING and _end(box) <= 1 + ROUNDING
        if within and not self._fractions and min(size[1:]) > 2 and (mask is None or mask.area > 2):
            kind = "box within the image's first pixel"
            box = box if is_pixel(box) and mask is None else None  # one pixel, or in fractions all of it
        if kind:
            report.add(kind, where if given is None else f"{where} ({given!r:.60})")
        if box is None:
            if mask is None:
                raise Lost(kind)
            box = mask.extent
        elif self._fractions:
            report.add("box in fractions of the image, not in pixels", where)
            box = np.multiply(box, (size.width, size.height) * 2).tolist()
        x, y, w, h = box
        if min(x, y) < -SLACK or x + w > size.width + SLACK or y + h > size.height + SLACK:
            report.add("box outside the image", where)
            box = x, y, w, h = _within(box, size)
            if w <= 0 or h <= 0:
                raise Lost("box outside the image")
        if mask:
            left, top, width, height = mask.extent
            apart = max(left - x - w, x - left - width, top - y - h, y - top - height)
            if apart > SLACK:  # either may be wrong
                report.give_up("mask outside its box", where)
            if _overlap(box, _within(mask.extent, size)) < _UNLIKE:
                report.add("box does not match its mask", where)
        return box

    def _mend_area(
        self, annotation: Dict[str, Any], given: Any, mask: Optional[_Mask], size: ImageEntry, where: str
    ) -> None:
        """Repair the area; ``given`` is the original box."""
        area, box = annotation.get("area"), annotation["bbox"]
        of_box = box[2] * box[3]
        if not is_finite(area) or area <= 0:
            self._report.add("area missing or not above 0", where)
        elif box != given and not mask:
            pass  # recompute it for the part inside the image
        else:
            least = mask.area / _AREA_FACTOR if mask else of_box * _THIN
            most = _AREA_FACTOR * max(of_box, mask.area if mask else 0)
            if least - _AREA_SLACK * bool(mask) <= area <= most + _AREA_SLACK:
                return
            self._report.add("area matches neither the box nor the mask", f"{where} ({area:g})")
        annotation["area"] = area_of(annotation, (size.height, size.width))

    def _mend_keypoints(self, annotation: Dict[str, Any], size: ImageEntry, where: str) -> None:
        """Hide keypoints that cannot be repaired, since the rest of the object is valid."""
        report, named = self._report, self._keypoints[annotation["category_id"]]
        given = annotation.get("keypoints")
        if given is None:
            if named:
                report.add("keypoints missing", where)
                annotation.update(keypoints=[0] * 3 * named, num_keypoints=0)
            return
        right = 3 * named if named else len(given) // 3 * 3 if isinstance(given, list) else 0
        if not isinstance(given, list) or len(given) != right:
            report.add("keypoints of the wrong type", where)
            annotation.update(keypoints=[0] * 3 * named, num_keypoints=0)
            if not named:
                del annotation["keypoints"], annotation["num_keypoints"]
            return
        points = self._points(given, size, where)
        if visible_keypoints(points) and not _any_in_box(points, annotation["bbox"]):
            report.add("visible keypoints all outside the box", where)
        if points != given:
            annotation["keypoints"] = points
        count, told = visible_keypoints(points), annotation.get("num_keypoints")
        if is_id(told) and told != count and points == given:
            kind = "num_keypoints is not the number of visible keypoints"
            report.add(kind, f"{where} ({told} of {count})")
        annotation["num_keypoints"] = count

    def _points(self, given: List[Any], size: ImageEntry, where: str) -> List[float]:
        meant = [math.nan if (number := number_meant(value)) is None else number for value in given]
        if not all(is_number(value) or value is None for value in given):
            self._report.add("keypoints of the wrong type", where)
        elif not all(map(math.isfinite, meant)):
            self._report.add("number that is not finite", where)
        if any(abs(visible) > _MOST_VISIBLE for visible in meant[2::3]):  # a coordinate, or a percentage
            self._report.add("keypoints not given as x, y and visibility", where)
            return [0] * len(given)
        in_fractions = self._fractions and all(not abs(v) > 2 for v in meant)
        scale = (size.width, size.height) if in_fractions else (1, 1)
        points: List[float] = []
        kinds = set()
        for x, y, visible in zip(meant[0::3], meant[1::3], meant[2::3]):
            if not all(map(math.isfinite, (x, y, visible))):
                points += [0, 0, 0]
                continue
            x, y = x * scale[0], y * scale[1]
            if visible not in (0, 1, 2):
                kinds.add("keypoint visibility other than 0, 1 or 2")
                visible = 2 if visible > 0 else 0
            inside = -SLACK <= x <= size.width + SLACK and -SLACK <= y <= size.height + SLACK
            if visible and not inside:  # training hides it as well
                kinds.add("keypoint outside the image")
                x = y = visible = 0
            points += [x, y, visible]
        for kind in sorted(kinds):
            self._report.add(kind, where)
        return points

    def _mask(self, segmentation: Any, crowd: int, size: ImageEntry, where: str) -> _Mask:
        if isinstance(segmentation, dict):
            return self._runs(segmentation, size, where)
        if not isinstance(segmentation, list):
            self._report.give_up("segmentation of the wrong type", where)
        runs = [self._runs(part, size, where) for part in segmentation if isinstance(part, dict)]
        polygons = [part for part in segmentation if not isinstance(part, dict)]
        mask = self._polygons(polygons, size, where) if polygons or not runs else None
        if runs:  # merge both into one mask, as programs accept one or the other
            self._report.add("segmentation of the wrong type", where)
        elif crowd:
            self._report.add("crowd as polygon", where)
        else:
            return mask
        parts = [encode_mask(part.segmentation, size.height, size.width) for part in [*runs, mask] if part]
        merged = mask_util.merge(parts)
        return _Mask(compressed(merged), float(mask_util.area(merged)), mask_util.toBbox(merged).tolist())

    def _polygons(self, segmentation: List[Any], size: ImageEntry, where: str) -> _Mask:
        good, area, kind = [], 0.0, "degenerate polygon"
        for polygon in self._flat(segmentation, where):
            try:
                polygon, covered = self._polygon(polygon, size, where)
            except Lost as lost:  # only this part is lost, unless it is the only one
                kind = str(lost)
                continue
            good.append(polygon)
            area += covered
        if not good:
            raise Lost(kind)
        left, top = (min(min(polygon[axis::2]) for polygon in good) for axis in (0, 1))
        right, bottom = (max(max(polygon[axis::2]) for polygon in good) for axis in (0, 1))
        return _Mask(good, area, [left, top, right - left, bottom - top])

    def _flat(self, segmentation: List[Any], where: str) -> List[Any]:
        """Return a list of polygons, each [x, y, x, y, ...]."""
        if segmentation and all(number_meant(value) is not None for value in segmentation):
            self._report.add("segmentation of the wrong type", where)  # one polygon, not wrapped in a list
            return [segmentation]
        one = len(segmentation) > 2 and all(map(_is_pair, segmentation))
        pairs = [one or (isinstance(p, list) and p and all(map(_is_pair, p))) for p in segmentation]
        if not any(pairs):
            return segmentation
        self._report.add("polygon as pairs of coordinates", where)
        if one:
            return [list(itertools.chain(*segmentation))]
        return [list(itertools.chain(*p)) if paired else p for p, paired in zip(segmentation, pairs)]

    def _polygon(self, polygon: Any, size: ImageEntry, where: str) -> Tuple[List[float], float]:
        """Return the polygon and its area; if it crosses itself, the number of pixels that it covers."""
        report, points = self._report, _coordinates(polygon)
        if points is None:
            meant = [number_meant(value) for value in polygon] if isinstance(polygon, list) else [None]
            if None in meant:
                report.give_up("segmentation of the wrong type", where)
            report.add("segmentation of the wrong type", where)
            polygon, points = meant, np.array(meant, dtype=float)
        if not np.isfinite(points).all():
            report.give_up("number that is not finite", where)
        if points.size < 6 or points.size % 2:
            report.give_up("degenerate polygon", where)
        limits = np.resize((size.width, size.height), points.size)
        if self._fractions and np.abs(points).max() <= 2:
            points = points * limits
            polygon = points.tolist()
        if ((points < -limits) | (points > 2 * limits)).any():  # rasterising needs memory by its size
            report.add("polygon far outside the image", where)
            points = np.clip(points, 0, limits)
            polygon = points.tolist()
            if _area(points) == 0:
                raise Lost("polygon far outside the image")
        area = _area(points)
        if area == 0:  # perhaps a bow tie, whose halves cancel out
            area = float(mask_util.area(encode_mask([polygon], size.height, size.width)))
        if area == 0:
            report.give_up("degenerate polygon", where)
        return polygon, area

    def _runs(self, segmentation: Dict[str, Any], size: ImageEntry, where: str) -> _Mask:
        report, mended = self._report, segmentation
        counts, shape = segmentation.get("counts"), segmentation.get("size")
        if not isinstance(counts, (str, list)) or not isinstance(shape, list):
            report.give_up("segmentation of the wrong type", where)
        if not all(map(is_id, shape)) or (isinstance(counts, list) and not all(map(is_id, counts))):
            report.add("segmentation of the wrong type", where)  # 7.0 or "7" instead of 7
            shape = list(map(whole_number, shape))
            counts = list(map(whole_number, counts)) if isinstance(counts, list) else counts
            mended = {"size": shape, "counts": counts}
        runs = run_lengths(counts, size.height * size.width)
        if runs is None or shape != [size.height, size.width]:
            report.give_up("run-length encoding damaged or of another size", where)
        if not any(runs[1::2]):  # no prediction could match it
            report.give_up("mask without pixels", where)
        extent = mask_util.toBbox(encode_mask(mended, size.height, size.width)).tolist()
        return _Mask(mended, float(sum(runs[1::2])), extent)


def check_id(value: Any, where: str, report: Report) -> Optional[int]:
    """Return the intended id, or None."""
    if not is_id(value):
        report.add("id missing or of the wrong type", where)
    return whole_number(value)


def _end(box: Sequence[float]) -> float:
    x, y, w, h = box
    return max(x + w, y + h)


def _within(box: Sequence[float], size: ImageEntry) -> List[float]:
    """Clip a box to the image."""
    x, y, w, h = box
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + w, size.width) - left, min(y + h, size.height) - top]


def _overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Compute the IoU of boxes, each enlarged by a pixel on all sides, since thin ones are rounded."""
    (x, y, w, h), (left, top, width, height) = box, other
    across = min(x + w, left + width) - max(x, left) + 2
    down = min(y + h, top + height) - max(y, top) + 2
    common = max(across, 0) * max(down, 0)
    return common / ((w + 2) * (h + 2) + (width + 2) * (height + 2) - common)


def _flag(given: Any) -> Optional[int]:
    """Read 0 or 1, also given as a bool or a string; None for anything else."""
    if isinstance(given, str):
        given = {"true": 1, "false": 0, "": 0}.get(given.strip().lower(), given)
    number = whole_number(int(given) if isinstance(given, bool) else given)
    return number if number in (0, 1) else None


def _digest(value: Any) -> bytes:
    """Digest a value in 16 bytes. Python's hash would confuse -1 with -2, and 0 with 2**61 - 1."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(value, digest.update)
    return digest.digest()


def _feed(value: Any, update: Callable[[bytes], None]) -> None:
    """Feed lists of numbers as float64, so that 7 equals 7.0, and at once, since they are long."""
    if isinstance(value, dict):
        value = [part for key in sorted(value) for part in (key, value[key])]
    if isinstance(value, list):
        update(b"[%d" % len(value))
        numbers = _coordinates(value)
        if numbers is not None:
            update(numbers.tobytes())
        else:
            for part in value:
                _feed(part, update)
    else:
        update(repr(value).encode("utf-8", "surrogatepass"))


def _any_in_box(points: Sequence[float], box: Sequence[float]) -> bool:
    """Whether any visible keypoint is in the box, or within a pixel of it."""
    left, top, w, h = box
    return any(
        visible and -SLACK <= x - left <= w + SLACK and -SLACK <= y - top <= h + SLACK
        for x, y, visible in zip(points[0::3], points[1::3], points[2::3])
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def _coordinates(polygon: Any) -> Optional[np.ndarray]:
    """Return the coordinates with NaN for null, or None if they are not a list of numbers."""
    try:
        points = np.array(polygon)
    except ValueError:  # lists of different lengths
        return None
    if points.ndim != 1:
        return None
    if points.dtype == object and all(value is None or is_number(value) for value in polygon):
        points = np.array(list(map(number_meant, polygon)), dtype=float)
    return points.astype(float) if points.dtype.kind in "iuf" else None


def _area(points: np.ndarray) -> float:
    x, y = points[0::2], points[1::2]
    return abs(x @ np.concatenate((y[1:], y[:1])) - y @ np.concatenate((x[1:], x[:1]))) / 2
