"""Choose the evaluators of a dataset."""

from __future__ import annotations

from typing import Any, Dict, Sequence

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

from ..errors import UserError, one_line
from .coco import COCOEvaluator
from .panoptic import PanopticEvaluator


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
    if kind == "lvis":
        return LVISEvaluator(dataset, output_dir=output_dir)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset)
    if kind == "sem_seg":
        return SemanticEvaluator(dataset, output_dir)
    if kind == "coco_panoptic_seg":
        return DatasetEvaluators(
            [
                build_instance_evaluator(cfg, dataset, output_dir),
                SemanticEvaluator(dataset, output_dir),
                PanopticEvaluator(dataset, output_dir),
            ]
        )
    raise UserError(
        f"DATASETS.TEST: {dataset!r} has evaluator_type {kind!r}, for which there is no evaluator; "
        "set it to coco, lvis, pascal_voc, sem_seg or coco_panoptic_seg in its metadata"
    )


class SemanticEvaluator(SemSegEvaluator):
    """detectron2's evaluator, but reading label maps in a way that also works with numpy 2."""

    def __init__(self, dataset: str, output_dir: str) -> None:
        super().__init__(dataset, output_dir=output_dir, sem_seg_loading_fn=_read_labels)

    def process(self, inputs: Sequence[Dict[str, Any]], outputs: Sequence[Dict[str, Any]]) -> None:
        """Count the pixels of a batch.

        Raises:
            UserError: a label map cannot be read, has another size, or has invalid labels.
        """
        for record, output in zip(inputs, outputs):
            try:
                super().process([record], [output])
            except UserError:
                raise
            except ValueError as e:  # from numpy, for mismatching arrays
                file = self.input_file_to_gt_file[record["file_name"]]
                raise UserError(
                    f"{file} is not a label map of {record['file_name']} ({one_line(e, 100)})"
                ) from None


def _read_labels(path: str, dtype: type) -> np.ndarray:
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            return np.array(image, dtype=dtype)
    except Exception as e:  # a broken file makes Pillow raise almost anything
        raise UserError(f"{path} is not a label map or is damaged ({one_line(e, 100)})") from None


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
