"""Compute the figures of a detector's report."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from ...published.detectors import DETECTORS
from ..coco import Match, average_recalls, evaluate_coco, match_detections, precisions, statistics
from .inputs import FIELDS

logger = logging.getLogger(__name__)

#: Where the report counts right and wrong detections, those with a lower score are ignored.
SCORE_THRESHOLD = 0.5
TITLES = {"bbox": "Boxes", "segm": "Masks", "keypoints": "Keypoints"}
_SIZES = (("small", "< 32² px", 0, 32**2), ("medium", "32² to 96² px", 32**2, 96**2),
          ("large", "> 96² px", 96**2, 1e10))  # fmt: skip


@dataclass
class Evaluation:
    """The files of one evaluation.

    Attributes:
        name: name of the folder or the configuration.
        truth: content of the annotation file.
        images: folder of its images, or None if unknown.
        results: detections in COCO's format.
        run: content of ``results.json``; empty for a folder that another program wrote.
        metrics: lines of ``metrics.json``; empty if nothing was trained.
        published: name of the published row to compare with.
        tasks: kinds that are both predicted and annotated, of ``bbox``, ``segm`` and ``keypoints``.
    """

    name: str
    truth: Dict[str, Any]
    images: Optional[Path]
    results: List[Dict[str, Any]]
    run: Dict[str, Any]
    metrics: List[Dict[str, Any]]
    published: Optional[str]
    tasks: List[str]
    _matches: Dict[str, List[Match]] = field(default_factory=dict)

    def matches(self, kind: str) -> List[Match]:
        """Return which detections found which objects at IoU 0.5."""
        if kind not in self._matches:
            with contextlib.redirect_stdout(io.StringIO()):
                self._matches[kind] = match_detections(self.truth, self.results, kind, trust_masks=True)
        return self._matches[kind]


@dataclass
class Task:
    """Figures of boxes, masks or keypoints. AP and AR are in percent, NaN where there is nothing to find.

    Attributes:
        summary: AP and AR by name, over all categories.
        published: AP in the published row, or None.
        categories: name, number of objects, AP, AP50, AP75 and AR of each category.
        curves: precision in percent at recall 0 to 1, by IoU threshold; mean over the categories.
        category_curves: the same at IoU 0.5 for the categories with the most objects.
        sizes: by object size: label, extent, number of objects, how many were found, and AP.
        right, wrong: scores of detections that found an object at IoU 0.5, and of those that did not.
        errors: AP50 gained by fixing each kind of error, and the number of such errors, by TIDE.
    """

    kind: str
    summary: Dict[str, float]
    published: Optional[float]
    categories: List[Dict[str, Any]]
    curves: Dict[str, np.ndarray]
    category_curves: Dict[str, np.ndarray]
    sizes: List[Dict[str, Any]]
    right: np.ndarray
    wrong: np.ndarray
    errors: Optional[Dict[str, Any]]


def measure(evaluation: Evaluation, kind: str) -> Task:
    """Compute all figures of one task from the detections."""
    truth, results = evaluation.truth, evaluation.results
    with contextlib.redirect_stdout(io.StringIO()):  # the backends print their tables
        coco_eval = evaluate_coco(truth, results, kind, trust_masks=True)  # checked by read_detections
    matches = evaluation.matches(kind)
    precision, ar, summary = precisions(coco_eval), average_recalls(coco_eval), statistics(coco_eval, kind)
    ap = precision.mean(axis=1)
    objects = [a for a in truth["annotations"] if not a.get("iscrowd")]
    if kind == "keypoints":
        objects = [a for a in objects if a.get("num_keypoints")]
    count = Counter(a["category_id"] for a in objects)
    name = {c["id"]: c["name"] for c in truth["categories"]}
    order = list(coco_eval.params.catIds)
    at = {round(float(iou), 2): i for i, iou in enumerate(coco_eval.params.iouThrs)}
    categories = [
        {"name": name[c], "objects": count[c], "AP": ap[:, k].mean(), "AP50": ap[at[0.5], k],
         "AP75": ap[at[0.75], k], "AR": ar[k]}
        for k, c in enumerate(order)
    ]  # fmt: skip
    present = [k for k, c in enumerate(order) if count[c]]
    most = sorted(present, key=lambda k: -count[order[k]])[:6]
    curves = {
        f"IoU {iou:.2f}": precision[at[iou]][:, present].mean(axis=1)
        for iou in (0.5, 0.6, 0.7, 0.8, 0.9)
        if present
    }
    found = {m.truth for m in matches if m.truth and results[m.detection]["score"] >= SCORE_THRESHOLD}
    scores = {
        right: np.array([results[m.detection]["score"] for m in matches if bool(m.truth) == right])
        for right in (True, False)
    }
    row = DETECTORS.get(evaluation.published)
    published = {"bbox": row.box_ap, "segm": row.mask_ap}.get(kind) if row else None
    return Task(
        kind=kind,
        summary=summary,
        published=published,
        categories=categories,
        curves=curves,
        category_curves={name[order[k]]: precision[at[0.5]][:, k] for k in most},
        sizes=_sizes(objects, found, summary),
        right=scores[True],
        wrong=scores[False],
        errors=_tide(truth, results, kind) if objects else None,
    )


def _sizes(objects: List[dict], found: set, summary: Dict[str, float]) -> List[Dict[str, Any]]:
    rows = []
    for label, extent, low, high in _SIZES:
        ids = [a["id"] for a in objects if low <= a["area"] < high]
        if not ids:
            continue
        rows.append(
            {"label": label, "extent": extent, "objects": len(ids), "found": len(found.intersection(ids)),
             "AP": summary.get(f"AP{label[0]}", float("nan"))}
        )  # fmt: skip
    return rows


def _tide(truth: Dict[str, Any], results: List[Dict[str, Any]], kind: str) -> Optional[Dict[str, Any]]:
    """Compute TIDE's error types (Bolya et al., arXiv 2008.08115) with its authors' package, if installed."""
    if kind == "keypoints" or not results or importlib.util.find_spec("tidecv") is None:
        return None
    try:
        import tidecv
    except ImportError as e:  # for example, pandas is missing
        logger.warning("kinds of error are left out: tidecv cannot be imported (%s)", e)
        return None
    field = FIELDS[kind]
    objects, detections = tidecv.Data("truth"), tidecv.Data("detections")
    for category in truth["categories"]:
        objects.add_class(category["id"], category["name"])
    sizes = {}
    for image in truth["images"]:
        objects.add_image(image["id"], image["file_name"])
        sizes[image["id"]] = (image["width"], image["height"])
    for a in truth["annotations"]:
        shape = a[field]
        if kind == "segm":
            shape = tidecv.functions.toRLE(shape, *sizes[a["image_id"]])
        add = objects.add_ignore_region if a.get("iscrowd") else objects.add_ground_truth
        add(a["image_id"], a["category_id"], **{"mask" if kind == "segm" else "box": shape})
    for r in results:
        detections.add_detection(
            r["image_id"], r["category_id"], r["score"], **{"mask" if kind == "segm" else "box": r[field]}
        )
    run = tidecv.TIDE().evaluate(objects, detections, mode="mask" if kind == "segm" else "bbox")
    labels = {"Cls": "classification", "Loc": "localisation", "Both": "both", "Dupe": "duplicate",
              "Bkg": "background", "Miss": "missed"}  # fmt: skip
    counts = {error.short_name: number for error, number in run.count_errors().items()}
    return {
        "AP50": float(run.ap),
        "types": [
            {"label": labels[error.short_name], "AP50": float(won), "count": counts[error.short_name]}
            for error, won in run.fix_main_errors().items()
        ],
    }


@dataclass
class Picture:
    """Right and wrong detections on one image.

    Attributes:
        image: its entry in the annotation file.
        f1: harmonic mean of precision and recall at IoU 0.5, for predictions with a score of at least
            :data:`SCORE_THRESHOLD`.
        right, wrong: indices of the detections that found an object, and of those that did not.
        found, missed: the annotations that were found, and that were not.
    """

    image: Dict[str, Any]
    f1: float
    right: List[int]
    wrong: List[int]
    found: List[Dict[str, Any]]
    missed: List[Dict[str, Any]]


def rank_pictures(evaluation: Evaluation, kind: str) -> List[Picture]:
    """Rank images with objects or predictions, best first; in a tie, those with more objects first."""
    results = evaluation.results
    right: Mapping[int, List[int]] = defaultdict(list)
    wrong: Mapping[int, List[int]] = defaultdict(list)
    found = set()
    for match in evaluation.matches(kind):
        if results[match.detection]["score"] >= SCORE_THRESHOLD:
            (right if match.truth else wrong)[results[match.detection]["image_id"]].append(match.detection)
            found.add(match.truth)
    objects: Mapping[int, List[dict]] = defaultdict(list)
    for annotation in evaluation.truth["annotations"]:
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append(annotation)
    pictures = []
    for image in evaluation.truth["images"]:
        true, good, bad = objects[image["id"]], right[image["id"]], wrong[image["id"]]
        if true or bad:
            f1 = 2 * len(good) / (len(true) + len(good) + len(bad))
            hit = [a for a in true if a["id"] in found]
            pictures.append(Picture(image, f1, good, bad, hit, [a for a in true if a["id"] not in found]))
    return sorted(pictures, key=lambda p: (-p.f1, -len(p.found) - len(p.missed)))
