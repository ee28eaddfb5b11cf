"""What is wrong with a COCO-format dataset, and a mended copy of it.

The annotation file is streamed, so memory grows with the number of images and annotations (their ids), not
with the size of the file.
"""

from __future__ import annotations

import itertools
import json
import math
import numbers
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import ijson
import numpy as np
import pycocotools.mask as mask_util
from PIL import Image
from tqdm import tqdm

from ..errors import UserError

#: Kinds of problem and whether training would stop at them or go silently wrong.
KINDS = {
    "entry is no object": True,
    "id missing or of a wrong type": True,
    "duplicate image id": True,
    "duplicate annotation id": True,
    "duplicate category id": True,
    "file_name, width or height of a wrong type": True,
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
    "degenerate polygon": True,
    "run-length encoding damaged or of another size": True,
    "crowd as polygon": False,
    "iscrowd of a wrong type": True,
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
        counts: occurrences by kind of problem.
        examples: up to five places by kind.
    """

    def __init__(self) -> None:
        self.images = self.annotations = self.categories = self.empty = 0
        self.counts: Counter = Counter()
        self.examples: Dict[str, List[str]] = defaultdict(list)

    def add(self, kind: str, where: str) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < _EXAMPLES:
            self.examples[kind].append(where)

    @property
    def fatal(self) -> List[str]:
        """Kinds found at which training would stop or go wrong."""
        return [kind for kind in self.counts if KINDS[kind]]

    def __str__(self) -> str:
        lines = [
            f"{self.images} images ({self.empty} without annotations), {self.annotations} annotations, "
            f"{self.categories} categories"
        ]
        for kind, count in self.counts.most_common():
            shown = ", ".join(self.examples[kind]) + (", ..." if count > _EXAMPLES else "")
            lines.append(f"{'problem' if KINDS[kind] else 'warning'}: {count} x {kind}: {shown}")
        return "\n".join(lines if self.counts else [*lines, "no problems found"])


class _Image(NamedTuple):
    width: float
    height: float


def check_coco(
    json_file: Path, image_root: Path, images: str = "decode", fix: Optional[Path] = None
) -> Report:
    """Check a dataset, and with ``fix`` write a mended copy of its annotations.

    The copy lacks entries that cannot be mended; boxes are cut at the image's border, sizes are those of
    the files, annotations are numbered from 1, crowd polygons become masks.

    Args:
        images: what of the image files is looked at: ``none``, ``exist``, ``header`` or ``decode``.

    Raises:
        UserError: the file cannot be read, is no JSON, or holds no lists of images and annotations.
    """
    report, json_file = Report(), Path(json_file)
    kept: Dict[str, Any] = {}
    categories = _check_categories(json_file, report, kept)
    sizes = _check_images(json_file, Path(image_root), images, report, kept)
    writer = _Writer(fix, kept) if fix else None
    annotated: Set[Any] = set()
    seen: Set[Any] = set()
    for index, annotation in enumerate(read_list(json_file, "annotations")):
        report.annotations += 1
        mended = _inspect(annotation, index, sizes, categories, seen, report)
        if mended is not None:
            annotated.add(mended["image_id"])
            if writer:
                writer.annotation(mended)
    report.empty = len(sizes.keys() - annotated)
    if writer:
        writer.close()
    return report


# --------------------------------------------------------------------------- reading


class _Finite:
    """A file in which NaN and Infinity, which Python's json writes and JSON lacks, read as null."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.rest = file, b""

    def read(self, size: int = -1) -> bytes:
        while True:
            chunk = self.file.read(size)
            text = re.sub(rb"(?<=[\[,:\s])-?(?:NaN|Infinity)(?=[\s,\]}])", b"null", self.rest + chunk)
            # The end of the chunk may cut a token: its last bytes wait for the next.
            keep = min(16, len(text)) if chunk else 0
            out, self.rest = text[: len(text) - keep], text[len(text) - keep :]
            if out or not chunk:
                return out


def read_list(json_file: Path, name: str) -> Iterator[Any]:
    """Elements of the list ``name`` in a COCO file, one after the other.

    Raises:
        UserError: the file cannot be read, or is no JSON.
    """
    try:
        with json_file.open("rb") as file:
            count = 0
            try:
                for entry in _items(file, name):
                    count += 1
                    yield entry
                return
            except ijson.JSONError:
                file.seek(0)  # again from the start, as only its numbers may be at fault
            yield from itertools.islice(_items(_Finite(file), name), count, None)
    except ijson.JSONError as e:
        reason = " ".join(str(e).split())[:120]
        raise UserError(f"{json_file} is no valid JSON ({reason})") from None
    except UnicodeDecodeError:
        raise UserError(f"{json_file} is no text in UTF-8") from None
    except OSError as e:
        raise UserError(f"cannot read {json_file} ({e.strerror})") from None


def load_coco(json_file: Path) -> Dict[str, List[Any]]:
    """The lists of a COCO file, all at once.

    Raises:
        UserError: the file cannot be read, is no JSON, or holds no images or no categories.
    """
    content = {name: list(read_list(json_file, name)) for name in ("images", "annotations", "categories")}
    for name in ("images", "categories"):
        if not content[name]:
            raise UserError(f"{json_file} holds no list of {name}; is it a COCO annotation file?")
    return content


def _items(file: Any, name: str) -> Iterator[Any]:
    return ijson.items(file, f"{name}.item", use_float=True, buf_size=1 << 20)


def _check_categories(json_file: Path, report: Report, kept: Dict[str, Any]) -> Set[Any]:
    ids: Set[Any] = set()
    kept["categories"] = []
    for index, category in enumerate(read_list(json_file, "categories")):
        report.categories += 1
        where = f"category {index}"
        if not isinstance(category, dict):
            report.add("entry is no object", where)
        elif not _is_id(category.get("id")) or not isinstance(category.get("name"), str):
            report.add("id missing or of a wrong type", where)
        elif category["id"] in ids:
            report.add("duplicate category id", f"category {category['id']}")
        else:
            ids.add(category["id"])
            kept["categories"].append(category)
    if not report.categories:
        raise UserError(f"{json_file} holds no list of categories; is it a COCO annotation file?")
    return ids


def _check_images(
    json_file: Path, root: Path, how: str, report: Report, kept: Dict[str, Any]
) -> Dict[Any, _Image]:
    sizes: Dict[Any, _Image] = {}
    kept["images"] = []
    entries = read_list(json_file, "images")
    for index, image in enumerate(tqdm(entries, desc="images", disable=how in ("none", "exist"))):
        report.images += 1
        if not isinstance(image, dict):
            report.add("entry is no object", f"image {index}")
            continue
        where = f"image {image.get('id', f'number {index}')}"
        if not _is_id(image.get("id")):
            report.add("id missing or of a wrong type", f"image number {index}")
            continue
        if image["id"] in sizes:
            report.add("duplicate image id", where)
            continue
        size, name = (image.get("width"), image.get("height")), image.get("file_name")
        if not isinstance(name, str) or not all(_is_number(v) and v > 0 for v in size):
            report.add("file_name, width or height of a wrong type", where)
            continue
        real = _real_size(root / name, how, f"{where} ({name})", report)
        if real is None:
            continue
        if real and real != size:
            report.add("image of another size", f"{where} ({name} is {real[0]}x{real[1]})")
            image, size = {**image, "width": real[0], "height": real[1]}, real
        sizes[image["id"]] = _Image(*size)
        kept["images"].append(image)
    if not report.images:
        raise UserError(f"{json_file} holds no list of images; is it a COCO annotation file?")
    return sizes


def _real_size(path: Path, how: str, where: str, report: Report) -> Optional[Tuple[int, ...]]:
    """(width, height) as detectron2 reads the file, EXIF rotation applied; () if not looked at; or None."""
    if how == "none":
        return ()
    if not path.is_file():
        report.add("image file missing", where)
        return None
    if how == "exist":
        return ()
    try:
        with Image.open(path) as image:
            size = image.size
            if image.getexif().get(0x0112, 1) >= 5:  # rotated by a quarter turn
                size = size[::-1]
            if image.mode.startswith(("I", "F")):  # Pillow would clip what is above 255
                report.add("image of more than 8 bits a channel", where)
                return None
            if how == "decode":
                image.load()
        return size
    except Exception:  # a broken file makes Pillow raise nearly anything
        report.add("image file unreadable", where)
        return None


# --------------------------------------------------------------------------- annotations


def _inspect(
    annotation: Any,
    index: int,
    sizes: Dict[Any, _Image],
    categories: Set[Any],
    seen: Set[Any],
    report: Report,
) -> Optional[Dict[str, Any]]:
    """Report what is wrong with an annotation. Returns it mended, or None where it must go."""
    if not isinstance(annotation, dict):
        report.add("entry is no object", f"annotation number {index}")
        return None
    number = annotation.get("id")
    where = f"annotation {number}" if _is_id(number) else f"annotation number {index}"
    if not _is_id(number):
        report.add("id missing or of a wrong type", where)
    elif number in seen:
        report.add("duplicate annotation id", where)
    else:
        seen.add(number)
    image_id, category = annotation.get("image_id"), annotation.get("category_id")
    if not _is_id(image_id) or image_id not in sizes:
        report.add("unknown image", f"{where} (image {image_id})")
        return None
    if not _is_id(category) or category not in categories:
        report.add("unknown category", f"{where} (category {category})")
        return None
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        report.add("iscrowd of a wrong type", where)
        return None
    box = _inspect_box(annotation.get("bbox"), sizes[image_id], where, report)
    if box is None:
        return None
    mended = {**annotation, "bbox": box}
    keypoints = annotation.get("keypoints")
    if keypoints is not None and not (
        isinstance(keypoints, list) and len(keypoints) % 3 == 0 and all(map(_is_number, keypoints))
    ):
        report.add("keypoints of a wrong type", where)
        return None
    if annotation.get("segmentation"):
        segmentation = _inspect_segmentation(
            annotation["segmentation"], crowd, sizes[image_id], where, report
        )
        if segmentation is None:
            return None
        mended["segmentation"] = segmentation
    return mended


def _inspect_box(box: Any, size: _Image, where: str, report: Report) -> Optional[List[float]]:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) or v is None for v in box):
        report.add("box of a wrong type", where)
        return None
    if not all(v is not None and math.isfinite(v) for v in box):
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


def _inspect_segmentation(
    segmentation: Any, crowd: int, size: _Image, where: str, report: Report
) -> Optional[Any]:
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if not isinstance(counts, (str, list)) or not isinstance(segmentation.get("size"), list):
            report.add("segmentation of a wrong type", where)
            return None
        runs = _runs(counts) if isinstance(counts, str) else counts
        whole = all(isinstance(run, int) and run >= 0 for run in runs)
        fits = segmentation["size"] == [size.height, size.width]
        if not whole or not fits or sum(runs) != size.height * size.width:
            report.add("run-length encoding damaged or of another size", where)
            return None
        return segmentation
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        report.add("segmentation of a wrong type", where)
        return None
    good = []
    for polygon in segmentation:
        try:
            points = np.array(polygon, dtype=float)
        except (TypeError, ValueError):
            report.add("segmentation of a wrong type", where)
            continue
        if not np.isfinite(points).all():
            report.add("number that is not finite", where)
        elif points.size < 6 or points.size % 2 or _area(points) == 0:
            report.add("degenerate polygon", where)
        else:
            good.append(polygon)
    if not good:
        return None
    if crowd:
        report.add("crowd as polygon", where)
        height, width = int(size.height), int(size.width)
        rle = mask_util.merge(mask_util.frPyObjects(good, height, width))
        return {"size": [height, width], "counts": rle["counts"].decode()}
    return good


def _runs(text: str) -> List[int]:
    """Lengths of the runs in COCO's compressed encoding; a damaged one gives lengths that cannot be.

    A length is written in groups of five bits, lowest first, as characters from "0"; the sixth bit says
    that more follow. From the third on it is the difference to the last but one.
    """
    runs: List[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return [-1]
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if not shift else [-1]


def _area(points: np.ndarray) -> float:
    x, y = points[0::2], points[1::2]
    return abs(x @ np.concatenate((y[1:], y[:1])) - y @ np.concatenate((x[1:], x[:1]))) / 2


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


# --------------------------------------------------------------------------- writing


class _Writer:
    """The mended copy, written as the annotations come, and given its name at the end."""

    def __init__(self, path: Path, kept: Dict[str, Any]) -> None:
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.part")
        try:
            self.file = self.temporary.open("w")
        except OSError as e:
            raise UserError(f"cannot write {path} ({e.strerror})") from None
        self.count = 0
        lists = ", ".join(f'"{name}": {json.dumps(entries)}' for name, entries in kept.items())
        self.file.write(f'{{{lists}, "annotations": [')

    def annotation(self, annotation: Dict[str, Any]) -> None:
        self.count += 1
        entry = json.dumps({**annotation, "id": self.count})
        self.file.write(f"{', ' if self.count > 1 else ''}{entry}")

    def close(self) -> None:
        self.file.write("]}")
        self.file.close()
        self.temporary.replace(self.path)
