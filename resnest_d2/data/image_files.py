"""Image files: which they are, and their sizes as detectron2 reads them."""

from __future__ import annotations

import os
from typing import Iterator, Set, Tuple

from detectron2.data.detection_utils import read_image
from PIL import Image

from ..errors import UserError
from .findings import Findings

#: Extensions of the files that are images.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def files_below(folder: str, seen: Set[str]) -> Iterator[str]:
    """Yield the paths of files below a folder, except hidden ones, such as those that macOS adds.

    Args:
        seen: real paths of the folders so far, to which links may lead back; this one is added.
    """
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as e:
        raise UserError(f"cannot read {folder} ({e.strerror}); name a folder") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        # The entry knows what it is. os.path.isdir is False for a link to itself, where is_dir would raise.
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
            yield from files_below(entry.path, seen)
        else:
            yield entry.path


def real_size(path: str, how: str, where: str, report: Findings) -> Tuple[int, ...]:
    """Return (width, height) as detectron2 reads the file, EXIF rotation applied; () if it is not read.

    Args:
        how: ``header`` or ``decode``; ``none`` and ``exist`` do not read the file.

    Raises:
        Lost: the file cannot be used.
    """
    if how in ("none", "exist"):
        return ()
    try:
        with Image.open(path) as image:
            deep = image.mode.startswith(("I", "F"))  # Pillow would clip values above 255
            if not deep and how == "header" and image.format != "TIFF":  # Pillow rotates TIFF when decoding
                return image.size[::-1] if _is_turned(image) else image.size
        if not deep:
            height, width = read_image(path, "RGB").shape[:2]
            return width, height
    except Exception:  # a broken file makes Pillow raise almost anything
        report.give_up("image file unreadable", where)
    report.give_up("image with more than 8 bits per channel", where)


def is_narrow(width: int, height: int, max_size: float) -> bool:
    """Whether resizing an image to a longer side of ``max_size`` pixels leaves nothing of the shorter one."""
    return max(width, height) > 2 * max_size * min(width, height)


def is_reoriented(path: str) -> bool:
    """Whether detectron2 turns or mirrors the image by its EXIF orientation; False if it cannot be read."""
    try:
        with Image.open(path) as image:
            return _orientation(image) in range(2, 9)
    except Exception:  # a broken file makes Pillow raise almost anything
        return False


def _is_turned(image: Image.Image) -> bool:
    """Whether detectron2 rotates the image by 90 degrees."""
    return _orientation(image) in (5, 6, 7, 8)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; like detectron2, ignore a broken header."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:
        return 1
