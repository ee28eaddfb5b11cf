"""Register and check a user's own COCO-format datasets, and fit a configuration to them."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from ..config import SEGMENTOR
from ..errors import UserError
from .annotations import read_coco, visible_keypoints
from .check import SEMANTIC
from .coco_check import MAX_SIZE, check_coco
from .coco_report import Report
from .findings import NARROW
from .image_folder import KIND, check_image_folder, image_classes
from .panoptic import check_panoptic
from .schedule import fit_schedule
from .semantic_check import check_registered_masks

Pair = Tuple[str, str]

#: Size in bytes above which a registered annotation file is not checked at every start.
_CHECKED = 100e6


class DatasetStats(NamedTuple):
    """The facts about an annotation file that a configuration depends on.

    Attributes:
        classes: names in the order of their ids.
        keypoints: names, empty if there are none.
        images: number of images with objects, which are the ones that training uses.
        sizes: square roots of the boxes' areas as fractions of the image's shorter side.
        objects: number of objects.
        without_mask: how many of them have no segmentation.
        encoded: how many of them have a run-length mask.
        without_keypoints: how many of them have no keypoints.
        visible: how many of them have a visible keypoint.
        keypoint_lists: number of different lists of keypoints that the categories name.
    """

    classes: List[str]
    keypoints: List[str]
    images: int
    sizes: np.ndarray
    objects: int
    without_mask: int
    encoded: int
    without_keypoints: int
    visible: int
    keypoint_lists: int


def register_pairs(
    split: str,
    pairs: Sequence[Pair],
    metadata: Dict[str, Any],
    register: Callable[[str, Dict[str, Any], str, str], None] = register_coco_instances,
) -> List[str]:
    """Register annotations with their image folders. Registering again replaces the entries.

    Args:
        metadata: the classes and keypoints of the files.
        register: registers a name with the metadata, the annotations and the images.

    Returns:
        The datasets' names: ``user_train_1``, ...
    """
    names = []
    for i, (file, images) in enumerate(pairs, 1):
        name = f"user_{split}_{i}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register(name, metadata, str(file), str(images))
        names.append(name)
    return names


def check_pairs(pairs: Sequence[Pair], max_size: float = MAX_SIZE) -> List[str]:
    """Check datasets quickly: the annotations, that the images exist, and the sizes of some.

    Args:
        max_size: see :func:`check_coco` and :func:`max_size_of`.

    Returns:
        Warnings, one per line.

    Raises:
        UserError: for the first file that would make training fail or go wrong.
    """
    return [line for json_file, images in pairs for line in _check_pair(json_file, images, max_size)[1]]


def max_size_of(cfg: CfgNode, train: bool) -> float:
    """Return the largest length in pixels of an image's longer side in training or testing."""
    unlike_its_file = cfg.INPUT.CROP.ENABLED if train else cfg.INPUT.MIN_SIZE_TEST == 0
    return math.inf if unlike_its_file else cfg.INPUT.MAX_SIZE_TRAIN if train else cfg.INPUT.MAX_SIZE_TEST


def _check_pair(json_file: str, images: str, max_size: float) -> Tuple[Report, List[str]]:
    report = check_coco(Path(json_file), Path(images), images="sample", max_size=max_size)
    if report.fatal:
        line = report.line(report.fatal[0])
        if report.counts["image file missing"] == report.images:
            raise UserError(f"{json_file}: {line}; is {images} the folder of its images?")
        if report.fatal[0] == NARROW:  # depends on the configuration, which the tool does not know
            raise UserError(
                f"{json_file}: {line}; remove it, or raise INPUT.MAX_SIZE_TRAIN or INPUT.MAX_SIZE_TEST"
            )
        raise UserError(f"{json_file}: {line}; tools/check_dataset.py --fix writes a repaired copy")
    return report, [f"{json_file}: {line}" for line in (*map(report.line, report.counts), *report.notes)]


def check_registered(cfg: CfgNode, train: Sequence[str], test: Sequence[str]) -> List[str]:
    """Check registered datasets as :func:`check_pairs` does, and that they fit the recipe.

    Of semantic masks some are checked, as :func:`check_registered_masks` says.

    Files above 100 MB are left to ``tools/check_dataset.py``, as a note says: COCO's own would add half a
    minute to every start.

    Args:
        train, test: names of datasets.
    """
    notes = []
    for name in dict.fromkeys([*train, *test]):
        metadata = MetadataCatalog.get(name)
        kind = metadata.get("evaluator_type")
        sizes = [max_size_of(cfg, use) for use, names in ((True, train), (False, test)) if name in names]
        if kind == KIND and metadata.get("image_root"):
            notes += check_image_folder(metadata.image_root, image_classes(name), name in train)
        if kind in SEMANTIC:
            notes += check_registered_masks(cfg, name, min(sizes))
        if name.startswith("shapes_") or kind not in ("coco", "coco_panoptic_seg"):
            continue
        panoptic, file, images = (metadata.get(key) for key in ("panoptic_json", "json_file", "image_root"))
        if panoptic and _is_small(panoptic):
            segments = metadata.get("panoptic_root") if name in test else None  # training reads none of them
            check_panoptic(*(path and PathManager.get_local_path(path) for path in (panoptic, segments)))
        if file and images and not _is_small(file):
            notes.append(
                f"{file} is not checked at each start, as it is larger than {_CHECKED / 1e6:.0f} MB: "
                f"run tools/check_dataset.py {file} {images}"
            )
        elif file and images:
            report, lines = _check_pair(file, images, min(sizes))
            notes += lines
            if cfg.MODEL.KEYPOINT_ON and name in train:
                _check_visible(file, report.objects, report.visible)
            if cfg.MODEL.MASK_ON:
                _check_masks(file, report.objects, report.without_mask)
            if _takes_polygons(cfg) and report.encoded and name in train:
                raise UserError(
                    f"{file}: {report.encoded} of {report.objects} objects have run-length masks, which "
                    "INPUT.MASK_FORMAT polygon cannot train on; set INPUT.MASK_FORMAT bitmask"
                )
    return notes


def _is_small(file: str) -> bool:
    return os.path.getsize(PathManager.get_local_path(file)) < _CHECKED


def _takes_polygons(cfg: CfgNode) -> bool:
    return cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"


def _check_masks(file: str, objects: int, without_mask: int) -> None:
    if without_mask:
        raise UserError(
            f"{file}: {without_mask} of {objects} objects (crowds aside) have no segmentation, which "
            "MODEL.MASK_ON needs; use a configuration without masks (faster_..., cascade_...), or "
            "MODEL.MASK_ON False"
        )


def _check_visible(files: str, objects: int, visible: int) -> None:
    if objects and not visible:
        raise UserError(
            f"{files}: none of {objects} objects has a visible keypoint, which "
            "MODEL.KEYPOINT_ON needs; visible ones have 1 or 2 as their third number"
        )


def read_stats(json_file: str) -> DatasetStats:
    """Collect the classes, sizes and kinds of annotation of a file."""
    content = read_coco(json_file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    short = {i["id"]: min(i["width"], i["height"]) for i in content["images"]}
    sizes, annotated, objects, without_mask, encoded, without_keypoints, visible = [], set(), 0, 0, 0, 0, 0
    for annotation in content["annotations"]:
        if annotation.get("iscrowd", 0):
            continue
        _, _, width, height = annotation["bbox"]
        annotated.add(annotation["image_id"])
        objects += 1
        without_mask += not annotation.get("segmentation")
        encoded += isinstance(annotation.get("segmentation"), dict)
        without_keypoints += not annotation.get("keypoints")
        visible += visible_keypoints(annotation.get("keypoints") or ()) > 0
        if width > 0 and height > 0:
            sizes.append(math.sqrt(width * height) / short[annotation["image_id"]])
    return DatasetStats(
        [category["name"] for category in categories],
        list(categories[0].get("keypoints", [])),
        len(annotated),
        np.array(sizes),
        objects,
        without_mask,
        encoded,
        without_keypoints,
        visible,
        len({tuple(category["keypoints"]) for category in categories if category.get("keypoints")}),
    )


def fit_config(
    cfg: CfgNode, train: Sequence[Pair], val: Sequence[Pair], epochs: Optional[float]
) -> Tuple[List[str], Dict[str, Any]]:
    """Point a configuration at the datasets, and set what depends on them.

    Args:
        cfg: changed in place: the datasets, the numbers of classes and keypoints, and with ``epochs`` the
            schedule, whose steps are scaled in proportion.
        train, val: annotation files and image folders.

    Returns:
        Assumptions of the recipe that these data do not meet, one per line; and the metadata of the
        datasets, for processes that must register them again.

    Raises:
        UserError: the files disagree on their classes, or lack annotations that the recipe needs.
    """
    stats = [read_stats(json_file) for json_file, _ in (*train, *val)]
    files = [json_file for json_file, _ in (*train, *val)]
    for file, other in zip(files, stats):
        if other.classes != stats[0].classes:
            raise UserError(f"{file} has the classes {other.classes}, but {files[0]} has {stats[0].classes}")
    metadata, notes = _set_classes(cfg, stats[0], files[0])
    if train:
        cfg.DATASETS.TRAIN = tuple(register_pairs("train", train, metadata))
    if train or val:
        cfg.DATASETS.TEST = tuple(register_pairs("val", val, metadata))
    if train and not any(f.images for f in stats[: len(train)]):
        raise UserError(f"{', '.join(files[: len(train)])}: no image has an object")
    if cfg.MODEL.KEYPOINT_ON and train:
        trained = stats[: len(train)]
        _check_visible(
            ", ".join(files[: len(train)]), sum(f.objects for f in trained), sum(f.visible for f in trained)
        )
    for file, f in zip(files, stats):
        if cfg.MODEL.MASK_ON:
            _check_masks(file, f.objects, f.without_mask)
        if cfg.MODEL.KEYPOINT_ON and (f.keypoint_lists > 1 or f.keypoints != stats[0].keypoints):
            raise UserError(
                f"{file}: its categories' keypoints differ among themselves or from those of {files[0]}, but "
                "MODEL.KEYPOINT_ON has one list for all; name the same ones everywhere"
            )
        if cfg.MODEL.KEYPOINT_ON and f.without_keypoints:
            raise UserError(
                f"{file}: {f.without_keypoints} of {f.objects} objects have no keypoints, which "
                "MODEL.KEYPOINT_ON needs; tools/check_dataset.py --fix writes a copy with hidden ones"
            )
    if _takes_polygons(cfg) and any(f.encoded for f in stats[: len(train)]):
        cfg.INPUT.MASK_FORMAT = "bitmask"
        notes.append("INPUT.MASK_FORMAT bitmask instead of polygon, since some masks are run lengths")
    notes += [
        f"{file}: no image has an object, so AP will be undefined"
        for file, f in zip(files[len(train) :], stats[len(train) :])
        if not f.objects
    ]
    return notes + (_fit_training(cfg, stats[: len(train)], epochs) if train else []), metadata


def _set_classes(cfg: CfgNode, stats: DatasetStats, file: str) -> Tuple[Dict[str, Any], List[str]]:
    """Set the numbers of classes and keypoints. Returns the metadata of both, and notes."""
    if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR:
        raise UserError(
            f"MODEL.META_ARCHITECTURE {SEGMENTOR} learns masks of labels, not the objects in {file}; give "
            "--train-masks, or use a recipe of a detector"
        )
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        raise UserError(
            "MODEL.META_ARCHITECTURE PanopticFPN needs semantic annotations, which a file of instances "
            "lacks; use a cascade_mask_... configuration"
        )
    count = len(stats.classes)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = count
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = count + 1  # background
    metadata: Dict[str, Any] = {"thing_classes": stats.classes}
    if not cfg.MODEL.KEYPOINT_ON:
        return metadata, []
    if not stats.keypoints:
        raise UserError(f"MODEL.KEYPOINT_ON: the first category in {file} names no keypoints")
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = len(stats.keypoints)
    if len(stats.keypoints) != 17 and not cfg.TEST.KEYPOINT_OKS_SIGMAS:
        cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05] * len(stats.keypoints)
    pairs, alone = pair_keypoints(stats.keypoints)
    metadata.update(keypoint_names=stats.keypoints, keypoint_flip_map=pairs)
    if pairs and not alone:
        return metadata, []
    what = f"{', '.join(alone[:5])} have no counterpart" if alone else "none form a left and right pair"
    return metadata, [
        f"{file}: of the keypoints, {what}, so they are not swapped when an image is flipped; name pairs "
        "left_... and right_..., or set INPUT.RANDOM_FLIP none"
    ]


_SIDES = (
    re.compile(r"left|right", re.I),
    re.compile(r"(?<![a-z])[lr](?![a-z])", re.I),  # l_eye, eye.L, R1
    re.compile(r"(?<![A-Za-z])(?:[LR](?=[A-Z][a-z])|[lr](?=[A-Z]))|(?<=[a-z])[LR](?![a-z])"),  # lEye, eyeL
    re.compile(r"^[lr]", re.I),  # leye, which counts only if there is a reye
)


def pair_keypoints(names: Sequence[str]) -> Tuple[List[Pair], List[str]]:
    """Find by their names the keypoints that swap when an image is flipped.

    ``left`` and ``right`` may be anywhere in a name; ``l`` and ``r`` must be a word, set apart by a capital,
    or the first letter. Case does not matter.

    Returns:
        Pairs of left and right; and names that have a side but no counterpart.
    """
    pairs, alone, known = [], [], {name.casefold(): name for name in names}
    for name in names:
        sides = [(match[0], pattern) for pattern in _SIDES if (match := pattern.search(name))]
        mirrored = [(side, known.get(pattern.sub(_other_side, name).casefold())) for side, pattern in sides]
        found = [(side, other) for side, other in mirrored if other]
        if found and found[0][0][0] in "lL":
            pairs.append((name, found[0][1]))
        elif not found and any(pattern is not _SIDES[-1] for _, pattern in sides):
            alone.append(name)
    return pairs, alone


def _other_side(match: re.Match[str]) -> str:
    return {"left": "right", "right": "left", "l": "r", "r": "l"}[match[0].casefold()]


def _fit_training(cfg: CfgNode, stats: Sequence[DatasetStats], epochs: Optional[float]) -> List[str]:
    solver, notes = cfg.SOLVER, fit_schedule(cfg, sum(f.images for f in stats), epochs)
    if solver.OPTIMIZER == "SGD":
        rule = 0.02 * solver.IMS_PER_BATCH / 16
        if solver.BASE_LR > 1.5 * rule:
            notes.append(
                f"SOLVER.BASE_LR {solver.BASE_LR:g} is high for SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}; "
                f"the linear rule gives {rule:g}"
            )
    sizes = np.concatenate([f.sizes for f in stats]) * np.mean(cfg.INPUT.MIN_SIZE_TRAIN)
    anchors = [size for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES for size in level]
    outside = np.mean((sizes < min(anchors) / 2) | (sizes > max(anchors) * 2))
    if outside > 0.05:
        notes.append(
            f"{outside:.0%} of the objects lie outside half the smallest to twice the largest anchor, "
            f"{min(anchors):g} to {max(anchors):g} pixels (their median is {np.median(sizes):.0f}): see "
            "INPUT.MIN_SIZE_TRAIN and MODEL.ANCHOR_GENERATOR.SIZES"
        )
    return notes
