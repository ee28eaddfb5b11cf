"""COCO evaluation with the fastest installed backend."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import logging
import os
from typing import Any, Container, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from detectron2 import evaluation
from detectron2.utils.logger import create_small_table

from ..data.annotations import checked_mask, checked_runs, complete, is_finite, is_id, is_number
from ..data.check import loading
from ..errors import OptionError, UserError
from ..files import writing

logger = logging.getLogger(__name__)

BACKENDS = ("faster-coco-eval", "pycocotools")
#: Kinds of evaluation and the fields of a detection that they use.
_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
_LISTS = (list, tuple, np.ndarray)
# Names of a COCOeval's statistics, in order.
_STATISTICS = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)
_KEYPOINT_STATISTICS = (
    "AP",
    "AP50",
    "AP75",
    "APm",
    "APl",
    "AR",
    "AR50",
    "AR75",
    "ARm",
    "ARl",
)


def default_backend() -> str:
    """Return ``faster-coco-eval`` if installed, or else ``pycocotools``, which gives the same results."""
    return BACKENDS[0] if importlib.util.find_spec("faster_coco_eval") else BACKENDS[1]


def evaluate_coco(
    truth: Dict[str, Any],
    results: List[Dict[str, Any]],
    iou_type: str,
    *,
    backend: Optional[str] = None,
    image_ids: Optional[Sequence[int]] = None,
    keypoint_sigmas: Sequence[float] = (),
    trust_masks: bool = False,
) -> Any:
    """Run COCO's evaluation of detections, accumulated and summarised.

    A model that found nothing is evaluated as well: its AP is 0 wherever there are objects to find.

    Args:
        truth: content of an annotation file, to be completed by :func:`complete`.
        results: detections in COCO's format, with the category ids of ``truth``.
        iou_type: ``bbox``, ``segm`` or ``keypoints``.
        backend: one of :data:`BACKENDS`; None for :func:`default_backend`.
        image_ids: images of ``truth`` to evaluate; None for all.
        keypoint_sigmas: OKS constant of each keypoint; empty for those of COCO's person.
        trust_masks: skip the check of the results' masks, which this process has encoded or checked itself.

    Returns:
        The backend's COCOeval, with ``stats`` (fractions, -1 where undefined), ``eval`` and ``params``.

    Raises:
        UserError: the truth cannot be used, lacks masks, keypoints or image sizes, or is of other images; a
            detection lacks ids, the right number of finite numbers, or a mask of its image's size.
        OptionError: there are not as many constants as keypoints, or a constant is not above 0.
    """
    coco_eval, images, categories = _coco_eval(
        truth, results, iou_type, backend or default_backend(), keypoint_sigmas, trust_masks
    )
    if image_ids is not None:
        if isinstance(image_ids, (str, bytes)) or not isinstance(image_ids, Iterable):
            raise OptionError("image_ids", image_ids, "must be a list of the ids of images")
        image_ids = list(image_ids)
        _check_known(image_ids, images, "images to evaluate")
        coco_eval.params.imgIds = [images[image_id] for image_id in image_ids]
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    coco_eval.params.imgIds, coco_eval.params.catIds = list(images), list(categories)
    return coco_eval


def statistics(coco_eval: Any, iou_type: str) -> Dict[str, float]:
    """Return AP and AR by name, in percent; NaN where there is nothing to find."""
    names = _KEYPOINT_STATISTICS if iou_type == "keypoints" else _STATISTICS
    return {n: float(100 * value if value >= 0 else "nan") for n, value in zip(names, coco_eval.stats)}


def precisions(coco_eval: Any) -> np.ndarray:
    """Return (T, R, C): precision in percent by IoU threshold, recall (101 of them) and category.

    NaN where there is nothing to find. Objects of all sizes count, and as many detections per image as the
    evaluation allows: the first and last entries of axes A and M of its ``precision``, (T, R, C, A, M).
    """
    precision = coco_eval.eval["precision"][:, :, :, 0, -1]
    return 100 * np.where(precision > -1, precision, np.nan)


def average_precisions(coco_eval: Any) -> np.ndarray:
    """Return (T, C): AP in percent, the mean of :func:`precisions` over the recalls."""
    return precisions(coco_eval).mean(axis=1)


def average_recalls(coco_eval: Any) -> np.ndarray:
    """Return (C,): AR in percent of each category, otherwise like :func:`average_precisions`."""
    recall = coco_eval.eval["recall"][:, :, 0, -1]
    return 100 * np.where(recall > -1, recall, np.nan).mean(axis=0)


class Match(NamedTuple):
    """A detection and the object that it was matched with.

    Attributes:
        detection: index into the list of results.
        truth: id of the annotation, as set by :func:`complete`, or None for a false positive.
    """

    detection: int
    truth: Optional[int]


def match_detections(
    truth: Dict[str, Any],
    results: List[Dict[str, Any]],
    iou_type: str,
    iou: float = 0.5,
    trust_masks: bool = False,
) -> List[Match]:
    """Match detections with objects by COCO's rules at one IoU.

    Detections that COCO ignores, such as those on crowds, and those beyond 100 per image are left out.
    """
    # The other backend does not report matches.
    coco_eval, *_ = _coco_eval(truth, results, iou_type, "pycocotools", trust_masks=trust_masks)
    coco_eval.params.iouThrs = np.array([iou])
    coco_eval.params.areaRng, coco_eval.params.areaRngLbl = coco_eval.params.areaRng[:1], ["all"]
    coco_eval.params.maxDets = [20 if iou_type == "keypoints" else 100]
    coco_eval.evaluate()
    return [
        # Ids of detections are their positions in the list, from 1; 0 is no match.
        Match(int(detection) - 1, int(matched) or None)
        for image in coco_eval.evalImgs
        if image
        for detection, matched, ignored in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0])
        if not ignored
    ]


def _coco_eval(
    truth: Dict[str, Any],
    results: List[Dict[str, Any]],
    iou_type: str,
    backend: str,
    keypoint_sigmas: Sequence[float] = (),
    trust_masks: bool = False,
) -> Tuple[Any, Dict[int, int], Dict[int, int]]:
    """Prepare a backend's COCOeval. Returns it with its replacements for the image and category ids.

    Backends differ in the ids they accept; the ranks of the ids, from 1, suit all and keep the order.
    """
    if iou_type not in _FIELDS:
        raise UserError(f"iou_type {iou_type!r} is not one of {', '.join(_FIELDS)}")
    truth = complete(truth)
    sigmas = _sigmas(keypoint_sigmas)
    _check_annotated(truth, iou_type, 3 * len(sigmas))
    images, categories = (
        {number: rank for rank, number in enumerate(sorted({entry["id"] for entry in truth[key]}), 1)}
        for key in ("images", "categories")
    )
    _check_ids(results)
    _check_known([result["image_id"] for result in results], images, "images with detections")
    unknown = sum(result["category_id"] not in categories for result in results)
    if unknown:
        logger.warning("%d detections are of categories that are not annotated, and are ignored", unknown)
    if iou_type == "keypoints":
        _check_keypoints([*truth["annotations"], *results[:1]], sigmas)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    results = [
        _readable(result, number, iou_type, sizes[result["image_id"]], len(sigmas), trust_masks)
        for number, result in enumerate(results)
    ]
    for entry in truth["images"]:
        entry["id"] = images[entry["id"]]
    for entry in truth["categories"]:
        entry["id"] = categories[entry["id"]]
    for entry in (*truth["annotations"], *results):  # 0, for unknown ids, is never evaluated
        entry["image_id"] = images.get(entry["image_id"], 0)
        entry["category_id"] = categories.get(entry["category_id"], 0)
    if backend == "faster-coco-eval":
        from faster_coco_eval import COCO, COCOeval_faster

        gt, evaluator = COCO(truth), COCOeval_faster
    else:
        gt, evaluator = _pycocotools(truth), pycocotools.cocoeval.COCOeval
    dt = gt.loadRes(results) if results else type(gt)()
    if not results:  # no backend reads an empty list
        dt.dataset = {**truth, "annotations": []}
        dt.createIndex()
    coco_eval = evaluator(gt, dt, iou_type)
    if iou_type == "keypoints":
        coco_eval.params.kpt_oks_sigmas = np.array(sigmas)
    coco_eval.params.catIds = list(categories.values())  # one backend omits some for keypoints
    return coco_eval, images, categories


def _check_known(image_ids: Sequence[int], images: Container[int], what: str) -> None:
    unknown = {image_id for image_id in image_ids if image_id not in images}
    if unknown:
        others = ", ..." if len(unknown) > 1 else ""
        raise UserError(
            f"{len(unknown)} {what} ({min(unknown, key=str)}{others}) are not in the annotation file; name "
            "the file that they belong to"
        )


def _check_ids(results: List[Dict[str, Any]]) -> None:
    """Raise UserError unless all detections have whole numbers as image and category ids."""
    for number, result in enumerate(results):
        for key in ("image_id", "category_id"):
            value = result.get(key) if isinstance(result, dict) else None
            if not is_id(value):
                raise UserError(f"detection number {number} has {key} {value!r:.80}, not a whole number")


def _sigmas(given: Sequence[float]) -> List[float]:
    """Return the OKS constant of each keypoint; defaults to COCO's."""
    if not isinstance(given, _LISTS) or not all(map(is_number, given)):
        raise OptionError("TEST.KEYPOINT_OKS_SIGMAS", given, "must be a list of numbers")
    coco = pycocotools.cocoeval.Params("keypoints").kpt_oks_sigmas
    sigmas = list(map(float, given if len(given) else coco))
    if not all(0 < sigma < np.inf for sigma in sigmas):  # backends differ on others
        raise OptionError("TEST.KEYPOINT_OKS_SIGMAS", sigmas, "must be above 0 and finite")
    return sigmas


def _check_keypoints(entries: List[Dict[str, Any]], sigmas: List[float]) -> None:
    """Raise OptionError unless all entries have one keypoint for each constant."""
    for entry in entries:
        points = entry.get("keypoints")
        if isinstance(points, _LISTS) and len(points) != 3 * len(sigmas):
            rule = f"must have {len(points) // 3} entries, one per keypoint"
            raise OptionError("TEST.KEYPOINT_OKS_SIGMAS", sigmas, rule)


def _readable(
    result: Dict[str, Any],
    number: int,
    iou_type: str,
    size: Tuple[Any, Any],
    keypoints: int,
    trust_masks: bool,
) -> Dict[str, Any]:
    """Copy a detection, since loading adds to it, using types that all backends accept.

    Masks are copied without their box, whose area would be used instead of the mask's.

    Args:
        size: height and width of the image, in pixels.
        keypoints: number of keypoints.

    Raises:
        UserError: it lacks the evaluated field, or has numbers that backends treat differently.
    """
    result = {key: value for key, value in result.items() if iou_type != "segm" or key != "bbox"}
    counts = {"score": 1, "bbox": 4, "keypoints": 3 * keypoints}
    for field in ("score", _FIELDS[iou_type]):
        value, flaw = result.get(field), None
        if field == "segmentation":
            result[field], flaw = checked_runs(value, *size, trusted=trust_masks)
        else:
            numbers = [value] if field == "score" else value if isinstance(value, _LISTS) else ()
            if not len(numbers) or not all(map(is_finite, numbers)):
                flaw = "must be finite"
            elif len(numbers) != counts[field]:
                flaw = f"must be {counts[field]} numbers"
            result[field] = value if field == "score" else list(numbers)
        if flaw:
            raise UserError(
                f"detection number {number}, on image {result['image_id']}, has the {field} {value!r:.80}, "
                f"which {flaw}; evaluate the model again, or remove the detection"
            )
    return result


def _check_annotated(truth: Dict[str, Any], iou_type: str, numbers: int) -> None:
    """Raise UserError if an object lacks the evaluated field, but add it to crowds, which COCO ignores.

    Args:
        numbers: length of an object's keypoints if no object has any.
    """
    key = {"segm": "segmentation", "keypoints": "keypoints"}.get(iou_type)
    lacking = [a for a in truth["annotations"] if key and not a.get(key)]
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    unsized = [number for number, size in sizes.items() if not all(map(is_id, size))]
    if unsized and key == "segmentation":
        raise UserError(
            f"{len(unsized)} images, the first {unsized[0]}, have no height and width, which the evaluation "
            "of masks needs; tools/check_dataset.py --fix writes a copy with them"
        )
    for annotation in truth["annotations"] if key == "segmentation" else ():
        size = sizes.get(annotation["image_id"])
        if not size or not annotation.get(key):
            continue
        annotation[key], flaw = checked_mask(annotation[key], *size)
        if flaw:
            raise UserError(
                f"annotation {annotation['id']}: its segmentation {flaw}; tools/check_dataset.py shows what "
                "is wrong, and --fix writes a repaired copy"
            )
    objects = [a for a in lacking if not a["iscrowd"]]
    if objects and key == "segmentation":
        raise UserError(
            f"{len(objects)} objects, the first annotation {objects[0]['id']}, have no segmentation, which "
            "the evaluation of masks needs; MODEL.MASK_ON False evaluates only boxes"
        )
    count = max((len(a["keypoints"]) for a in truth["annotations"] if a.get("keypoints")), default=numbers)
    for annotation in lacking:
        x, y, w, h = annotation["bbox"]
        if key == "segmentation":
            annotation[key] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        else:
            annotation.update(keypoints=[0] * count, num_keypoints=0)


def _pycocotools(truth: Dict[str, Any]) -> pycocotools.coco.COCO:
    coco = pycocotools.coco.COCO()
    coco.dataset = truth
    coco.createIndex()
    return coco


class COCOEvaluator(evaluation.COCOEvaluator):
    """detectron2's evaluator, based on :func:`evaluate_coco`.

    It uses the fastest backend, and gives a model that finds nothing AP 0, where detectron2 reports NaN.

    Args:
        average_recall: also report AR, overall and per category.
        arguments: arguments of detectron2's evaluator.
    """

    def __init__(
        self, dataset_name: str, *arguments: Any, average_recall: bool = False, **keywords: Any
    ) -> None:
        with loading([dataset_name]):
            super().__init__(dataset_name, *arguments, **keywords)
        if self._do_evaluation:  # fail before anything is predicted
            truth = complete(self._coco_api.dataset, self._metadata.json_file)
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco_api = _pycocotools(truth)
        self._average_recall = average_recall

    def evaluate(self, img_ids: Optional[Sequence[int]] = None) -> Dict[str, Any]:
        with writing(os.path.join(self._output_dir or "", "instances_predictions.pth")):
            return super().evaluate(img_ids)

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Optional[Sequence[str]] = None
    ) -> Dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if not self._average_recall:
            return results
        all_of_them = statistics(coco_eval, iou_type).items()
        recalls = {name: value for name, value in all_of_them if name.startswith("AR")}
        logger.info("Average recall of %s:\n%s", iou_type, create_small_table(recalls))
        if class_names is not None and len(class_names) > 1:
            per_class = zip(class_names, average_recalls(coco_eval))
            recalls.update({f"AR-{name}": float(value) for name, value in per_class})
        return {**results, **recalls}

    def _eval_predictions(
        self, predictions: List[Dict[str, Any]], img_ids: Optional[Sequence[int]] = None
    ) -> None:
        evaluate, self._do_evaluation = self._do_evaluation, False
        try:  # translates category ids, in place, and writes the results
            with writing(os.path.join(self._output_dir or "", "coco_instances_results.json")):
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
                trust_masks=True,  # detectron2 has encoded them
            )
            self._results[task] = self._derive_coco_results(
                coco_eval, task, class_names=self._metadata.get("thing_classes")
            )
