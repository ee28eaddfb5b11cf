"""Choose the evaluators of a dataset."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)

from ..config import SEGMENTOR
from ..data.check import SEMANTIC
from ..data.image_folder import KIND as CLASSIFICATION
from ..errors import UserError
from .classification import ClassificationEvaluator
from .coco import COCOEvaluator
from .panoptic import PanopticEvaluator
from .semantic import SemanticEvaluator


def build_evaluator(cfg: CfgNode, dataset: str, output_dir: str) -> DatasetEvaluator:
    """Build the evaluators that the metadata of ``dataset`` asks for.

    Args:
        output_dir: folder for predictions and results.

    Raises:
        UserError: the dataset's ``evaluator_type`` is unknown.
    """
    kind = MetadataCatalog.get(dataset).get("evaluator_type")
    if kind == "coco":
        return build_instance_evaluator(cfg, dataset, output_dir)
    if kind == CLASSIFICATION:
        return ClassificationEvaluator(dataset, output_dir)
    if kind == "lvis":
        return LVISEvaluator(dataset, output_dir=output_dir)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset)
    semantic = (dataset, output_dir, cfg.TEST.BOUNDARY_IOU, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    if kind in SEMANTIC or (kind == "coco_panoptic_seg" and cfg.MODEL.META_ARCHITECTURE == SEGMENTOR):
        return SemanticEvaluator(*semantic)
    if kind == "coco_panoptic_seg":
        return DatasetEvaluators(
            [
                build_instance_evaluator(cfg, dataset, output_dir),
                SemanticEvaluator(*semantic),
                PanopticEvaluator(dataset, output_dir),
            ]
        )
    raise UserError(
        f"DATASETS.TEST: {dataset!r} has evaluator_type {kind!r}, for which there is no evaluator; "
        "set it to coco, lvis, pascal_voc, sem_seg, cityscapes_sem_seg, coco_panoptic_seg or classification "
        "in its metadata"
    )


def build_augmented_evaluator(cfg: CfgNode, dataset: str, output_dir: str) -> DatasetEvaluator:
    """Build the evaluator of a model with TEST.AUG; of detectors it predicts only instances."""
    if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR:
        return build_evaluator(cfg, dataset, output_dir)
    return build_instance_evaluator(cfg, dataset, output_dir)


def build_instance_evaluator(cfg: CfgNode, dataset: str, output_dir: str) -> DatasetEvaluator:
    """Build an evaluator of COCO AP of boxes, and of masks and keypoints if the model predicts them.

    The configuration decides, so that a model that finds nothing is still evaluated on all of them.
    """
    tasks = ["bbox"] + ["segm"] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON
    return COCOEvaluator(
        dataset,
        tasks=tuple(tasks),
        output_dir=output_dir,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        average_recall=cfg.TEST.AVERAGE_RECALL,
    )
