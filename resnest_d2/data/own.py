"""A user's own datasets as the command line names them: COCO files or semantic masks, each with images, or
images in a folder for each class."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from detectron2.config import CfgNode
from detectron2.data.datasets import register_coco_instances

from ..config import CLASSIFIER, SEGMENTOR
from ..errors import UserError
from ..files import check_readable, lies_in
from .custom import Pair, check_pairs, fit_config, max_size_of, register_pairs
from .image_folder import check_image_folder, class_names, load_image_folder, register_image_folder
from .schedule import fit_schedule
from .semantic import pair_files, register_semantic
from .semantic_check import check_masks
from .semantic_classes import read_classes

_SPLITS = ("train", "val")
_KINDS = ("json", "masks")


class OwnData(ABC):
    """Own datasets of one kind.

    Args:
        train, val: annotations and their folders of images.

    Attributes:
        kind: ``json``, ``masks`` or ``images``, as in the options ``--train-json`` and others.
    """

    kind: str
    #: Registers a name with metadata, annotations and images.
    _register: Callable[[str, Dict[str, Any], str, str], None]

    def __init__(self, train: Sequence[Pair], val: Sequence[Pair]) -> None:
        self.train, self.val = train, val

    @abstractmethod
    def check_files(self) -> None:
        """Raise UserError if a file that the command line names cannot be read."""

    @abstractmethod
    def check(self, cfg: CfgNode) -> List[str]:
        """Check the data quickly, and return warnings, one per line.

        Raises:
            UserError: training would fail or go wrong.
        """

    @abstractmethod
    def fit(self, cfg: CfgNode, epochs: Optional[float]) -> Tuple[List[str], Dict[str, Any]]:
        """Register the datasets, point ``cfg`` at them, and set what depends on them, in place.

        Args:
            epochs: number of epochs to fit the schedule to; None keeps the recipe's.

        Returns:
            Notes for the user, one per line; and the metadata for :meth:`register`.

        Raises:
            UserError: the recipe cannot learn from such data.
        """

    def _check_output(self, cfg: CfgNode) -> None:
        """Raise UserError if OUTPUT_DIR lies in one of the folders, whose files are data."""
        for folder in (folder for pair in (*self.train, *self.val) for folder in pair):
            if lies_in(cfg.OUTPUT_DIR, folder):
                raise UserError(
                    f"OUTPUT_DIR {cfg.OUTPUT_DIR} is in {folder}, among whose files its own would be; name "
                    "another"
                )

    def _use(self, cfg: CfgNode, metadata: Dict[str, Any], images: int, epochs: Optional[float]) -> List[str]:
        """Register the datasets, point ``cfg`` at them, and fit the schedule to the number of images."""
        train, val = map(tuple, self.register(metadata))
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train or cfg.DATASETS.TRAIN, val
        return fit_schedule(cfg, images, epochs) if train else []

    def register(self, metadata: Dict[str, Any]) -> Tuple[List[str], List[str]]:
        """Register the datasets, also again, and return the names of the training and validation sets."""
        train, val = (
            register_pairs(split, pairs, metadata, type(self)._register)
            for split, pairs in zip(_SPLITS, (self.train, self.val))
        )
        return train, val


class CocoData(OwnData):
    """COCO files."""

    kind, _register = "json", register_coco_instances

    def check_files(self) -> None:
        for split, pairs in zip(_SPLITS, (self.train, self.val)):
            for json_file, _ in pairs:
                check_readable(json_file, f"--{split}-json")

    def check(self, cfg: CfgNode) -> List[str]:
        return check_pairs(self.train, max_size_of(cfg, True)) + check_pairs(
            self.val, max_size_of(cfg, False)
        )

    def fit(self, cfg: CfgNode, epochs: Optional[float]) -> Tuple[List[str], Dict[str, Any]]:
        return fit_config(cfg, self.train, self.val, epochs)


class SemanticData(OwnData):
    """Folders of semantic masks.

    Args:
        classes: file for :func:`read_classes`.
    """

    kind, _register = "masks", register_semantic

    def __init__(self, train: Sequence[Pair], val: Sequence[Pair], classes: Optional[str]) -> None:
        super().__init__(train, val)
        self._classes = classes

    def check_files(self) -> None:
        read_classes(self._classes)

    def check(self, cfg: CfgNode) -> List[str]:
        self._check_output(cfg)
        return [
            line
            for pairs, is_train in ((self.train, True), (self.val, False))
            for masks, images in pairs
            for line in check_masks(masks, images, self._classes, max_size_of(cfg, is_train))
        ]

    def fit(self, cfg: CfgNode, epochs: Optional[float]) -> Tuple[List[str], Dict[str, Any]]:
        if cfg.MODEL.META_ARCHITECTURE != SEGMENTOR:
            raise UserError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} cannot learn from masks; use "
                "a recipe in configs/segmentation"
            )
        classes = read_classes(self._classes)
        notes, head = [], cfg.MODEL.SEM_SEG_HEAD
        if head.IGNORE_VALUE != classes.ignored:
            old = head.IGNORE_VALUE
            notes.append(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE {classes.ignored} instead of {old}, as --classes says"
            )
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(classes.names)
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = classes.ignored
        count = sum(len(pair_files(masks, images).pairs) for masks, images in self.train)
        return notes + self._use(cfg, classes.metadata, count, epochs), classes.metadata


class ClassFolders(OwnData):
    """Images in a folder for each class."""

    kind, _register = "images", register_image_folder

    def check_files(self) -> None:
        pass  # folders alone say less of a mistake than that the recipe needs annotations

    def check(self, cfg: CfgNode) -> List[str]:
        if cfg.MODEL.META_ARCHITECTURE != CLASSIFIER:
            split = "train" if self.train else "val"
            raise UserError(
                f"--{split}-images needs the annotations: --{split}-json or --{split}-masks; images in a "
                "folder for each class are for the recipes in configs/classification"
            )
        for folder, _ in (*self.train, *self.val):
            if not os.path.isdir(folder):
                raise UserError(f"there is no folder of images {os.path.abspath(folder)}")
        self._check_output(cfg)
        classes = self._classes()
        return [
            line
            for pairs, train in ((self.train, True), (self.val, False))
            for folder, _ in pairs
            for line in check_image_folder(folder, classes, train)
        ]

    def fit(self, cfg: CfgNode, epochs: Optional[float]) -> Tuple[List[str], Dict[str, Any]]:
        metadata = {"image_classes": self._classes()}
        cfg.MODEL.CLASSIFIER.NUM_CLASSES = len(metadata["image_classes"])
        count = sum(len(load_image_folder(folder, metadata["image_classes"])) for folder, _ in self.train)
        return self._use(cfg, metadata, count, epochs), metadata

    def _classes(self) -> List[str]:
        """Return the names of the classes: those of the first folder, which the others of its split share."""
        return class_names((self.train or self.val)[0][0])


def own_data(values: Mapping[str, Any]) -> OwnData:
    """Return the datasets that a command line names, which may be none.

    Args:
        values: of the command line's options.

    Raises:
        UserError: annotations lack their images or their classes, or there are annotations of both kinds.
    """
    given = {kind: [f"--{s}-{kind}" for s in _SPLITS if values.get(f"{s}_{kind}")] for kind in _KINDS}
    if all(given.values()):
        raise UserError(
            f"{given['json'][0]} names objects and {given['masks'][0]} labels, of which a model learns one; "
            "leave the others out"
        )
    if given["masks"]:
        train, val = (pairs_of(values, split, "masks") for split in _SPLITS)
        return SemanticData(train, val, values.get("classes"))
    if values.get("classes"):
        raise UserError("--classes names the labels of masks; give --train-masks or --val-masks too")
    if not given["json"]:  # images alone, or nothing
        train, val = ([(folder, folder) for folder in values.get(f"{s}_images") or []] for s in _SPLITS)
        return ClassFolders(train, val) if train or val else CocoData((), ())
    return CocoData(*(pairs_of(values, split, "json") for split in _SPLITS))


def pairs_of(values: Mapping[str, Any], split: str, kind: str = "json") -> List[Pair]:
    """Pair up the ``--train-json`` or ``--train-masks``, and the ``--train-images``, of a command line.

    Args:
        split: ``train`` or ``val``.
        kind: ``json`` or ``masks``.

    Raises:
        UserError: their numbers differ.
    """
    files, images = (values.get(f"{split}_{name}") or [] for name in (kind, "images"))
    if images and not files:
        raise UserError(f"--{split}-images needs the annotations: --{split}-json or --{split}-masks")
    if len(files) != len(images):
        raise UserError(
            f"--{split}-{kind} and --{split}-images must come in pairs, got {len(files)} and {len(images)}"
        )
    return list(zip(files, images))
