"""Semantic masks: of the wrong kind, size or labels, with the wrong classes, or not there."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence

import numpy as np
from PIL import Image
from support import ROOT

from .. import tiny
from .case import Case

MASKS: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}
_SIZE = (64, 48)  # width, height
_NAMES, _COLOURS = ["road", "tree", "roof"], [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
_SEGMENTOR = ("MODEL.META_ARCHITECTURE", "SemanticSegmentor")

Spoil = Callable[[Path], Optional[object]]


def _values() -> np.ndarray:
    """(48, 64): stripes of the classes, and some that is ignored."""
    return np.array([0, 1, 2, 255], np.uint8)[np.arange(_SIZE[0]) // 16][None].repeat(_SIZE[1], 0)


def _write(folder: Path) -> None:
    for name in ("masks", "images"):
        (folder / name).mkdir()
    for name in ("first", "second"):
        Image.fromarray(_values()).save(folder / f"masks/{name}.png")
        Image.new("RGB", _SIZE, (80, 60, 90)).save(folder / f"images/{name}.jpg")
    _classes({"classes": _NAMES, "colours": _COLOURS})(folder)


def _named(folder: Path, split: str) -> Sequence[object]:
    return (f"--{split}-masks", folder / "masks", f"--{split}-images", folder / "images")


def _data(folder: Path) -> list:
    return [*_named(folder, "train"), *_named(folder, "val"), "--classes", folder / "classes.json"]


def _train(spoil: Spoil, refused: Sequence[str], folder: Path, rng: np.random.Generator) -> Case:
    _write(folder)
    spoil(folder)
    words = tiny.command([*map(str, _data(folder))], folder / "output", 1, *_SEGMENTOR)
    return Case(["train_net.py", *words[1:]], refused=refused)


def _check(spoil: Spoil, statuses: Sequence[int], folder: Path, rng: np.random.Generator) -> Case:
    """The masks that it writes must be what training reads."""
    _write(folder)
    spoil(folder)
    words = ["check_dataset.py", folder / "masks", folder / "images", "--classes", folder / "classes.json"]
    check = partial(_copy_is_sound, folder / "out")
    return Case(
        [*words, "--fix", folder / "out"], refused=(str(folder),), works=True, statuses=statuses, check=check
    )


def _copy_is_sound(out: Path) -> Optional[str]:
    for path in out.rglob("*"):
        with Image.open(path) as image:
            found = {*np.unique(np.asarray(image)).tolist()}
            if image.mode != "L" or not found <= {0, 1, 2, 255}:
                return f"{path} is of mode {image.mode} and has {found}"
    return None if out.is_dir() else "no copy"


def _add(title: str, spoil: Spoil, *refused: str, statuses: Sequence[int] = (1,)) -> None:
    MASKS[f"{title}, trained on"] = partial(_train, spoil, refused)
    MASKS[f"{title}, checked"] = partial(_check, spoil, statuses)


def _put(make: Callable[[np.ndarray], Image.Image], form: str = "PNG", **options: Any) -> Spoil:
    """Save as the first mask."""
    return lambda folder: make(_values()).save(folder / "masks/first.png", form, **options)


def _bytes(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "masks/first.png"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def _instead(make: Callable[[Path], object], name: str = "masks/first.png") -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def _classes(content: Any) -> Spoil:
    return lambda folder: (folder / "classes.json").write_text(json.dumps(content)) and None


def _coloured(values: np.ndarray) -> Image.Image:
    table = np.zeros((256, 3), np.uint8)
    table[:3] = _COLOURS
    return Image.fromarray(table[values])


def _palette(values: np.ndarray, colours: Sequence = _COLOURS) -> Image.Image:
    image = Image.fromarray(values).convert("L")
    image.putpalette([v for colour in [*colours, *[[0, 0, 0]] * (256 - len(colours))] for v in colour])
    return image


def _rename(old: str, new: str) -> Spoil:
    return lambda folder: (folder / old).rename(folder / new) and None


def _empty(name: str) -> Spoil:
    return lambda folder: [path.unlink() for path in (folder / name).iterdir()] and None


def _same(folder: Path) -> None:
    _empty("masks")(folder)
    (folder / "masks").rmdir()
    (folder / "masks").symlink_to("images")


_IN_COLOURS, _DEEP = "mask in colours, not labels: first.png", "more than 8 bits per pixel: first.png"
_UNREADABLE, _RANGE, _SIZES = "mask file unreadable: first.png", "label that no class has", "of another size"
for title, spoil, *refused in (
    ("RGB", _put(_coloured), _IN_COLOURS, "--fix OUT"),
    ("RGBA", _put(lambda v: _coloured(v).convert("RGBA")), _IN_COLOURS),
    ("grey as RGB", _put(lambda v: Image.fromarray(v).convert("RGB")), _IN_COLOURS),
    ("grey with alpha", _put(lambda v: Image.fromarray(v).convert("LA")), _IN_COLOURS),
    ("16 bits", _put(lambda v: Image.fromarray(v.astype(np.uint16))), _DEEP),
    ("16 bits above 255", _put(lambda v: Image.fromarray(v.astype(np.uint16) * 257)), _DEEP),
    ("32 bits in a TIFF", _put(lambda v: Image.fromarray(v.astype(np.int32)), "TIFF"), "not PNG: first.png (TIFF"),
    ("floating-point TIFF", _put(lambda v: Image.fromarray(v.astype(np.float32)), "TIFF"), "not PNG: first.png (TIFF"),
    ("CMYK TIFF", _put(lambda v: _coloured(v).convert("CMYK"), "TIFF"), "not PNG: first.png (TIFF"),
    ("JPEG named PNG", _put(Image.fromarray, "JPEG"), "not PNG: first.png (JPEG"),
    ("BMP named PNG", _put(Image.fromarray, "BMP"), "not PNG: first.png (BMP"),
    ("PNG named BMP", _rename("masks/first.png", "masks/first.bmp"), "not PNG: first.bmp"),
    ("palette in another order", _put(lambda v: _palette(v, _COLOURS[::-1])), "colours in another order: first.png"),
    ("palette of other indices", _put(lambda v: _palette(np.where(v < 3, v + 9, v).astype(np.uint8))), _RANGE),
    ("label of no class", _put(lambda v: Image.fromarray(v | 8)), _RANGE, "first.png (8, 9, 10)"),
    ("labels from 1", _put(lambda v: Image.fromarray(v + np.uint8(1))), _RANGE, "first.png (3)"),
    ("labels as brightness", _put(lambda v: Image.fromarray(v * np.uint8(85))), _RANGE),
    ("width and height exchanged", _put(lambda v: Image.fromarray(v.T.copy())), _SIZES, "first.png is 48x64"),
    ("one pixel", _put(lambda v: Image.new("L", (1, 1))), _SIZES, "first.png is 1x1"),
    ("zero bytes", _bytes(lambda b: b""), _UNREADABLE),
    ("random bytes", _bytes(lambda b: bytes(range(256)) * 9), _UNREADABLE),
    ("PNG signature alone", _bytes(lambda b: b[:8]), _UNREADABLE),
    ("cut in the header", _bytes(lambda b: b[:25]), _UNREADABLE),
    ("cut in the pixels", _bytes(lambda b: b[:60]), _UNREADABLE),
    ("a chunk with another checksum", _bytes(lambda b: b.replace(b"IDAT", b"IDAU")), _UNREADABLE),
    ("a size of billions", _bytes(lambda b: b[:16] + b"\x7f" * 8 + b[24:]), _UNREADABLE),
    ("a web page", _bytes(lambda b: b"<!DOCTYPE html>"), _UNREADABLE),
    ("a link to nowhere", _instead(lambda p: p.symlink_to("nowhere")), _UNREADABLE),
    ("a link to itself", _instead(lambda p: p.symlink_to(p)), _UNREADABLE),
    ("a FIFO", _instead(os.mkfifo), _UNREADABLE, "is a FIFO"),
    ("a device", _instead(lambda p: p.symlink_to("/dev/zero")), _UNREADABLE, "is a FIFO"),
    ("a folder instead of a mask", _instead(lambda p: p.mkdir()), "image without a mask: first.jpg"),
    ("mask missing", _instead(lambda p: None), "1 x image without a mask: first.jpg"),
    ("image missing", _instead(lambda p: None, "images/first.jpg"), "1 x mask without an image: first.png"),
    ("image a FIFO", _instead(os.mkfifo, "images/first.jpg"), "image file unreadable: first.jpg"),
    ("image empty", _instead(lambda p: p.write_bytes(b""), "images/first.jpg"), "image file unreadable: first.jpg"),
    ("image twice", lambda f: Image.new("RGB", _SIZE).save(f / "images/first.png"), "name of another one"),
    ("names with a suffix", lambda f: [_rename(f"masks/{n}.png", f"masks/{n}_mask.png")(f) for n in ("first", "second")],
     "no mask in", "has the name of an image"),
):  # fmt: skip
    _add(title, spoil, *refused)

# Both tools refuse these, whatever the masks are.
for title, spoil, *refused in (
    ("no folder of masks", _rename("masks", "labels"), "masks"),
    ("no folder of images", _rename("images", "pictures"), "there is no folder of images"),
    ("no masks", _empty("masks"), "there are no masks in"),
    ("no images", _empty("images"), "there are no images in"),
    ("masks among the images", _same, "is the folder of images, too"),
    ("classes missing", lambda f: (f / "classes.json").unlink(), "--classes"),
    ("classes a folder", _instead(lambda p: p.mkdir(), "classes.json"), "--classes", "is a folder"),
    ("classes a device", _instead(lambda p: p.symlink_to("/dev/zero"), "classes.json"), "--classes", "is a FIFO"),
    ("classes empty", _instead(lambda p: p.write_text(""), "classes.json"), "--classes", "is not valid JSON"),
    ("classes nested deep", _instead(lambda p: p.write_text("[" * 200_000), "classes.json"), "--classes", "nested"),
    ("classes twice in one object", _instead(lambda p: p.write_text('{"classes": ["a"], "classes": ["b"]}'), "classes.json"),
     "--classes", "twice in one object"),
    ("classes a number", _classes(3), "must be a list of names"),
    ("classes an empty list", _classes([]), "must be a list of names"),
    ("classes as in COCO", _classes([{"id": 1, "name": "road"}]), "is not a name"),
    ("classes of no name", _classes(["road", ""]), "is not a name"),
    ("classes of one name", _classes(["road", "road"]), "is listed twice"),
    ("class with half a surrogate pair", _classes(["road", "\ud800"]), "is not a name"),
    ("300 classes", _classes([str(i) for i in range(300)]), "more than the 256 labels"),
    ("ignored label -1", _classes({"classes": _NAMES, "ignore_label": -1}), "from 0 to 255, got -1"),
    ("ignored label 1e400", _classes({"classes": _NAMES, "ignore_label": float("inf")}), "from 0 to 255"),
    ("ignored label as text", _classes({"classes": _NAMES, "ignore_label": "255"}), "from 0 to 255, got '255'"),
    ("two colours for three", _classes({"classes": _NAMES, "colours": _COLOURS[:2]}), "for each of the 3 classes"),
    ("colours of floats", _classes({"classes": _NAMES, "colours": [[0.5, 0, 0]] * 3}), "must be [R, G, B]"),
    ("equal colours", _classes({"classes": _NAMES, "colours": [[0, 0, 0]] * 3}), "is that of two classes"),
):  # fmt: skip
    _add(title, spoil, *refused, statuses=())
_add(
    "another ignored label",
    _classes({"classes": _NAMES, "ignore_label": 254}),
    *(_RANGE, "first.png (255), second.png (255)"),
)


def _without_colours(folder: Path, rng: np.random.Generator) -> Case:
    _write(folder)
    _put(_coloured)(folder)
    _classes(_NAMES)(folder)
    words = ["check_dataset.py", folder / "masks", folder / "images", "--classes", folder / "classes.json"]
    return Case([*words, "--fix", folder / "out"], refused=("need the classes' colours", '"colours"'))


MASKS["RGB without colours, repaired"] = _without_colours


def _options(words: Callable[[Path], list], refused: Sequence[str], folder: Path, rng: object) -> Case:
    """Options that do not go together, or not with the recipe."""
    _write(folder)
    start = ["train_net.py", "--config-file", ROOT / "configs/quickstart.yaml"]
    return Case([*start, *words(folder), "OUTPUT_DIR", folder / "output"], refused=refused)


for title, words, *refused in (
    ("for a detector", _data, "META_ARCHITECTURE GeneralizedRCNN cannot learn from masks"),
    ("without classes", lambda f: _data(f)[:-2], "masks need --classes FILE"),
    ("classes twice", lambda f: [*_data(f), "--classes", "x"], "--classes is given twice"),
    ("without images", lambda f: _data(f)[:2], "must come in pairs, got 1 and 0"),
    ("images alone", lambda f: _data(f)[2:4], "--train-images needs the annotations"),
    ("beside COCO", lambda f: [*_data(f), "--train-json", "a.json"], "--train-json names objects and --train-masks"),
    ("classes alone", lambda f: _data(f)[-2:], "--classes names the labels of masks"),
    ("validation alone", lambda f: [*_data(f)[4:], *_SEGMENTOR], "--val-masks without --train-masks"),
    ("shapes for a segmentor", lambda f: [*_SEGMENTOR], "shapes_train has annotations of objects"),
):  # fmt: skip
    MASKS[f"options: {title}"] = partial(_options, words, refused)


def _copy(target: str, refused: str, folder: Path, rng: object) -> Case:
    _write(folder)
    (folder / "link").symlink_to("masks")
    words = ["check_dataset.py", folder / "masks", folder / "images", "--classes", folder / "classes.json"]
    return Case([*words, "--fix", Path(folder, target)], refused=(refused,))


for target, refused in (
    ("masks", "lies in the folder of masks"),
    ("masks/new", "lies in the folder of masks"),
    ("link", "lies in the folder of masks"),
    ("images/masks", "lies in the folder of images"),
    (".", "holds or lies in the folder of masks"),
    ("classes.json", "is not a folder"),
    ("classes.json/x", "cannot write"),
    ("/dev/null", "is not a folder"),
    ("/proc/masks", "cannot write"),
    ("x" * 300, "cannot write"),
):
    MASKS[f"copy into {target[:20]}"] = partial(_copy, target, refused)


def _ade20k(spoil: Spoil, refused: str, folder: Path, rng: object) -> Case:
    (folder / "annotations/training").mkdir(parents=True)
    Image.new("L", _SIZE, 150).save(folder / "annotations/training/first.png")
    spoil(folder)
    return Case(["prepare_ade20k.py", folder], refused=(refused,))


_FIRST = "annotations/training/first.png"
for title, spoil, refused in (
    ("no masks", lambda f: (f / _FIRST).unlink(), "there are no masks in"),
    ("a mask of 151", lambda f: Image.new("L", _SIZE, 151).save(f / _FIRST), "has the label 151"),
    ("a mask in colours", lambda f: Image.new("RGB", _SIZE).save(f / _FIRST), "mask in colours"),
    ("a mask that is empty", _instead(lambda p: p.write_bytes(b""), _FIRST), "mask file unreadable"),
    ("a mask that is a FIFO", _instead(os.mkfifo, _FIRST), "mask file unreadable"),
    (
        "labels over their sources",
        lambda f: (f / "annotations_detectron2").symlink_to("annotations"),
        "itself",
    ),
    ("labels into a file", lambda f: (f / "annotations_detectron2").write_text(""), "cannot write"),
):
    MASKS[f"ADE20K: {title}"] = partial(_ade20k, spoil, refused)
