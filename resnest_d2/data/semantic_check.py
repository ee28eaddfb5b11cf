"""Find what is wrong with semantic masks, and write a folder of masks that training can read."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image
from tqdm import tqdm

from ..errors import UserError, one_line
from ..files import atomic_writer, check_writable, inside, lies_in, writing
from .annotations import spread
from .coco_check import MAX_SIZE
from .findings import NARROW, OF_IMAGES, Findings, Lost
from .image_files import is_narrow, is_reoriented, real_size
from .semantic import Pairing, pair_files
from .semantic_classes import IGNORED, LABELS, SemanticClasses, read_classes
from .semantic_masks import (
    DEEP,
    IN_COLOURS,
    NOT_PNG,
    OUT_OF_RANGE,
    UNREADABLE,
    Mask,
    MaskError,
    convert,
    order_of,
    outside_of,
    read_mask,
)

NO_MASK, NO_IMAGE = "image without a mask", "mask without an image"
AMBIGUOUS = "file with the name of another one but for the extension"
OTHER_SIZE = "mask of another size than its image"
OTHER_ORDER = "palette with the classes' colours in another order"
REORIENTED = "image that its EXIF orientation turns or mirrors, unlike its mask"
PALETTE = "mask with a palette, whose indices are read as labels"
UNLABELLED = "mask all of whose pixels are ignored"
#: Kinds of problem, and whether training would fail or go silently wrong because of them.
KINDS = {
    NO_MASK: True,
    NO_IMAGE: True,
    AMBIGUOUS: True,
    **OF_IMAGES,
    UNREADABLE: True,
    NOT_PNG: True,
    IN_COLOURS: True,
    DEEP: True,
    OTHER_SIZE: True,
    OUT_OF_RANGE: True,
    OTHER_ORDER: True,
    REORIENTED: False,
    PALETTE: False,
    UNLABELLED: False,
}
# Kinds that --fix repairs, if not in every mask.
_REPAIRED = (NOT_PNG, IN_COLOURS, DEEP, OTHER_ORDER)
# Of a sample: numbers of images whose headers are read and of masks that are decoded, limit in seconds.
_SAMPLE, _DECODED, _SECONDS = 200, 50, 2.0
_LISTED = 10


class SemanticReport(Findings):
    """Findings of :func:`check_semantic`.

    Attributes:
        images: number of images with a mask.
        classes: number of classes.
        pixels: (256,) number of pixels with each label, in the masks that were decoded.
        ignored: label of the pixels that are ignored.
        coloured: number of pixels in masks in colours.
        unknown: how many of them have no class's colour; a repaired copy ignores them.
        example: the first such colour, R, G, B.
        mixed: the first mask in colours, rather than in grey stored as R, G and B; empty if there is none.
        misfits: files of the masks of another size than their images.
    """

    kinds = KINDS

    def __init__(self, classes: int, ignored: int) -> None:
        super().__init__("masks")
        self.images, self.classes, self.ignored = 0, classes, ignored
        self.pixels = np.zeros(LABELS, dtype=np.int64)
        self.coloured = self.unknown = 0
        self.example: Tuple[int, ...] = ()
        self.mixed, self.misfits = "", set()

    @property
    def labelled(self) -> bool:
        """Whether a pixel of the masks that were decoded has a class."""
        return self.pixels.sum() > self.pixels[self.ignored]

    def summary(self) -> List[str]:
        share = self.pixels[self.ignored] / max(self.pixels.sum(), 1)
        return [f"{self.images} images with masks, {self.classes} classes, {share:.1%} of the pixels ignored"]


def check_semantic(
    masks: Path,
    images: Path,
    classes: Optional[Path],
    how: str = "decode",
    fix: Optional[Path] = None,
    overwrite: bool = False,
    max_size: float = MAX_SIZE,
) -> SemanticReport:
    """Check a folder of masks with its images, and with ``fix`` write a repaired copy of the masks.

    The copy holds PNGs of 8-bit labels. Masks in colours are converted by those of the classes, and pixels
    of other colours are ignored. Masks that cannot be converted, or lack an image of their size, are left out
    and counted.

    Args:
        classes: file for :func:`read_classes`.
        how: how to read the images: ``header`` or ``decode``; ``sample`` reads the headers of some, and
            decodes some of their masks.
        fix: folder for the copy.
        overwrite: let the copy replace files in a folder that is not empty.
        max_size: largest length in pixels of an image's longer side after resizing.

    Raises:
        UserError: the classes or the folders cannot be used, no mask belongs to an image, or the copy cannot
            be written, needs colours, or would replace a file that must be kept.
    """
    known, masks = read_classes(classes), Path(masks)
    if fix:
        _check_target(Path(fix), masks, Path(images), overwrite)
    found = pair_files(masks, images)
    if not found.pairs:
        raise UserError(
            f"no mask in {masks} has the name of an image in {images} but for the extension: the first are "
            f"{found.no_image[0]} and {found.no_mask[0]}; are the folders those of one split?"
        )
    report = SemanticReport(len(known.names), known.ignored)
    for kind, paths, root in (
        (NO_MASK, found.no_mask, images),
        (NO_IMAGE, found.no_image, masks),
        (AMBIGUOUS, found.ambiguous, os.path.commonpath([os.path.abspath(f) for f in (images, masks)])),
    ):
        for path in paths:
            report.add(kind, os.path.relpath(path, root))
    _inspect_all(found.pairs, known, str(masks), how, max_size, report)
    never = [name for i, name in enumerate(known.names) if not report.pixels[i] and i != known.ignored]
    if never and how != "sample":
        some = ", ".join(f"{name!r:.60}" for name in never[:_LISTED]) + ", ..." * (len(never) > _LISTED)
        report.notes.append(f"{len(never)} of {len(known.names)} classes never occur: {some}")
    if known.ignored < len(known.names):
        report.notes.append(
            f"the ignored label {known.ignored} is also that of the class "
            f"{known.names[known.ignored]!r:.60}, whose pixels do not count"
        )
    if report.unknown:
        report.notes.append(
            f"{report.unknown / report.coloured:.1%} of the pixels of masks in colours have a colour that no "
            f"class has, such as {list(report.example)}; --fix ignores them"
        )
    if fix:
        _write_copy(found, known, masks, Path(fix), report)
    return report


def check_masks(masks: str, images: str, classes: str, max_size: float = MAX_SIZE) -> List[str]:
    """Check masks quickly: that all files have their partners, and what some of them hold.

    Returns:
        Warnings, one per line.

    Raises:
        UserError: for the first kind of problem that would make training fail or go wrong.
    """
    report = check_semantic(Path(masks), Path(images), Path(classes), "sample", max_size=max_size)
    tool = f"tools/check_dataset.py {masks} {images} --classes {classes}"
    return _warnings(report, masks, f"{tool} shows all", f"{tool} --fix OUT writes masks of labels")


def check_registered_masks(cfg: CfgNode, name: str, max_size: float) -> List[str]:
    """Check some masks of a registered dataset as :func:`check_masks` does.

    Raises:
        UserError: also if the dataset cannot be loaded, or has an image without a mask.
    """
    metadata = MetadataCatalog.get(name)
    try:
        records = DatasetCatalog.get(name)
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as e:
        raise UserError(f"{name} cannot be loaded ({type(e).__name__}: {one_line(e, 200)})") from None
    without = [str(r.get("file_name")) for r in records if not isinstance(r.get("sem_seg_file_name"), str)]
    if without or not records:
        what = (
            f"{len(without)} of its images have no mask, such as {without[0]}" if without else "it is empty"
        )
        raise UserError(f"{name}: {what}; each record needs file_name and sem_seg_file_name")
    names = list(metadata.get("stuff_classes") or [""] * cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    classes = SemanticClasses(name, names, None, metadata.get("ignore_label", IGNORED))
    report = SemanticReport(len(names), classes.ignored)
    pairs = [(r["file_name"], r["sem_seg_file_name"]) for r in records]
    root = metadata.get("sem_seg_root") or metadata.get("gt_dir") or ""
    _inspect_all(pairs, classes, root, "sample", max_size, report)
    remedy = f"it is registered with {len(names)} classes and the ignored label {classes.ignored}"
    return _warnings(report, name, remedy, remedy)


def _warnings(report: SemanticReport, source: str, remedy: str, conversion: str) -> List[str]:
    """Return the report's lines.

    Args:
        source: what was checked.
        remedy: what the user can do, for error messages.
        conversion: what the user can do if the masks can be converted.

    Raises:
        UserError: a problem is fatal, or nothing is labelled.
    """
    if report.fatal:
        kind = report.fatal[0]
        if kind == NARROW:  # depends on the configuration, which the tool does not know
            remedy = "remove it, or raise INPUT.MAX_SIZE_TRAIN or INPUT.MAX_SIZE_TEST"
        raise UserError(f"{source}: {report.line(kind)}; {conversion if kind in _REPAIRED else remedy}")
    if not report.labelled:
        raise UserError(
            f"{source}: all pixels of the masks that were looked at have the ignored label {report.ignored}; "
            f"{remedy}"
        )
    return [f"{source}: {line}" for line in (*map(report.line, report.counts), *report.notes)]


def _inspect_all(
    pairs: Sequence[Tuple[str, str]],
    classes: SemanticClasses,
    root: str,
    how: str,
    max_size: float,
    report: SemanticReport,
) -> None:
    """Look at images and their masks.

    Args:
        root: folder of the masks.
    """
    report.images = len(pairs)
    sampled = spread(len(pairs), _SAMPLE) if how == "sample" else range(len(pairs))
    decoded = {sampled[i] for i in spread(len(sampled), _DECODED)} if how == "sample" else sampled
    end = time.monotonic() + _SECONDS
    for index in tqdm(sampled, desc="masks", disable=how == "sample"):
        if how == "sample" and index and time.monotonic() > end:
            break
        image, mask = pairs[index]
        size = _image_size(image, "header" if how == "sample" else how, max_size, report)
        try:
            stored = read_mask(PathManager.get_local_path(mask), index in decoded)
        except MaskError as e:
            report.add(e.kind, f"{os.path.relpath(mask, root or '.')} ({e.reason})")
            continue
        _inspect(stored, mask, size, classes, os.path.relpath(mask, root or "."), report)


def _image_size(file: str, how: str, max_size: float, report: SemanticReport) -> Tuple[int, ...]:
    """Return the width and height of an image, or () if it cannot be used."""
    where, path = os.path.basename(file), PathManager.get_local_path(file)
    try:
        if not os.path.isfile(path):  # opening a FIFO would block forever
            report.give_up("image file unreadable", where)
        size = real_size(path, how, where, report)
        if is_reoriented(path):
            report.add(REORIENTED, where)
        if is_narrow(*size, max_size):
            report.give_up(NARROW, f"{where} is {size[0]}x{size[1]}")
    except Lost:
        return ()
    return size


def _inspect(
    mask: Mask, path: str, size: Tuple[int, ...], classes: SemanticClasses, where: str, report: SemanticReport
) -> None:
    """Look at a mask.

    Args:
        size: width and height of its image, or () if they are not known.
    """
    if size and mask.size != size:
        sizes = [f"{width}x{height}" for width, height in (mask.size, size)]
        report.add(OTHER_SIZE, f"{where} is {sizes[0]}, its image {sizes[1]}")
        report.misfits.add(path)
    form, mode = mask.form
    kind = mask.kind or (None if path.lower().endswith(".png") else NOT_PNG)
    if kind:
        report.add(kind, f"{where} ({form}, {mode})")
    if mask.pixels is None:
        return
    if not kind:
        _count(mask.pixels.astype(np.uint8), classes, where, report)
        order = order_of(mask, classes) if mask.palette is not None else "same"
        if order != "same":
            report.add(OTHER_ORDER if order == "other" else PALETTE, where)
        return
    try:
        converted = convert(mask, path, classes)
    except MaskError as e:
        if e.kind == IN_COLOURS:
            report.mixed = report.mixed or where
        elif e.kind != kind:
            report.add(e.kind, f"{where} ({e.reason})")
        return
    if converted.coloured:
        report.coloured += converted.labels.size
        report.unknown += converted.unknown
        report.example = report.example or converted.example
    _count(converted.labels, classes, where, report)


def _count(labels: np.ndarray, classes: SemanticClasses, where: str, report: SemanticReport) -> None:
    """Count the pixels of each label."""
    outside = outside_of(labels, classes)
    if outside:
        report.add(OUT_OF_RANGE, f"{where} ({outside})")
    counts = np.bincount(labels.ravel(), minlength=LABELS)
    report.pixels += counts
    if counts[classes.ignored] == labels.size:
        report.add(UNLABELLED, where)


def _check_target(output: Path, masks: Path, images: Path, overwrite: bool) -> None:
    """Raise UserError if the copy would lie among the masks or images, or replace what must be kept."""
    if os.path.lexists(output) and not os.path.isdir(output):
        raise UserError(f"{output} is not a folder; name a folder for the copy of the masks")
    check_writable(output / "0.png")
    for folder, what in ((masks, "masks"), (images, "images")):
        if lies_in(output, folder) or lies_in(folder, output):
            raise UserError(
                f"{output} is, holds or lies in the folder of {what} {folder}; name another one for the copy"
            )
    if os.path.isdir(output) and os.listdir(output) and not overwrite:
        raise UserError(
            f"{output} is not empty; name another folder for the copy, or replace its files with --overwrite"
        )


def _write_copy(
    found: Pairing, classes: SemanticClasses, masks: Path, output: Path, report: SemanticReport
) -> None:
    """Write the masks that can be converted, as PNGs of labels, and count the others as lost."""
    if report.mixed:
        raise UserError(
            f"{masks}: masks in colours, such as {report.mixed}, need the classes' colours to be converted: "
            f'add "colours": [[R, G, B], ...] with one for each class to {classes.source}'
        )
    lost = report.lost["masks"]
    lost.update({NO_IMAGE: len(found.no_image)} if found.no_image else {})
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    for _, mask in tqdm(found.pairs, desc=f"masks into {output}"):
        if mask in report.misfits:
            lost[OTHER_SIZE] += 1
            continue
        try:
            labels = convert(read_mask(mask), mask, classes).labels
        except MaskError as e:
            lost[e.kind] += 1
            continue
        name = os.path.splitext(os.path.relpath(mask, masks))[0] + ".png"
        with atomic_writer(inside(output, name, masks)) as file:
            Image.fromarray(labels).save(file, "PNG")
    if sum(lost.values()) - len(found.no_image) == len(found.pairs):
        raise UserError(f"{masks}: no mask can be converted: {report.losses()}")
