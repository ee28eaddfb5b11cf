"""A user's own COCO-format datasets: registered, checked, and a configuration fitted to them."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from .annotations import read_coco, visible_keypoints
from .coco_check import MAX_SIZE, check_coco
from .coco_report import NARROW, Report
from .panoptic import check_panoptic

Pair = Tuple[str, str]

#: Bytes of a registered annotation file above which it is not checked at every start.
_CHECKED = 100e6


class DatasetStats(NamedTuple):
    """What a configuration must know of an annotation file.

    Attributes:
        classes: names in the order of their ids.
        keypoints: names, empty without.
        images: how many hold objects, which are those that training takes.
        sizes: square roots of the boxes' areas as fractions of the image's shorter side.
        objects: how many there are.
        without_mask: how many of them have no segmentation.
        encoded: how many of them have a mask as run lengths.
        without_keypoints: how many of them have none.
        visible: how many of them have a visible keypoint.
        keypoint_lists: how many different lists of keypoints the categories have.
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


def register_pairs(split: str, pairs: Sequence[Pair], metadata: Dict[str, Any]) -> List[str]:
    """Register annotation files with their image folders. Registering again changes nothing.

    Args:
        metadata: what is known of the files: classes and keypoints.

    Returns:
        The datasets' names: ``user_train_1``, ...
    """
    names = []
    for i, (json_file, images) in enumerate(pairs, 1):
        name = f"user_{split}_{i}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, metadata, str(json_file), str(images))
        names.append(name)
    return names


def check_pairs(pairs: Sequence[Pair], max_size: float = MAX_SIZE) -> List[str]:
    """The dataset check in brief: annotations, whether the images exist, and the sizes of some.

    Args:
        max_size: of :func:`check_coco`, or see :func:`max_size_of`.

    Returns:
        Warnings, one a line.

    Raises:
        UserError: at the first file with which training would stop or go wrong.
    """
    return [line for json_file, images in pairs for line in _check_pair(json_file, images, max_size)[1]]


def max_size_of(cfg: CfgNode, train: bool) -> float:
    """Pixels that the longer side of an image keeps at most in training or in a test."""
    unlike_its_file = cfg.INPUT.CROP.ENABLED if train else cfg.INPUT.MIN_SIZE_TEST == 0
    return math.inf if unlike_its_file else cfg.INPUT.MAX_SIZE_TRAIN if train else cfg.INPUT.MAX_SIZE_TEST


def _check_pair(json_file: str, images: str, max_size: float) -> Tuple[Report, List[str]]:
    report = check_coco(Path(json_file), Path(images), images="sample", max_size=max_size)
    if report.fatal:
        line = report.line(report.fatal[0])
        if report.counts["image file missing"] == report.images:
            raise UserError(f"{json_file}: {line}; is {images} the folder of its images?")
        if report.fatal[0] == NARROW:  # by the configuration, which the tool does not know
            raise UserError(
                f"{json_file}: {line}; take it out, or raise INPUT.MAX_SIZE_TRAIN or INPUT.MAX_SIZE_TEST"
            )
        raise UserError(f"{json_file}: {line}; tools/check_dataset.py --fix writes a mended copy")
    return report, [f"{json_file}: {line}" for line in (*map(report.line, report.counts), *report.notes)]


def check_registered(cfg: CfgNode, train: Sequence[str], test: Sequence[str]) -> List[str]:
    """:func:`check_pairs` for registered datasets in COCO's format, and whether they fit the recipe.

    Files above 100 MB are left to ``tools/check_dataset.py``, which a note says: COCO's own would add half a
    minute to every start.

    Args:
        train, test: their names.
    """
    notes = []
    for name in dict.fromkeys([*train, *test]):
        metadata = MetadataCatalog.get(name)
        if name.startswith("shapes_") or metadata.get("evaluator_type") not in ("coco", "coco_panoptic_seg"):
            continue
        panoptic, file, images = (metadata.get(key) for key in ("panoptic_json", "json_file", "image_root"))
        if panoptic and _is_small(panoptic):
            segments = metadata.get("panoptic_root") if name in test else None  # of which training reads none
            check_panoptic(*(path and PathManager.get_local_path(path) for path in (panoptic, segments)))
        if file and images and not _is_small(file):
            notes.append(
                f"{file} is not checked at each start, as it has more than {_CHECKED / 1e6:.0f} MB: "
                f"tools/check_dataset.py {file} {images} does it"
            )
        elif file and images:
            sizes = [max_size_of(cfg, use) for use, names in ((True, train), (False, test)) if name in names]
            report, lines = _check_pair(file, images, min(sizes))
            notes += lines
            if cfg.MODEL.KEYPOINT_ON and name in train:
                _check_visible(file, report.objects, report.visible)
            if cfg.MODEL.MASK_ON:
                _check_masks(file, report.objects, report.without_mask)
            if _takes_polygons(cfg) and report.encoded and name in train:
                raise UserError(
                    f"{file}: {report.encoded} of {report.objects} objects have masks as run lengths, which "
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
            "MODEL.MASK_ON needs; take a configuration without masks (faster_..., cascade_...), or "
            "MODEL.MASK_ON False"
        )


def _check_visible(files: str, objects: int, visible: int) -> None:
    if objects and not visible:
        raise UserError(
            f"{files}: none of {objects} objects has a visible keypoint, from which "
            "MODEL.KEYPOINT_ON learns; a visible one has 1 or 2 as its third number"
        )


def read_stats(json_file: str) -> DatasetStats:
    """Classes, sizes and kinds of annotation in a file."""
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
        cfg: changed in place: datasets, numbers of classes and keypoints, and with ``epochs`` the
            schedule, whose steps keep their places in proportion.
        train, val: annotation files and image folders.

    Returns:
        What the recipe assumes and these data do not meet, one a line; and the metadata with which the
        datasets are registered, for processes that must do it again.

    Raises:
        UserError: the files disagree on their classes, or lack what the recipe learns from.
    """
    stats = [read_stats(json_file) for json_file, _ in (*train, *val)]
    files = [json_file for json_file, _ in (*train, *val)]
    for file, other in zip(files, stats):
        if other.classes != stats[0].classes:
            raise UserError(f"{file} has the classes {other.classes}, {files[0]} has {stats[0].classes}")
    metadata, notes = _set_classes(cfg, stats[0], files[0])
    if train:
        cfg.DATASETS.TRAIN = tuple(register_pairs("train", train, metadata))
    if train or val:
        cfg.DATASETS.TEST = tuple(register_pairs("val", val, metadata))
    if train and not any(f.images for f in stats[: len(train)]):
        raise UserError(f"{', '.join(files[: len(train)])}: no image holds an object")
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
                f"{file}: its categories name different keypoints, or others than those of {files[0]}, and "
                "MODEL.KEYPOINT_ON has one list for all; give all the same"
            )
        if cfg.MODEL.KEYPOINT_ON and f.without_keypoints:
            raise UserError(
                f"{file}: {f.without_keypoints} of {f.objects} objects have no keypoints, which "
                "MODEL.KEYPOINT_ON needs; tools/check_dataset.py --fix writes a copy with hidden ones"
            )
    if _takes_polygons(cfg) and any(f.encoded for f in stats[: len(train)]):
        cfg.INPUT.MASK_FORMAT = "bitmask"
        notes.append("INPUT.MASK_FORMAT bitmask instead of polygon, as some masks are run lengths")
    notes += [
        f"{file}: no image holds an object, so there is nothing to find and AP will be undefined"
        for file, f in zip(files[len(train) :], stats[len(train) :])
        if not f.objects
    ]
    return notes + (_fit_schedule(cfg, stats[: len(train)], epochs) if train else []), metadata


def _set_classes(cfg: CfgNode, stats: DatasetStats, file: str) -> Tuple[Dict[str, Any], List[str]]:
    """Sets numbers of classes and keypoints. Returns the metadata of both, and notes."""
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        raise UserError(
            "MODEL.META_ARCHITECTURE PanopticFPN needs semantic annotations, which a file of instances "
            "lacks; take a cascade_mask_... configuration"
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
    what = f"{', '.join(alone[:5])} have no other side" if alone else "none are left and right of a pair"
    return metadata, [
        f"{file}: of the keypoints, {what}, so they keep their names when an image is flipped; call pairs "
        "left_... and right_..., or set INPUT.RANDOM_FLIP none"
    ]


_SIDES = (
    re.compile(r"left|right", re.I),
    re.compile(r"(?<![a-z])[lr](?![a-z])", re.I),  # l_eye, eye.L, R1
    re.compile(r"(?<![A-Za-z])(?:[LR](?=[A-Z][a-z])|[lr](?=[A-Z]))|(?<=[a-z])[LR](?![a-z])"),  # lEye, eyeL
    re.compile(r"^[lr]", re.I),  # leye, which has no side unless there is a reye
)


def pair_keypoints(names: Sequence[str]) -> Tuple[List[Pair], List[str]]:
    """Which keypoints change places when an image is flipped, by their names.

    ``left`` and ``right`` may stand anywhere, ``l`` and ``r`` where they are a word, set apart by a capital,
    or the first letter; case does not matter.

    Returns:
        Pairs of left and right; and names that have a side, but not their other side.
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


def _fit_schedule(cfg: CfgNode, stats: Sequence[DatasetStats], epochs: Optional[float]) -> List[str]:
    solver, images = cfg.SOLVER, sum(f.images for f in stats)
    notes = []
    per_epoch = images / solver.IMS_PER_BATCH
    if epochs is None:
        notes.append(
            f"the recipe's {solver.MAX_ITER} iterations are {solver.MAX_ITER / per_epoch:.0f} epochs of "
            f"your {images} images; --epochs N fits the schedule"
        )
    else:
        old, new = solver.MAX_ITER, max(1, math.ceil(epochs * per_epoch))
        steps = (round(step * new / old) for step in solver.STEPS)
        solver.STEPS = tuple(step for step in steps if 0 < step < new)
        solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, new // 10)
        solver.MAX_ITER = new
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


def pairs_of(values: Dict[str, Any], split: str) -> List[Pair]:
    """The ``--train-json`` and ``--train-images`` (or val) of a command line, paired.

    Raises:
        UserError: not as many of one as of the other.
    """
    jsons, images = values.get(f"{split}_json") or [], values.get(f"{split}_images") or []
    if len(jsons) != len(images):
        raise UserError(
            f"--{split}-json and --{split}-images must come in pairs, got {len(jsons)} and {len(images)}"
        )
    return list(zip(jsons, images))
