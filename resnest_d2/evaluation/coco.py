"""COCO evaluation, by the fastest backend that is installed."""

from __future__ import annotations

import importlib.util
import itertools
import logging
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from detectron2 import evaluation

from ..errors import OptionError

logger = logging.getLogger(__name__)

BACKENDS = ("faster-coco-eval", "pycocotools")


def default_backend() -> str:
    """``faster-coco-eval`` where it is installed, else ``pycocotools``. Their results are equal."""
    return BACKENDS[0] if importlib.util.find_spec("faster_coco_eval") else BACKENDS[1]


def evaluate_coco(
    truth: Dict[str, Any],
    results: List[Dict[str, Any]],
    iou_type: str,
    *,
    backend: Optional[str] = None,
    image_ids: Optional[Sequence[int]] = None,
    keypoint_sigmas: Sequence[float] = (),
) -> Any:
    """COCO's evaluation of detections, accumulated and summarised.

    A model that found nothing is evaluated too: its AP is 0 wherever there are objects to find.

    Args:
        truth: content of an annotation file.
        results: detections in COCO's format, with the category ids of ``truth``.
        iou_type: ``bbox``, ``segm`` or ``keypoints``.
        backend: one of :data:`BACKENDS`; None for :func:`default_backend`.
        image_ids: which images count; None for all.
        keypoint_sigmas: OKS constant per keypoint; empty for COCO's person.

    Returns:
        The backend's COCOeval, with ``stats`` (fractions, -1 where undefined), ``eval`` and ``params``.
    """
    # A copy, since loading adds to the detections. With a box in it, a mask would count by the area of
    # the box, not by its own.
    drop = "bbox" if iou_type == "segm" else None
    results = [{k: v for k, v in result.items() if k != drop} for result in results]
    if (backend or default_backend()) == "faster-coco-eval":
        from faster_coco_eval import COCO, COCOeval_faster

        gt, evaluator = COCO(truth), COCOeval_faster
    else:
        gt, evaluator = _pycocotools(truth), pycocotools.cocoeval.COCOeval
    dt = gt.loadRes(results) if results else type(gt)()
    if not results:  # neither reads an empty list
        dt.dataset = {**truth, "annotations": []}
        dt.createIndex()
    coco_eval = evaluator(gt, dt, iou_type)
    if image_ids is not None:
        coco_eval.params.imgIds = list(image_ids)
    if iou_type == "keypoints":
        if keypoint_sigmas:
            coco_eval.params.kpt_oks_sigmas = np.array(keypoint_sigmas)
        sigmas = list(coco_eval.params.kpt_oks_sigmas)
        if results and len(results[0]["keypoints"]) != 3 * len(sigmas):
            count = len(results[0]["keypoints"]) // 3
            raise OptionError(
                "TEST.KEYPOINT_OKS_SIGMAS", sigmas, f"must have {count} entries, one a keypoint"
            )
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval


def _pycocotools(truth: Dict[str, Any]) -> pycocotools.coco.COCO:
    coco = pycocotools.coco.COCO()
    coco.dataset = truth
    coco.createIndex()
    return coco


class COCOEvaluator(evaluation.COCOEvaluator):
    """detectron2's evaluator with :func:`evaluate_coco`.

    So it uses the fastest backend, and a model that finds nothing has AP 0. detectron2 reports NaN.
    """

    def _eval_predictions(
        self, predictions: List[Dict[str, Any]], img_ids: Optional[Sequence[int]] = None
    ) -> None:
        evaluate, self._do_evaluation = self._do_evaluation, False
        try:  # translates category ids, in place, and writes the results
            super()._eval_predictions(predictions, img_ids)
        finally:
            self._do_evaluation = evaluate
        if not evaluate:
            return
        results = list(itertools.chain(*(prediction["instances"] for prediction in predictions)))
        backend = default_backend()
        logger.info("Evaluating with %s", backend)
        for task in sorted(self._tasks or self._tasks_from_predictions(results)):
            coco_eval = evaluate_coco(
                self._coco_api.dataset,
                results,
                task,
                backend=backend,
                image_ids=img_ids,
                keypoint_sigmas=self._kpt_oks_sigmas or (),
            )
            self._results[task] = self._derive_coco_results(
                coco_eval, task, class_names=self._metadata.get("thing_classes")
            )
