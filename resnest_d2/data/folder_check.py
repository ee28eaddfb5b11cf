"""Find what is wrong with images in a folder for each class."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Dict, List, Tuple

from tqdm import tqdm

from ..errors import UserError
from .findings import NARROW, OF_IMAGES, Findings, Lost
from .image_files import real_size
from .image_folder import class_names, load_image_folder

EMPTY = "class without images"
NOT_A_FILE = "image that is not a regular file"
SHARED = "image of two classes"
TWICE = "duplicate image"


class FolderReport(Findings):
    """Findings of :func:`check_folder`.

    Attributes:
        images: number of images by class, in the order of the classes.
    """

    kinds = {
        **{kind: fatal for kind, fatal in OF_IMAGES.items() if kind != NARROW},
        NOT_A_FILE: True,
        SHARED: True,
        TWICE: False,
        EMPTY: False,
    }

    def __init__(self, images: Dict[str, int]) -> None:
        super().__init__()
        self.images = images

    def summary(self) -> List[str]:
        counts = self.images.values()
        per_class = f"{min(counts)} to {max(counts)} of each"
        return [f"{sum(counts)} images of {len(counts)} classes, {per_class}"]


def check_folder(folder: Path, how: str = "decode") -> FolderReport:
    """Check all images in a folder for each class.

    Args:
        how: how to read the images: ``header`` or ``decode``.

    Raises:
        UserError: the folder cannot be read, has no folders, or there are no images in them.
    """
    classes = class_names(str(folder))
    records = load_image_folder(str(folder), classes)
    number = Counter(record["label"] for record in records)
    report = FolderReport({name: number[label] for label, name in enumerate(classes)})
    for name, images in report.images.items():
        if not images:
            report.add(EMPTY, name)
    of_size = defaultdict(list)  # only files of one size can be equal
    for record in tqdm(records, desc="images", disable=None):
        path = record["file_name"]
        where = os.path.relpath(path, folder)
        if not os.path.isfile(path):  # a FIFO, which would block when opened, or a dangling link
            report.add(NOT_A_FILE, where)
            continue
        try:
            real_size(path, how, where, report)
        except Lost:
            continue
        of_size[os.path.getsize(path)].append((path, record["label"]))
    for paths in of_size.values():
        if len(paths) > 1:
            _compare(paths, folder, report)
    return report


def _compare(paths: List[Tuple[str, int]], folder: Path, report: FolderReport) -> None:
    """Add to the report which files of one size are equal."""
    first: Dict[bytes, Tuple[str, int]] = {}
    for path, label in paths:
        try:
            digest = hashlib.sha256(Path(path).read_bytes()).digest()
        except OSError as e:
            raise UserError(f"cannot read {path} ({e.strerror})") from None
        other, its_label = first.setdefault(digest, (path, label))
        if other != path:
            both = f"{os.path.relpath(path, folder)} is {os.path.relpath(other, folder)}"
            report.add(TWICE if label == its_label else SHARED, both)
