"""Annotation files with every mistake that people make, and some that only programs do."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import numpy as np
from PIL import Image

from .. import tiny
from .case import Case
from .images import train

ANNOTATIONS: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}
_SQUARE = [4, 4, 40, 4, 40, 40, 4, 40]


def _content() -> Dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 36, 36], "area": 1296, "iscrowd": 0,
             "segmentation": [list(_SQUARE)]}
            for i in (1, 2)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }  # fmt: skip


def _images(folder: Path) -> None:
    (folder / "images").mkdir()
    for i in (1, 2):
        Image.new("RGB", (64, 48), (80 * i, 60, 90)).save(folder / f"images/{i}.jpg")


def _case(
    make: Callable[[], bytes], tool: str, expected: Dict, folder: Path, rng: np.random.Generator
) -> Case:
    _images(folder)
    (folder / "a.json").write_bytes(make())
    if tool == "check":
        words = ["check_dataset.py", folder / "a.json", folder / "images", "--fix", folder / "fixed.json"]
        return Case(words, refused=("a.json",), works=True, statuses=(1,), check=lambda: None)
    data = tiny.own_data(*[(folder / "a.json", folder / "images")] * 2)
    # It names a file: of the annotations, or the image that they are of.
    case = train(folder, data, **{**expected, "refused": (str(folder),)})
    return case._replace(words=[*case.words, "MODEL.MASK_ON", True])


def _bytes(change: Callable[[Dict[str, Any]], Optional[Any]]) -> bytes:
    content = _content()
    return json.dumps(change(content) or content).encode()


# Refused, or trained on without what is wrong with it: detectron2 and the check drop some of it.
_ANY = {"refused": ("a.json",), "works": True}
_REFUSED = {"refused": ("a.json",)}


def _add(title: str, change: Callable, expected: Dict = _ANY) -> None:
    make = partial(_bytes, change)
    ANNOTATIONS[f"{title}, checked"] = partial(_case, make, "check", {})
    ANNOTATIONS[f"{title}, trained on"] = partial(_case, make, "train", expected)


def _set(*path: Any) -> Callable[[Dict], None]:
    """Set what the path names, but for its last entry, to that."""
    *keys, last, value = path

    def change(content: Dict) -> None:
        node: Any = content
        for key in keys:
            node = node[key]
        node[last] = value

    return change


def _drop(*path: Any) -> Callable[[Dict], None]:
    *keys, last = path

    def change(content: Dict) -> None:
        node: Any = content
        for key in keys:
            node = node[key]
        del node[last]

    return change


for name in ("images", "annotations", "categories"):
    _add(f"no {name}", _drop(name))
    for value in (None, {}, 3):
        _add(f"{name} is {value}", _set(name, value))
    _add(f"{name} is empty", _set(name, []))
    _add(f"{name} holds a number", lambda c, n=name: c[n].insert(0, 3), _ANY)
for field in ("id", "image_id", "category_id", "bbox"):
    _add(f"annotation without {field}", _drop("annotations", 0, field))
for field in ("id", "file_name", "width", "height"):
    _add(f"image without {field}", _drop("images", 0, field))
for field in ("id", "name"):
    _add(f"category without {field}", _drop("categories", 0, field))
for box in ("1,2,3,4", None, [1, 2, 3], [1, 2, 3, 4, 5], [[1, 2, 3, 4]], ["a", 2, 3, 4], [4, 4, -3, 5], [4, 4, 0, 9],
            [1e300, 1, 2, 2], [-500, -500, 10, 10], [float("nan"), 1, 2, 2], [1, 1, float("inf"), 2], {}, True):  # fmt: skip
    _add(f"box {box}", _set("annotations", 0, "bbox", box))
for shape in ([], [[]], [[1, 2, 3]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [["a"] * 6], "x", None, 5, {},
              {"size": [48, 64]}, {"size": [48, 64], "counts": "###"}, {"size": [48, 64], "counts": [5]},
              {"size": [5, 5], "counts": [25]}, {"size": [48, 64], "counts": [-1, 3073]},
              [[float("nan")] * 6], [[1e308] * 6]):  # fmt: skip
    _add(f"segmentation {str(shape)[:50]}", _set("annotations", 0, "segmentation", shape))
for field, values in (
    ("id", ("x", None, 1.5, True, 2)),
    ("image_id", ("x", None, 99)),
    ("category_id", ("x", None, 99, 0, -1)),
    ("iscrowd", ("x", None, 5)),
    ("area", ("x", None, -1)),
):
    for value in values:
        _add(f"annotation {field} {value!r}", _set("annotations", 0, field, value))
for field, values in (
    ("id", ("x", None, 2)),
    ("file_name", ("", None, 3, "../1.jpg", "none.jpg", "../a.json")),
    ("width", ("x", None, 0, -4, 65)),
):
    for value in values:
        _add(f"image {field} {value!r}", _set("images", 0, field, value))
for field, values in (("id", ("x", None, 2)), ("name", (None, 3, ""))):
    for value in values:
        _add(f"category {field} {value!r}", _set("categories", 0, field, value))
_add("crowd as a polygon", _set("annotations", 0, "iscrowd", 1))
_add("all crowd", lambda c: [a.update(iscrowd=1) for a in c["annotations"]] and None)
_add("a list at the top", lambda c: [c], _REFUSED)
_add("text at the top", lambda c: "x", _REFUSED)


def _raw(title: str, make: Callable[[bytes], bytes], expected: Dict = _REFUSED) -> None:
    made = partial(lambda m: m(json.dumps(_content()).encode()), make)
    ANNOTATIONS[f"{title}, checked"] = partial(_case, made, "check", {})
    ANNOTATIONS[f"{title}, trained on"] = partial(_case, made, "train", expected)


_raw("an empty file", lambda b: b"")
_raw("not JSON", lambda b: b"id,box\n1,2\n")
_raw("binary", lambda b: bytes(range(256)))
_raw("UTF-16", lambda b: b.decode().encode("utf-16"))
_raw("compressed", gzip.compress)
_raw("two documents", lambda b: b + b, _ANY)
_raw("byte-order mark", lambda b: b"\xef\xbb\xbf" + b, _ANY)
_raw("single quotes", lambda b: b.replace(b'"', b"'"))
_raw("trailing commas", lambda b: b.replace(b"]", b",]"))
for share in (0.1, 0.5, 0.9, 0.999):
    _raw(f"cut at {share:.1%}", lambda b, s=share: b[: int(len(b) * s)])
