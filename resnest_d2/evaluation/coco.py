"""COCO evaluation."""

from __future__ import annotations

from typing import Dict, List, Optional

from detectron2 import evaluation
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class COCOEvaluator(evaluation.COCOEvaluator):
    """detectron2's evaluator, which also evaluates a model that found nothing.

    Its AP is 0 wherever there are objects to find. detectron2 reports NaN, because pycocotools cannot
    read an empty list of results.
    """

    def _derive_coco_results(
        self,
        coco_eval: Optional[COCOeval],
        iou_type: str,
        class_names: Optional[List[str]] = None,
    ) -> Dict[str, float]:
        if coco_eval is None:
            nothing = COCO()
            nothing.dataset = {**self._coco_api.dataset, "annotations": []}
            nothing.createIndex()
            coco_eval = COCOeval(self._coco_api, nothing, iou_type)
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        return super()._derive_coco_results(coco_eval, iou_type, class_names)
