"""Semantic masks: images whose grey values or palette indices are the labels of their pixels."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from ..errors import UserError, one_line
from ..files import check_readable
from .semantic_classes import SemanticClasses

#: Kinds of problem of a mask's file.
UNREADABLE = "mask file unreadable"
NOT_PNG = "mask that is not PNG"
IN_COLOURS = "mask in colours, not labels"
DEEP = "mask with more than 8 bits per pixel"
OUT_OF_RANGE = "label that no class has"
# The first bytes of a PNG: its signature, and the width, height and bit depth of its image.
_SIGNATURE, _HEADER = b"\x89PNG\r\n\x1a\n", struct.Struct(">16xIIB")
# Formats that keep values as they are.
_EXACT = ("PNG", "BMP", "TIFF", "GIF")
# Modes that are read as they are; others are converted to RGB.
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_LISTED = 5


class MaskError(UserError):
    """A mask that cannot be used.

    Attributes:
        kind: what is wrong with it, one of the constants above.
        reason: details.
    """

    def __init__(self, message: str, kind: str = "", reason: str = "") -> None:
        super().__init__(message)  # PyTorch raises a worker's error again by its message alone
        self.kind, self.reason = kind, reason

    @classmethod
    def of(cls, path: Union[str, Path], kind: str, reason: str) -> MaskError:
        """Return the error of a file."""
        remedy = "tools/check_dataset.py MASKS IMAGES --classes FILE shows all such"
        return cls(f"{path}: {kind} ({reason}); {remedy}", kind, reason)


class Mask(NamedTuple):
    """A mask as it is stored.

    Attributes:
        form: format and mode as Pillow names them, such as ``("PNG", "L")``.
        size: width and height in pixels.
        pixels: (H, W), or (H, W, C) if it has several channels; None if they were not decoded.
        palette: (N, 3) uint8, R, G, B of each index; None without a palette.
        bits: bits per channel of a PNG, of which Pillow keeps 8 if there are several channels.
        lossy: whether the compression changes values.
    """

    form: Tuple[str, str]
    size: Tuple[int, int]
    pixels: Optional[np.ndarray]
    palette: Optional[np.ndarray]
    bits: int = 8
    lossy: bool = False

    @property
    def kind(self) -> Optional[str]:
        """The kind of problem that the format is, or None if its values can be labels."""
        form, mode = self.form
        if form != "PNG":  # such as JPEG, which changes the values
            return NOT_PNG
        if mode.startswith(("I", "F")) or self.bits > 8:
            return DEEP
        return None if mode in ("1", "L", "P") else IN_COLOURS


def read_mask(path: Union[str, Path], decode: bool = True) -> Mask:
    """Read an image of any format and mode.

    Args:
        decode: read the pixels too.

    Raises:
        MaskError: the file is missing, is not an image, or is damaged.
    """
    try:
        path = check_readable(path)
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
            image = Image.open(file)
            form, size = (image.format or "", image.mode), image.size
            bits = _HEADER.unpack(header)[2] if form[0] == "PNG" else 8
            lossy = "jpeg" in str(image.info.get("compression", "")) or form[0] not in _EXACT
            if decode and image.mode not in _MODES and not image.mode.startswith(("I", "F")):
                image = image.convert("RGB")
            palette = image.getpalette() if decode and image.mode == "P" else None
            pixels = np.asarray(image) if decode else None
            if decode and form == ("PNG", "L") and bits < 8:  # Pillow spreads 2 and 4 bits to 0..255
                pixels = pixels // (255 // (2**bits - 1))
    except UserError as e:
        raise MaskError.of(path, UNREADABLE, one_line(e, 200)) from None
    except UnidentifiedImageError:
        raise MaskError.of(path, UNREADABLE, "not an image") from None
    except Exception as e:  # a broken file makes Pillow raise almost anything
        raise MaskError.of(path, UNREADABLE, one_line(e, 100) or type(e).__name__) from None
    colours = None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)
    return Mask(form, size, pixels, colours, bits, lossy)


def png_header(path: Union[str, Path]) -> Tuple[int, int, int]:
    """Read width, height and bit depth of a PNG, which takes a tenth of the time that Pillow needs.

    Raises:
        UserError: the file cannot be read.
        MaskError: it is not PNG.
    """
    with open(check_readable(path), "rb") as file:
        header = file.read(_HEADER.size)
    if not header.startswith(_SIGNATURE) or len(header) < _HEADER.size:
        raise MaskError.of(path, NOT_PNG, "by its first bytes")
    return _HEADER.unpack(header)


def read_labels(path: Union[str, Path]) -> np.ndarray:
    """Read each pixel's label, (H, W) uint8, from a PNG of grey values or palette indices.

    detectron2 would convert a palette to grey, and 1, 2 and 4 bits to 0..255.

    Raises:
        MaskError: the file cannot be read, or holds something else.
    """
    mask = read_mask(PathManager.get_local_path(str(path)))
    if mask.kind:
        raise MaskError.of(path, mask.kind, "/".join(mask.form))
    return mask.pixels.astype(np.uint8)


def check_size(path: str, size: Sequence[int], image: str, wanted: Sequence[int]) -> None:
    """Raise UserError unless a label map's (height, width) is that of its image."""
    if tuple(size) != tuple(wanted):
        sizes = " and ".join(f"{width}x{height}" for height, width in (size, wanted))
        raise UserError(f"{path} is not a label map of {image}: their sizes are {sizes} pixels")


def check_range(path: str, labels: np.ndarray, classes: int, ignored: int) -> None:
    """Raise UserError for labels that are neither those of classes, from 0, nor the ignored one."""
    if int(labels.max(initial=0)) < classes:
        return
    wrong = labels[(labels >= classes) & (labels != ignored)]
    if len(wrong):
        raise UserError(
            f"{path} has the label {wrong.max()}, but there are {classes} classes, from 0, and {ignored} is "
            "ignored"
        )


class Converted(NamedTuple):
    """The labels of a mask.

    Attributes:
        labels: (H, W) uint8.
        coloured: whether they were found by their colours.
        unknown: number of pixels without a class's colour, which are ignored.
        example: the colour of one of them, R, G, B.
    """

    labels: np.ndarray
    coloured: bool = False
    unknown: int = 0
    example: Tuple[int, ...] = ()


def convert(mask: Mask, path: Union[str, Path], classes: SemanticClasses) -> Converted:
    """Convert a mask to labels: by its colours, if it has any, or its palette's if that is in another order.

    Args:
        mask: from :func:`read_mask`, with pixels.

    Raises:
        MaskError: it is in a format that changes values, in colours although those of the classes are not
            known, or has values that are no labels.
    """
    (form, mode), values = mask.form, mask.pixels
    if mask.lossy:
        raise MaskError.of(path, NOT_PNG, f"its compression ({form}) changes labels")
    if mode.startswith("F") or (mask.bits > 8 and values.ndim == 3):
        raise MaskError.of(path, DEEP, mode)
    if mode == "P" and classes.colours and values.max() < len(mask.palette):
        converted = _by_colour(mask.palette[values], classes)
        outside = outside_of(values, classes) and converted.unknown < values.size
        if outside or order_of(mask, classes) == "other":
            return converted
    if values.ndim == 3 and values.shape[2] > 2:
        rgb, values = values[..., :3], values[..., 0]
        grey = (rgb == rgb[..., :1]).all()
        converted = _by_colour(rgb, classes) if classes.colours else None
        # Of grey, a class that is black or grey itself may have some of the pixels.
        if converted and not (grey and converted.unknown and not outside_of(values, classes)):
            return converted
        if not grey:
            raise MaskError.of(path, IN_COLOURS, mode)
    elif values.ndim == 3:  # grey with an alpha channel
        values = values[..., 0]
    outside = outside_of(values, classes)
    if outside:
        raise MaskError.of(path, OUT_OF_RANGE, outside)
    return Converted(values.astype(np.uint8))


def outside_of(values: np.ndarray, classes: SemanticClasses) -> str:
    """List the first values that are neither a class's label nor the ignored one; empty if there are none."""
    found = np.unique(values).astype(np.int64)
    found = found[(found < 0) | (found >= len(classes.names)) & (found != classes.ignored)].tolist()
    return ", ".join(map(str, found[:_LISTED])) + ", ..." * (len(found) > _LISTED)


def _by_colour(rgb: np.ndarray, classes: SemanticClasses) -> Converted:
    """Convert (H, W, 3) uint8 to labels by the colours of the classes."""
    place = np.array([1 << 16, 1 << 8, 1], dtype=np.int64)
    codes, known = rgb @ place, np.array(classes.colours, dtype=np.int64) @ place
    order = np.argsort(known)
    nearest = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
    unknown = known[nearest] != codes
    example = tuple(rgb[unknown][0].tolist()) if unknown.any() else ()
    labels = np.where(unknown, classes.ignored, nearest).astype(np.uint8)
    return Converted(labels, True, int(unknown.sum()), example)


def order_of(mask: Mask, classes: SemanticClasses) -> str:
    """Compare a mask's palette with the classes' colours: the ``same``, the same in an ``other`` order, or
    ``unknown``.
    """
    used = [i for i in np.unique(mask.pixels).tolist() if i != classes.ignored]
    if not classes.colours or not all(i < len(mask.palette) for i in used):
        return "unknown"
    colours = [tuple(mask.palette[i].tolist()) for i in used]
    places = {colour: i for i, colour in enumerate(classes.colours)}
    if any(places.get(colour, i) != i for i, colour in zip(used, colours)):
        return "other"
    return "same" if {*colours} <= {*classes.colours} else "unknown"
