"""Real COCO images as a detector takes them."""

from __future__ import annotations

from pathlib import Path
from typing import List

from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json


def coco_batches(root: Path, num: int, size: int, short_side: int = 128) -> List[list]:
    """``num`` batches of ``size`` training images with objects, the same at each call.

    Args:
        root: as DETECTRON2_DATASETS.
        short_side: of the resized images, in pixels.
    """
    coco = root / "coco"
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[T.ResizeShortestEdge(short_side, 2 * short_side)],
        image_format="BGR",
        use_instance_mask=True,
    )
    records = load_coco_json(
        str(coco / "annotations/instances_train2017.json"), str(coco / "train2017"), "parity_coco"
    )
    usable = [r for r in records if any(not a["iscrowd"] for a in r["annotations"])]
    return [[mapper(usable[(i * size + j) % len(usable)]) for j in range(size)] for i in range(num)]
