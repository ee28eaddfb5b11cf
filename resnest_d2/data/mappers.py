"""Mappers from a record to the input of a model, chosen by meta-architecture."""

from __future__ import annotations

from typing import Any, Callable, Dict, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from torch import Tensor

from ..config import CLASSIFIER, SEGMENTOR
from .augmentations import scale_and_crop
from .classification import as_tensor, build_classification_mapper
from .semantic_masks import check_range, check_size, read_labels

Mapper = Callable[[Dict[str, Any]], Dict[str, Any]]


def build_mapper(cfg: CfgNode, train: bool) -> Mapper:
    """Build the mapper of a meta-architecture; detectron2's DatasetMapper for detectors."""
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER:
        return build_classification_mapper(cfg, train)
    if cfg.MODEL.META_ARCHITECTURE != SEGMENTOR:
        return DatasetMapper(cfg, train)
    if train and cfg.INPUT.SCALE_CROP.LONG_SIZE:
        augmentations = scale_and_crop(cfg)
    else:
        augmentations = detection_utils.build_augmentation(cfg, train)
        if train and cfg.INPUT.CROP.ENABLED:
            most, ignored = cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
            crop = (cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE, most, ignored)
            augmentations.insert(0, T.RandomCrop_CategoryAreaConstraint(*crop))
    head = cfg.MODEL.SEM_SEG_HEAD
    return SemanticMapper(augmentations, cfg.INPUT.FORMAT, train, head.NUM_CLASSES, head.IGNORE_VALUE)


def build_test_transform(cfg: CfgNode) -> Callable[[np.ndarray], Tensor]:
    """Build what the mapper of a test does with an image that it has read.

    Returns:
        A function from the image, (H, W, C) in INPUT.FORMAT, to the model's ``image``, (C, h, w).
    """
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER:
        return build_classification_mapper(cfg, train=False).transform
    augment = T.AugmentationList(detection_utils.build_augmentation(cfg, is_train=False))

    def transform(pixels: np.ndarray) -> Tensor:
        inputs = T.AugInput(pixels)
        augment(inputs)
        return as_tensor(inputs.image)

    return transform


class SemanticMapper:
    """Read an image and in training its label map.

    detectron2's mapper takes the brightness of a palette's colours for labels, and reads label maps in
    testing, too, where nothing needs them.

    Args:
        augmentations: detectron2's.
        image_format: of the image, for :func:`detectron2.data.detection_utils.read_image`.
        train: also read labels.
        classes: number of classes.
        ignored: label of pixels that do not count.
    """

    def __init__(
        self,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        train: bool,
        classes: int = 256,
        ignored: int = 255,
    ) -> None:
        self._augment = T.AugmentationList(augmentations)
        self._image_format, self._train = image_format, train
        self._classes, self._ignored = classes, ignored

    def __call__(self, record: Dict[str, Any]) -> Dict[str, Any]:
        """Return the record with ``image``, (C, H, W) uint8, and in training ``sem_seg``, (H, W) int64.

        Raises:
            UserError: the label map cannot be read, has another size, or a label that no class has.
        """
        record = dict(record)
        image = detection_utils.read_image(record["file_name"], self._image_format)
        detection_utils.check_image_size(record, image)
        labels = None
        if self._train:
            file = record.pop("sem_seg_file_name")
            labels = read_labels(file)
            check_size(file, labels.shape, record["file_name"], image.shape[:2])
            check_range(file, labels, self._classes, self._ignored)
        inputs = T.AugInput(image, sem_seg=labels)
        self._augment(inputs)
        record["image"] = as_tensor(inputs.image)
        if self._train:
            record["sem_seg"] = torch.from_numpy(inputs.sem_seg.astype(np.int64))
        return record
