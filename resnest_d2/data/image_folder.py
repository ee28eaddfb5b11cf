"""Images in a folder for each class: a user's own, and ImageNet's."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ..errors import UserError
from .annotations import spread
from .image_files import EXTENSIONS, files_below
from .shapes import datasets_root

#: Value of evaluator_type in a dataset's metadata.
KIND = "classification"
_SAMPLE = 200  # images whose headers are read at each start


def class_names(folder: str) -> List[str]:
    """Return the classes of a dataset: the names of the folders in its folder, in the order of the names.

    Raises:
        UserError: the folder cannot be read, or holds no folders.
    """
    try:
        names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError as e:
        raise UserError(f"cannot read {folder} ({e.strerror}); name a folder of images by class") from None
    if not names:
        raise UserError(
            f"{folder} holds no folders; it needs one for each class, with the images in it "
            "(tools/prepare_imagenet.py sorts those of ImageNet)"
        )
    return names


def load_image_folder(folder: str, classes: Sequence[str]) -> List[Dict[str, Any]]:
    """Return detectron2's records of a folder: ``file_name`` and ``label``, the index of the class.

    Args:
        classes: names of the folders in it, some of which may be missing.

    Raises:
        UserError: a folder cannot be read or is of another class, or there are no images.
    """
    other = sorted({*class_names(folder)} - {*classes})
    if other:
        raise UserError(f"{folder} has a folder {other[0]!r}, which is not one of the {len(classes)} classes")
    # Links from one class to another or to all of them would give their images another label.
    places = [os.path.realpath(os.path.join(folder, name)) for name in classes]
    others = {os.path.realpath(folder), *places}
    records = [
        {"file_name": path, "label": label}
        for label, (name, place) in enumerate(zip(classes, places))
        for path in _images(os.path.join(folder, name), others - {place})
    ]
    if not records:
        raise UserError(f"there are no images in {folder}; they are files named {', '.join(EXTENSIONS)}")
    return records


def _images(folder: str, others: Set[str]) -> List[str]:
    files = files_below(folder, others) if os.path.isdir(folder) else ()
    return [path for path in files if os.path.splitext(path)[1].lower() in EXTENSIONS]


def register_image_folder(name: str, metadata: Dict[str, Any], classes: str, images: str) -> None:
    """Register a folder of images by class, as register_coco_instances does a file.

    Args:
        metadata: ``image_classes``, the names of the classes in the order of their labels.
        classes: unused; the same as ``images``.
    """
    DatasetCatalog.register(name, partial(load_image_folder, images, metadata["image_classes"]))
    MetadataCatalog.get(name).set(evaluator_type=KIND, image_root=images, **metadata)


def register_imagenet(root: Optional[Path] = None) -> None:
    """Register ``imagenet_1k_train`` and ``imagenet_1k_val``: images in a folder for each class.

    Args:
        root: folder of the datasets; None for :func:`datasets_root`.
    """
    for split in ("train", "val"):
        folder = str((root or datasets_root()) / "imagenet" / split)
        DatasetCatalog.register(f"imagenet_1k_{split}", partial(_load_imagenet, folder))
        MetadataCatalog.get(f"imagenet_1k_{split}").set(evaluator_type=KIND, image_root=folder)


def _load_imagenet(folder: str) -> List[Dict[str, Any]]:
    return load_image_folder(folder, class_names(folder))


def image_classes(name: str) -> List[str]:
    """Return the names of a registered dataset's classes: those in its metadata, or else of its folders."""
    metadata = MetadataCatalog.get(name)
    classes, root = metadata.get("image_classes"), metadata.get("image_root")
    if not classes and not root:
        raise UserError(f"{name} has neither image_classes nor image_root in its metadata; set the former")
    return list(classes or class_names(root))


def check_image_folder(folder: str, classes: Sequence[str], train: bool) -> List[str]:
    """Check images by class quickly: that all classes have some, and that some can be opened.

    Args:
        train: whether the images are for training.

    Returns:
        Warnings, one per line.

    Raises:
        UserError: training or evaluation would fail.
    """
    records = load_image_folder(folder, classes)
    used = {record["label"] for record in records}
    empty = [name for label, name in enumerate(classes) if label not in used]
    unreadable = []
    for index in spread(len(records), _SAMPLE):
        file = records[index]["file_name"]
        try:
            if not os.path.isfile(file):  # opening a FIFO would block forever
                raise OSError
            with Image.open(file) as image:
                image.verify()
        except Exception:  # a broken file makes Pillow raise almost anything
            unreadable.append(file)
    if unreadable and not train:
        raise UserError(
            f"{len(unreadable)} of {min(len(records), _SAMPLE)} images that were looked at cannot be read, "
            f"such as {unreadable[0]}; repair or remove them"
        )
    notes = []
    if empty:
        notes.append(f"{folder}: {len(empty)} of {len(classes)} classes have no images, such as {empty[0]}")
    if unreadable:
        notes.append(f"{folder}: {len(unreadable)} images cannot be read, such as {unreadable[0]}")
    return notes
