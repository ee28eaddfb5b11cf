"""Images that are damaged, odd in size or mode, or not there."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from PIL import Image
from support import ROOT

from .. import tiny
from .case import Case

_SIZE = (64, 48)  # width, height
_UNUSABLE = ("first.",)


def _picture(rng: np.random.Generator, size: Tuple[int, int] = _SIZE, mode: str = "RGB") -> Image.Image:
    pixels = rng.integers(0, 255, (max(size[1] // 8, 1), max(size[0] // 8, 1), 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size).convert(mode)


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def plain_dataset(folder: Path) -> List[str]:
    """:func:`dataset` with nothing wrong."""
    return dataset(folder, _encoded(Image.new("RGB", _SIZE), "JPEG"))


def dataset(
    folder: Path, first: bytes | None, name: str = "first.jpg", size: Tuple[int, int] = _SIZE
) -> List[str]:
    """Two images, the first as given, with an object each. Arguments of train_net.py."""
    images = folder / "images"
    images.mkdir()
    if first is not None:
        (images / name).write_bytes(first)
    (images / "second.jpg").write_bytes(_encoded(_picture(np.random.default_rng(0)), "JPEG"))
    width, height = size
    content = {
        "images": [
            {"id": 1, "file_name": name, "width": width, "height": height},
            {"id": 2, "file_name": "second.jpg", "width": _SIZE[0], "height": _SIZE[1]},
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, box in ((1, [0, 0, max(width * 0.6, 1), max(height * 0.6, 1)]), (2, [4, 4, 30, 30]))
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return tiny.own_data(*[(folder / "a.json", images)] * 2)


def train(folder: Path, data: List[str], **expected: object) -> Case:
    """Two iterations, in which both images are seen, and evaluation."""
    words = tiny.command(data, folder / "output", 2, "TEST.PRECISE_BN.ENABLED", False)
    return Case(["train_net.py", *words[1:]], check=lambda: _evaluated(folder / "output"), **expected)


def _evaluated(output: Path) -> str | None:
    return None if (output / "results.json").exists() else "no results"


def _case(
    content: Callable, name: str, size: Tuple[int, int], expected: Dict, folder: Path, rng: object
) -> Case:
    return train(folder, dataset(folder, content(rng), name, size), **expected)


REFUSED = {"refused": _UNUSABLE}
WORKS = {"refused": None, "works": True}
EITHER = {"refused": _UNUSABLE, "works": True}
IMAGES: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}


def _add(title: str, content: Callable, expected: Dict, name: str = "first.jpg", size: Tuple = _SIZE) -> None:
    IMAGES[title] = partial(_case, content, name, size, expected)


def _cut(share: float, form: str, rng: np.random.Generator) -> bytes:
    whole = _encoded(_picture(rng), form)
    return whole[: max(1, int(len(whole) * share))]


def _flipped(form: str, rng: np.random.Generator) -> bytes:
    damaged = bytearray(_encoded(_picture(rng), form))
    for place in rng.integers(20, len(damaged) - 20, 6):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _rotated(orientation: int, rng: np.random.Generator) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(_picture(rng), "JPEG", exif=exif)


def _animated(form: str, rng: np.random.Generator) -> bytes:
    frames = [_picture(rng) for _ in range(3)]
    return _encoded(frames[0], form, save_all=True, append_images=frames[1:])


for form in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"):
    suffix = f"first.{form.lower()}"
    _add(f"{form} intact", lambda rng, form=form: _encoded(_picture(rng), form), WORKS, suffix)
    for share in (0.02, 0.5, 0.9):
        _add(f"{form} cut at {share:.0%}", partial(_cut, share, form), REFUSED, suffix)
    _add(f"{form} with flipped bits", partial(_flipped, form), EITHER, suffix)
for size in ((1, 1), (2, 1), (1, 500), (500, 1), (20000, 10), (10, 20000), (60000, 2), (7, 3)):
    _add(
        f"{size[0]}x{size[1]}",
        lambda rng, s=size: _encoded(_picture(rng, s), "PNG"),
        EITHER,
        "first.png",
        size,
    )
for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
    _add(f"PNG mode {mode}", lambda rng, m=mode: _encoded(_picture(rng, mode=m), "PNG"), WORKS, "first.png")
for mode in ("L", "CMYK", "YCbCr"):
    _add(f"JPEG mode {mode}", lambda rng, m=mode: _encoded(_picture(rng, mode=m), "JPEG"), WORKS)
for orientation in range(1, 9):
    # COCO's width and height are those of the stored pixels; detectron2 turns the image by its tag.
    turned = orientation > 4
    _add(f"EXIF orientation {orientation}", partial(_rotated, orientation), REFUSED if turned else WORKS)
    if turned:
        _add(
            f"EXIF orientation {orientation}, size as shown",
            partial(_rotated, orientation),
            WORKS,
            size=_SIZE[::-1],
        )
for form in ("GIF", "WEBP", "PNG", "TIFF"):
    _add(f"animated {form}", partial(_animated, form), WORKS, f"first.{form.lower()}")
_DEEP = {"refused": ("more than 8 bits per channel", "first.", "check_dataset.py --fix")}
_add(
    "16-bit grey PNG",
    lambda rng: _encoded(Image.fromarray(rng.integers(0, 65535, _SIZE[::-1], dtype=np.uint16)), "PNG"),
    _DEEP,
    "first.png",
)
_add(
    "16-bit grey TIFF",
    lambda rng: _encoded(Image.fromarray(rng.integers(0, 65535, _SIZE[::-1], dtype=np.uint16)), "TIFF"),
    _DEEP,
    "first.tiff",
)
_add(
    "32-bit integer TIFF",
    lambda rng: _encoded(Image.fromarray(rng.integers(0, 70000, _SIZE[::-1], dtype=np.int32)), "TIFF"),
    _DEEP,
    "first.tiff",
)
_add(
    "floating-point TIFF",
    lambda rng: _encoded(Image.fromarray(rng.random(_SIZE[::-1], dtype=np.float32)), "TIFF"),
    _DEEP,
    "first.tiff",
)
_add("progressive JPEG", lambda rng: _encoded(_picture(rng), "JPEG", progressive=True), WORKS)
_add("zero bytes", lambda rng: b"", REFUSED)
_add("random bytes", lambda rng: rng.bytes(5000), REFUSED)
_add("text", lambda rng: b"not an image", REFUSED)
_add("web page", lambda rng: b"<!DOCTYPE html><html><body>404</body></html>", REFUSED)
_add("PNG signature alone", lambda rng: b"\x89PNG\r\n\x1a\n", REFUSED, "first.png")
_add("not there", lambda rng: None, {"refused": ("first.jpg",)})
_add("of another size than annotated", lambda rng: _encoded(_picture(rng, (32, 32)), "JPEG"), REFUSED)
_add("PNG named JPG", lambda rng: _encoded(_picture(rng), "PNG"), WORKS)
_add("name with a space and umlauts", lambda rng: _encoded(_picture(rng), "PNG"), WORKS, "first bïld.png")


def _folder_instead(folder: Path, rng: np.random.Generator) -> Case:
    data = dataset(folder, None)
    (folder / "images/first.jpg").mkdir()
    return train(folder, data, refused=_UNUSABLE)


def _broken_link(folder: Path, rng: np.random.Generator) -> Case:
    data = dataset(folder, None)
    (folder / "images/first.jpg").symlink_to("nowhere.jpg")
    return train(folder, data, refused=_UNUSABLE)


IMAGES["folder instead of a file"] = _folder_instead
IMAGES["link to nowhere"] = _broken_link


# The check's idea of an image's size against what detectron2 reads.
def _tagged(orientation: object, form: str, rng: np.random.Generator) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(_picture(rng), form, exif=exif)


def _broken_exif(place: int, rng: np.random.Generator) -> bytes:
    damaged = bytearray(_tagged(6, "JPEG", rng))
    damaged[damaged.index(b"Exif") + place] ^= 0x5A
    return bytes(damaged)


def _sized(
    content: Callable, name: str, flags: Tuple[str, ...], folder: Path, rng: np.random.Generator
) -> Case:
    """Annotated with the size that detectron2 reads, in which the check must find nothing wrong."""
    made = content(rng)
    (folder / "read").write_bytes(made)
    size = read_image(folder / "read", "BGR").shape[1::-1]
    dataset(folder, made, name, size)
    return Case(["check_dataset.py", folder / "a.json", folder / "images", *flags], refused=None, works=True)


for flags in ((), ("--quick",)):
    how = "headers" if flags else "pixels"
    for orientation in (0, *range(1, 10), 65535):
        IMAGES[f"EXIF orientation {orientation}, checked by its {how}"] = partial(
            _sized, partial(_tagged, orientation, "JPEG"), "first.jpg", flags
        )
    for form in ("PNG", "WEBP", "TIFF"):
        IMAGES[f"EXIF orientation 6 in {form}, checked by its {how}"] = partial(
            _sized, partial(_tagged, 6, form), f"first.{form.lower()}", flags
        )
    for place in (0, 6, 8, 10, 14, 16, 18, 20, 24):
        IMAGES[f"EXIF spoilt at {place}, checked by its {how}"] = partial(
            _sized, partial(_broken_exif, place), "first.jpg", flags
        )


# Pictures.
def _weights() -> bytes:
    """One tensor of a detector for one class; what runs here must start no threads, which forks lack."""
    file = io.BytesIO()
    torch.save({"model": {"roi_heads.box_predictor.cls_score.bias": torch.zeros(2)}}, file)
    return file.getvalue()


def _drawn(
    make: Callable[[Path], Dict[str, Image.Image]], sets: int, folder: Path, rng: np.random.Generator
) -> Case:
    """An object in each image of a validation set, or of several with the same images."""
    images = make(folder)
    for name, image in images.items():
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / "images" / name)
    content = {
        "images": [
            {"id": i, "file_name": name, "width": image.width, "height": image.height}
            for i, (name, image) in enumerate(images.items(), 1)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, image.width, image.height]}
            for i, image in enumerate(images.values(), 1)
        ],
        "categories": [{"id": 1, "name": "$\\frac{$ and $x_1$"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    val = ["--val-json", folder / "a.json", "--val-images", folder / "images"]
    command = ["draw_predictions.py", "--config-file", ROOT / "configs/quickstart.yaml", *val * sets]
    command += ["--allow-random-weights", "--output", folder / "pictures", *tiny.SETTINGS]
    refused = ("pictures", "--output") if (folder / "pictures").exists() else None
    (folder / "weights.pth").write_bytes(b"never read" if refused else _weights())

    def check() -> str | None:
        found, expected = len(list((folder / "pictures").rglob("*.png"))), sets * len(images)
        rest = [path for path in (folder / "pictures").rglob("*") if path.name.startswith(".")]
        return None if found == expected and not rest else f"{found} pictures, and {rest}"

    settings = ["OUTPUT_DIR", folder / "output", "MODEL.WEIGHTS", folder / "weights.pth"]
    return Case([*command, *settings], refused=refused, works=refused is None, check=check)


def _blank(*names: str, size: Tuple[int, int] = _SIZE) -> Callable[[Path], Dict[str, Image.Image]]:
    return lambda folder: {name: Image.new("RGB", size) for name in names}


def _in_the_way(folder: Path) -> Dict[str, Image.Image]:
    (folder / "pictures").write_text("")
    return {"1.jpg": Image.new("RGB", _SIZE)}


for title, make in (
    ("equal names in folders", _blank("a/1.jpg", "b/1.jpg")),
    ("equal names but for the suffix", _blank("1.jpg", "1.png", "1.bmp")),
    ("names that numbers make equal", _blank("1.jpg", "1.png", "1-2.jpg")),
    ("names of 255 bytes", _blank("x" * 251 + ".jpg", "x" * 250 + "y.png")),
    ("names of 84 Chinese characters", _blank("\u732b" * 83 + ".jpg", "\u732b" * 83 + ".png")),
    ("1x500", _blank("1.png", size=(1, 500))),
    ("500x1", _blank("1.png", size=(500, 1))),
    ("2000x10", _blank("1.png", size=(2000, 10))),
    ("10x2000", _blank("1.png", size=(10, 2000))),
    ("a file in the way", _in_the_way),
):
    IMAGES[f"drawn: {title}"] = partial(_drawn, make, 1)
IMAGES["drawn: two sets with equal names"] = partial(_drawn, _blank("1.jpg"), 2)
