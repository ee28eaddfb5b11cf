"""Choice of detectron2's evaluators by dataset."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..errors import UserError
from .coco import COCOEvaluator
from .panoptic import PanopticEvaluator


def build_evaluator(cfg: CfgNode, dataset: str, output_dir: str) -> DatasetEvaluator:
    """The evaluators that the metadata of ``dataset`` asks for.

    Args:
        output_dir: folder for predictions and results.

    Raises:
        UserError: its ``evaluator_type`` is not known here.
    """
    kind = MetadataCatalog.get(dataset).get("evaluator_type")
    if kind == "coco":
        return build_instance_evaluator(cfg, dataset, output_dir)
    if kind == "lvis":
        return LVISEvaluator(dataset, output_dir=output_dir)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset)
    if kind == "sem_seg":
        return _semantic_evaluator(dataset, output_dir)
    if kind == "coco_panoptic_seg":
        return DatasetEvaluators(
            [
                build_instance_evaluator(cfg, dataset, output_dir),
                _semantic_evaluator(dataset, output_dir),
                PanopticEvaluator(dataset, output_dir),
            ]
        )
    raise UserError(
        f"DATASETS.TEST: {dataset!r} has evaluator_type {kind!r}, for which there is no evaluator; "
        "set it to coco, lvis, pascal_voc, sem_seg or coco_panoptic_seg in its metadata"
    )


def _semantic_evaluator(dataset: str, output_dir: str) -> SemSegEvaluator:
    """detectron2's, with a way to read label maps that works with numpy 2, where its own does not."""

    def read(path: str, dtype: type) -> np.ndarray:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            return np.array(image, dtype=dtype)

    return SemSegEvaluator(dataset, output_dir=output_dir, sem_seg_loading_fn=read)


def build_instance_evaluator(cfg: CfgNode, dataset: str, output_dir: str) -> DatasetEvaluator:
    """COCO AP of boxes, and of masks and keypoints where the model predicts them.

    The configuration says which, so that a model that finds nothing is evaluated in all of them.
    """
    tasks = ["bbox"] + ["segm"] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON
    return COCOEvaluator(
        dataset,
        tasks=tuple(tasks),
        output_dir=output_dir,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        average_recall=cfg.TEST.AVERAGE_RECALL,
    )
