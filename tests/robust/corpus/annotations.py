"""Annotation files with every mistake that people make, and some that only programs do."""

from __future__ import annotations

import copy
import gzip
import json
import os
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import numpy as np
from PIL import Image
from support import ROOT

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


def _in_images(content: Dict) -> None:
    for image, annotation in zip(content["images"], content.pop("annotations")):
        image["annotations"] = [annotation]


for name in ("images", "annotations", "categories"):
    _add(f"no {name}", _drop(name))
    for value in (None, {}, 3):
        _add(f"{name} is {value}", _set(name, value))
    _add(f"{name} is empty", _set(name, []))
    _add(f"{name} holds a number", lambda c, n=name: c[n].insert(0, 3), _ANY)
_add("annotations in the images", _in_images, _REFUSED)
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
for _name in ("images", "annotations", "categories"):
    _raw(f"{_name} twice", lambda b, n=_name: b.rstrip()[:-1] + f', "{n}": []}}'.encode())
_raw("single quotes", lambda b: b.replace(b'"', b"'"))
_raw("trailing commas", lambda b: b.replace(b"]", b",]"))
for share in (0.1, 0.5, 0.9, 0.999):
    _raw(f"cut at {share:.1%}", lambda b, s=share: b[: int(len(b) * s)])


# What the check finds and mends; trained on where that is refused before training.
def _checked(title: str, change: Callable[[Dict[str, Any]], Optional[Any]]) -> None:
    ANNOTATIONS[f"{title}, checked"] = partial(_case, partial(_bytes, change), "check", {})


def _pairs(content: Dict, nested: bool) -> None:
    points = [[4, 4], [40, 4], [40, 40]]
    content["annotations"][0]["segmentation"] = [points] if nested else points


def _twice(content: Dict) -> None:
    content["images"].append({**content["images"][0], "id": 9})
    content["annotations"].append({**copy.deepcopy(content["annotations"][0]), "id": 9, "image_id": 9})


def _with_keypoints(content: Dict, names: Any, points: Any) -> None:
    for category in content["categories"]:
        category["keypoints"] = names
    content["annotations"][0]["keypoints"] = points


_REFUSED_EARLY: Dict[str, Callable] = {
    "annotation id 2.0": _set("annotations", 1, "id", 2.0),
    "annotation id as text": _set("annotations", 1, "id", "2"),
    "annotation id beyond 64 bits": _set("annotations", 0, "id", 2**63),
    "annotation id of 500 digits": _set("annotations", 0, "id", 10**500),
    "image id as text everywhere": lambda c: [c["images"][0].update(id="1"), c["annotations"][0].update(image_id="1")] and None,
    "image id 1.0": _set("images", 0, "id", 1.0),
    "image id beyond 64 bits": _set("images", 0, "id", -(2**64)),
    "category id 1.0": _set("categories", 0, "id", 1.0),
    "category id beyond 64 bits": _set("categories", 0, "id", 2**70),
    "width 64.0": _set("images", 0, "width", 64.0),
    "height as text": _set("images", 0, "height", "48"),
    "polygon as pairs": lambda c: _pairs(c, nested=True),
    "polygon as a list of pairs": lambda c: _pairs(c, nested=False),
    "polygon not in a list": _set("annotations", 0, "segmentation", list(_SQUARE)),
    "polygon of text": _set("annotations", 0, "segmentation", [list(map(str, _SQUARE))]),
    "polygon of lists": _set("annotations", 0, "segmentation", [[4, 4, [40], 4, 40, 40]]),
    "polygon to 1e9": _set("annotations", 0, "segmentation", [[0, 0, 1e9, 0, 1e9, 1e9]]),
    "polygon from -1e9": _set("annotations", 0, "segmentation", [[-1e9, -1e9, 5, 0, 5, 5]]),
    "polygon of 1e300": _set("annotations", 0, "segmentation", [[1e300, 0, 5, 1e300, 5, 5]]),
    "run lengths among polygons of one object": _set("annotations", 0, "segmentation", [list(_SQUARE), {"size": [48, 64], "counts": [3072]}]),
    "size of run lengths as floats": _set("annotations", 0, "segmentation", {"size": [48.0, 64.0], "counts": [3072]}),
    "file name of 5000 characters": _set("images", 0, "file_name", "x" * 5000),
    "file name with a null byte": _set("images", 0, "file_name", "1\0.jpg"),
    "file name with half a surrogate pair": _set("images", 0, "file_name", "1\udcff.jpg"),
    "file name with line breaks": _set("images", 0, "file_name", "1\n\u20282.jpg"),
    "file name of a device": _set("images", 0, "file_name", "/dev/zero"),
    "category name with half a surrogate pair": _set("categories", 0, "name", "caf\ud800"),
    "ignore 1": _set("annotations", 0, "ignore", 1),
    "keypoint names as text": lambda c: _with_keypoints(c, "nose", [1, 1, 2]),
    "keypoints of another number": lambda c: _with_keypoints(c, ["a", "b"], [1, 1, 2]),
    "keypoints of text": lambda c: _with_keypoints(c, ["a"], ["1", 1, 2]),
    "box as text of numpy": _set("annotations", 0, "bbox", "[ 4.  4. 36. 36.]"),
    "box of text": _set("annotations", 0, "bbox", ["4", "4", "36", "36"]),
    "box of a number of 500 digits": _set("annotations", 0, "bbox", [4, 4, 10**500, 36]),
    "iscrowd 0 as text": _set("annotations", 0, "iscrowd", "0"),
    "a box that the polygon tells": _drop("annotations", 0, "bbox"),
    "run lengths as floats": _set("annotations", 0, "segmentation", {"size": [48, 64], "counts": [100.0, 500.0, 2472.0]}),
    "names with the folder": lambda c: [i.update(file_name="images/" + i["file_name"]) for i in c["images"]] and None,
    "names in capitals": lambda c: [i.update(file_name=i["file_name"].upper()) for i in c["images"]] and None,
    "names with backslashes": lambda c: [i.update(file_name=".\\" + i["file_name"]) for i in c["images"]] and None,
    "boxes in fractions": lambda c: [a.update(bbox=[0.1, 0.1, 0.5, 0.5]) for a in c["annotations"]] and None,
    "box as an object": _set("annotations", 0, "bbox", {"x": 4, "y": 4, "w": 36, "h": 36}),
}  # fmt: skip
for title, change in _REFUSED_EARLY.items():
    _add(title, change, _REFUSED)
for title, change in {
    "ids from 0": lambda c: [a.update(id=i) for i, a in enumerate(c["annotations"])] and None,
    "negative ids": lambda c: [a.update(id=-i) for i, a in enumerate(c["annotations"], 1)] and None,
    "area missing": _drop("annotations", 0, "area"),
    "area 0": _set("annotations", 0, "area", 0),
    "area 1e12": _set("annotations", 0, "area", 1e12),
    "a bow tie": _set("annotations", 0, "segmentation", [[4, 4, 40, 40, 40, 4, 4, 40]]),
    "a polygon far from its box": _set("annotations", 0, "bbox", [50, 42, 4, 4]),
    "an object twice": lambda c: c["annotations"].append({**c["annotations"][0], "id": 9}),
    "a keypoint of NaN": lambda c: _with_keypoints(c, ["a"], [1, float("nan"), 2]),
    "keypoint visibility 0.5": lambda c: _with_keypoints(c, ["a"], [1, 1, 0.5]),
    "no visible keypoint": lambda c: _with_keypoints(c, ["a"], [1, 1, 0]),
    "area is a list": _set("annotations", 0, "area", [1]),
    "iscrowd missing": _drop("annotations", 0, "iscrowd"),
    "iscrowd true": _set("annotations", 0, "iscrowd", True),
    "an image listed twice": _twice,
    "file name that is absolute": _set("images", 0, "file_name", "/etc/hostname"),
    "categories of one name": _set("categories", 1, "name", "a"),
    "category 0": lambda c: [c["categories"][0].update(id=0), *(a.update(category_id=0) for a in c["annotations"])] and None,
    "run lengths among polygons": _set("annotations", 0, "segmentation", {"size": [48, 64], "counts": [100, 500, 2472]}),
    "keypoints missing": lambda c: _with_keypoints(c, ["a"], [1, 1, 2]),
    "name with dollars": _set("categories", 0, "name", "$\\frac{$"),
    "name of 100000 characters": _set("categories", 0, "name", "x" * 100_000),
    "name with line breaks": _set("categories", 0, "name", "a\n\r\u2028\0b"),
}.items():  # fmt: skip
    _checked(title, change)
# One run to its end, in which all that evaluation needs is missing.
_add(
    "no ids above 0, areas and iscrowd",
    lambda c: (
        [[a.pop(k) for k in ("area", "iscrowd")] + [a.update(id=-a["id"])] for a in c["annotations"]] and None
    ),
    {"refused": None, "works": True},
)
for _opening in (
    '{"annotations": ' + "[" * 200_000,
    "[" * 200_000,
    '{"a":' * 50_000,
    '{"images": [{"a": ' + '[{"a":' * 50_000,
):
    _raw(f"nested deep: {_opening[:22]}", lambda b, o=_opening: o.encode())
_raw("a number of 100000 digits", lambda b: b.replace(b"1296", b"9" * 100_000, 1), _ANY)


def _fix(target: Callable[[Path], object], refused: str, folder: Path, rng: np.random.Generator) -> Case:
    """The repaired copy over something that must be kept."""
    _images(folder)
    (folder / "a.json").write_bytes(_bytes(lambda c: None))
    words = ["check_dataset.py", folder / "a.json", folder / "images", "--fix", target(folder)]
    return Case(words, refused=(refused,))


def _another(folder: Path) -> Path:
    (folder / "val.json").write_bytes(_bytes(lambda c: None))
    return folder / "val.json"


def _linked(folder: Path) -> Path:
    (folder / "link.json").symlink_to("a.json")
    return folder / "link.json"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


for title, target, refused in (
    ("itself", lambda f: f / "a.json", "is the annotation file itself"),
    ("itself by ..", lambda f: f / "images/../a.json", "is the annotation file itself"),
    ("itself by a link", _linked, "is the annotation file itself"),
    ("another part of the dataset", _another, "exists; name another file"),
    ("an image", lambda f: f / "images/1.jpg", "exists and is not an annotation file"),
    ("a folder", lambda f: f / "images", "is a folder"),
    ("a device", lambda f: "/dev/null", "is a FIFO, socket or device"),
    ("a full device", lambda f: "/dev/full", "is a FIFO, socket or device"),
    ("a FIFO", _fifo, "is a FIFO, socket or device"),
    ("what lies below a file", lambda f: f / "a.json/b.json", "cannot write"),
    ("a name of 300 characters", lambda f: f / ("x" * 300), "cannot write"),
    ("what the kernel keeps", lambda f: "/proc/new.json", "cannot write"),
):
    ANNOTATIONS[f"copy over {title}"] = partial(_fix, target, refused)


# Panoptic annotations.
def _panoptic(
    spoil: Callable[[Path, Dict], Optional[object]], refused: str, folder: Path, rng: np.random.Generator
) -> Case:
    """``spoil`` changes the files or the content, and may return where the maps shall go."""
    (folder / "segments").mkdir()
    pixels = np.zeros((3, 4, 3), np.uint8)
    pixels[:, 2:, 0] = 2
    pixels[:, :2, 0] = 1
    Image.fromarray(pixels).save(folder / "segments/7.png")
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 199}]
    content = {
        "annotations": [{"image_id": 7, "file_name": "7.png", "segments_info": segments}],
        "categories": [{"id": 1, "isthing": 1}, {"id": 199, "isthing": 0}],
    }
    output = spoil(folder, content)
    (folder / "p.json").write_text(json.dumps(content))
    words = ["prepare_panoptic.py", folder / "p.json", folder / "segments", output or folder / "out"]
    return Case(words, refused=(refused,))


def _png(make: Callable[[Path], object]) -> Callable[[Path, Dict], None]:
    def spoil(folder: Path, content: Dict) -> None:
        path = folder / "segments/7.png"
        whole = path.read_bytes()
        path.unlink()
        made = make(path)
        if isinstance(made, float):
            path.write_bytes(whole[: int(made * len(whole))])

    return spoil


def _in_panoptic(*path: Any) -> Callable[[Path, Dict], None]:
    return lambda folder, content: _set(*path)(content)


def _to_link(folder: Path, content: Dict) -> Path:
    (folder / "link").symlink_to("segments")
    return folder / "link"


def _map_is_link(folder: Path, content: Dict) -> None:
    (folder / "out").mkdir()
    (folder / "out/7.png").symlink_to("../segments/7.png")


def _deep_panoptic(folder: Path, content: Dict) -> None:
    node: Any = content
    for _ in range(150):
        node["a"] = {}
        node = node["a"]


for title, spoil, refused in (
    ("no annotations", lambda f, c: c.pop("annotations") and None, "it has no annotations"),
    ("annotations is null", _in_panoptic("annotations", None), "'annotations' is not a list"),
    ("no categories", lambda f, c: c.pop("categories") and None, "it has no categories"),
    ("of instances", lambda f, c: c.update(_content()), "is not COCO's panoptic format"),
    ("an annotation is a number", _in_panoptic("annotations", 0, 3), "annotation number 0 has no image_id"),
    ("an annotation twice", lambda f, c: c["annotations"].append(c["annotations"][0]), "is listed twice"),
    ("image id as text", _in_panoptic("annotations", 0, "image_id", "7"), "no image_id that is a whole number"),
    ("file name a number", _in_panoptic("annotations", 0, "file_name", 7), "names no file"),
    ("file name empty", _in_panoptic("annotations", 0, "file_name", ""), "names no file"),
    ("file name ..", _in_panoptic("annotations", 0, "file_name", ".."), "does not stay inside"),
    ("file name outside", _in_panoptic("annotations", 0, "file_name", "../segments/7.png"), "does not stay inside"),
    ("file name absolute", _in_panoptic("annotations", 0, "file_name", "/tmp/7.png"), "does not stay inside"),
    ("file name of 5000", _in_panoptic("annotations", 0, "file_name", "7" * 5000), "File name too long"),
    ("file name with a null byte", _in_panoptic("annotations", 0, "file_name", "7\0"), "does not stay inside"),
    ("file name of none", _in_panoptic("annotations", 0, "file_name", "8.png"), "8.png"),
    ("no segments", _in_panoptic("annotations", 0, "segments_info", None), "no list segments_info"),
    ("a segment is text", _in_panoptic("annotations", 0, "segments_info", ["x"]), "no id that is a whole number"),
    ("a segment of no category", _in_panoptic("annotations", 0, "segments_info", 0, "category_id", 5), "of no known"),
    ("a category that is a list", _in_panoptic("annotations", 0, "segments_info", 0, "category_id", []), "of no known"),
    ("a category without isthing", lambda f, c: c["categories"][0].pop("isthing") and None, "has no isthing of 0 or 1"),
    ("a category that is not COCO's", _in_panoptic("categories", 0, {"id": 300, "isthing": 0}), "is not COCO's"),
    ("nested deep", _deep_panoptic, "is nested more than 100 deep"),
    ("PNG missing", _png(lambda p: None), "7.png"),
    ("PNG cut", _png(lambda p: 0.6), "is not an image or is damaged"),
    ("PNG empty", _png(lambda p: 0.0), "is not an image or is damaged"),
    ("PNG a folder", _png(lambda p: p.mkdir()), "is a folder"),
    ("PNG a FIFO", _png(lambda p: os.mkfifo(p)), "is a FIFO"),
    ("PNG a device", _png(lambda p: p.symlink_to("/dev/zero")), "is a FIFO, socket or device"),
    ("PNG a link to itself", _png(lambda p: p.symlink_to(p)), "7.png"),
    ("PNG grey", _png(lambda p: Image.new("L", (4, 3), 1).save(p)), "of mode L"),
    ("PNG of 16 bits", _png(lambda p: Image.new("I;16", (4, 3), 1).save(p)), "but images of segments are RGB"),
    ("PNG with a palette", _png(lambda p: Image.new("P", (4, 3)).save(p)), "of mode P"),
    ("maps over the segments", lambda f, c: f / "segments", "is the folder of the segments themselves"),
    ("maps over the segments by ..", lambda f, c: f / "segments/../segments", "of the segments themselves"),
    ("maps over the segments by a link", _to_link, "is the folder of the segments themselves"),
    ("a map that is a link to its segments", _map_is_link, "does not stay inside"),
    ("maps into a file", lambda f, c: f / "segments/7.png", "cannot write"),
    ("maps below a device", lambda f, c: "/dev/null/x", "cannot write"),
):  # fmt: skip
    ANNOTATIONS[f"panoptic: {title}"] = partial(_panoptic, spoil, refused)


def _flags(words: Callable[[Path], list], refused: str, folder: Path, rng: np.random.Generator) -> Case:
    """Own data that do not go with the recipe."""
    _images(folder)
    (folder / "a.json").write_bytes(_bytes(lambda c: None))
    start = ["train_net.py", "--config-file", ROOT / "configs/quickstart.yaml"]
    return Case([*start, *words(folder), "OUTPUT_DIR", folder / "output"], refused=(refused,))


_VAL = ("--val-json", "a.json", "--val-images", "images")
for title, words, refused in (
    ("validation data alone", lambda f: [*_VAL], "--val-json without --train-json"),
    ("80 classes for 3", lambda f: ["MODEL.ROI_HEADS.NUM_CLASSES", 80], "must be 3, the number of classes of shapes"),
    ("2 classes for 3", lambda f: ["MODEL.ROI_HEADS.NUM_CLASSES", 2], "must be 3, the number of classes of shapes"),
    ("80 classes for 3 in evaluation", lambda f: ["--eval-only", "MODEL.ROI_HEADS.NUM_CLASSES", 80], "must be 3"),
    ("folder of images of 5000 characters", lambda f: ["--train-json", "a.json", "--train-images", "x" * 5000],
     "there is no folder of images"),
    ("annotations from a device", lambda f: ["--train-json", "/dev/zero", "--train-images", "images"], "is a FIFO"),
    ("annotations are a folder", lambda f: ["--train-json", "images", "--train-images", "images"], "is a folder"),
):  # fmt: skip
    ANNOTATIONS[f"own data: {title}"] = partial(_flags, words, refused)
