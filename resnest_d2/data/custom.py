"""A user's own COCO-format datasets: registered, checked, and a configuration fitted to them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import UserError
from .coco_check import Report, check_coco, read_list

Pair = Tuple[str, str]


class Facts(NamedTuple):
    """What a configuration must know of an annotation file.

    Attributes:
        classes: names in the order of their ids.
        keypoints: names, empty without.
        images: how many hold objects, which are those that training takes.
        sizes: square roots of the boxes' areas as fractions of the image's shorter side.
        objects: how many there are.
        without_mask: how many of them have no segmentation.
    """

    classes: List[str]
    keypoints: List[str]
    images: int
    sizes: np.ndarray
    objects: int
    without_mask: int


def register_pairs(split: str, pairs: Sequence[Pair], metadata: Dict[str, Any]) -> List[str]:
    """Register annotation files with their image folders. Registering again changes nothing.

    Args:
        metadata: beyond what loading the files tells: keypoints.

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


def check_pairs(pairs: Sequence[Pair]) -> List[str]:
    """The dataset check in brief: annotations, and whether the images exist.

    Returns:
        Warnings, one a line.

    Raises:
        UserError: at the first file with which training would stop or go wrong.
    """
    warnings = []
    for json_file, images in pairs:
        if not Path(images).is_dir():
            raise UserError(f"there is no folder of images {Path(images).absolute()}")
        report: Report = check_coco(Path(json_file), Path(images), images="exist")
        for kind, count in report.counts.items():
            line = f"{json_file}: {count} x {kind}: {', '.join(report.examples[kind])}"
            if kind in report.fatal:
                raise UserError(f"{line}; tools/check_dataset.py --fix writes a mended copy")
            warnings.append(line)
    return warnings


def check_registered(names: Iterable[str]) -> List[str]:
    """:func:`check_pairs` for registered datasets in COCO's format.

    Files above 100 MB are left to ``tools/check_dataset.py``: COCO's own would add half a minute to every
    start.
    """
    metadata = [MetadataCatalog.get(name) for name in names]
    pairs = [(m.json_file, m.image_root) for m in metadata if m.get("json_file") and m.get("image_root")]
    return check_pairs([pair for pair in pairs if Path(pair[0]).stat().st_size < 100e6])


def read_facts(json_file: str) -> Facts:
    """Classes, sizes and kinds of annotation in a file, streamed."""
    path = Path(json_file)
    categories = sorted(read_list(path, "categories"), key=lambda category: category["id"])
    short = {i["id"]: min(i["width"], i["height"]) for i in read_list(path, "images")}
    sizes, annotated, objects, without_mask = [], set(), 0, 0
    for annotation in read_list(path, "annotations"):
        if annotation.get("iscrowd", 0):
            continue
        _, _, width, height = annotation["bbox"]
        annotated.add(annotation["image_id"])
        objects += 1
        without_mask += not annotation.get("segmentation")
        if width > 0 and height > 0:
            sizes.append(math.sqrt(width * height) / short[annotation["image_id"]])
    return Facts(
        [category["name"] for category in categories],
        list(categories[0].get("keypoints", [])),
        len(annotated),
        np.array(sizes),
        objects,
        without_mask,
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
    facts = [read_facts(json_file) for json_file, _ in (*train, *val)]
    files = [json_file for json_file, _ in (*train, *val)]
    for file, other in zip(files, facts):
        if other.classes != facts[0].classes:
            raise UserError(f"{file} has the classes {other.classes}, {files[0]} has {facts[0].classes}")
    metadata = _set_classes(cfg, facts[0], files[0])
    if train:
        cfg.DATASETS.TRAIN = tuple(register_pairs("train", train, metadata))
    if train or val:
        cfg.DATASETS.TEST = tuple(register_pairs("val", val, metadata))
    if train and not any(f.images for f in facts[: len(train)]):
        raise UserError(f"{', '.join(files[: len(train)])}: no image holds an object")
    for file, f in zip(files, facts):
        if cfg.MODEL.MASK_ON and f.without_mask:
            raise UserError(
                f"{file}: {f.without_mask} of {f.objects} objects have no segmentation, which MODEL.MASK_ON "
                "needs; take a configuration without masks (faster_..., cascade_...), or MODEL.MASK_ON False"
            )
    return (_fit_schedule(cfg, facts[: len(train)], epochs) if train else []), metadata


def _set_classes(cfg: CfgNode, facts: Facts, file: str) -> Dict[str, Any]:
    """Sets numbers of classes and keypoints. Returns the metadata of keypoints."""
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        raise UserError(
            "MODEL.META_ARCHITECTURE PanopticFPN needs semantic annotations, which a file of instances "
            "lacks; take a cascade_mask_... configuration"
        )
    count = len(facts.classes)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = count
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = count + 1  # background
    if not cfg.MODEL.KEYPOINT_ON:
        return {}
    if not facts.keypoints:
        raise UserError(f"MODEL.KEYPOINT_ON: the first category in {file} names no keypoints")
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = len(facts.keypoints)
    if len(facts.keypoints) != 17 and not cfg.TEST.KEYPOINT_OKS_SIGMAS:
        cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05] * len(facts.keypoints)
    pairs = [
        (name, name.replace("left", "right"))
        for name in facts.keypoints
        if "left" in name and name.replace("left", "right") in facts.keypoints
    ]
    return {"keypoint_names": facts.keypoints, "keypoint_flip_map": pairs}


def _fit_schedule(cfg: CfgNode, facts: Sequence[Facts], epochs: Optional[float]) -> List[str]:
    solver, images = cfg.SOLVER, sum(f.images for f in facts)
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
    sizes = np.concatenate([f.sizes for f in facts]) * np.mean(cfg.INPUT.MIN_SIZE_TRAIN)
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
