"""Panoptic Quality (Kirillov et al., arXiv 1801.00868), computed as in COCO's panoptic task.

detectron2's evaluator needs panopticapi, which is not on the package index.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections import OrderedDict, defaultdict
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from ..data.panoptic import VOID, read_panoptic, read_segments
from ..errors import UserError

logger = logging.getLogger(__name__)

#: Sum of the IoU of matched segments; numbers of true positives, false positives and false negatives.
Counts = np.ndarray


def match_segments(
    truth: np.ndarray,
    truth_segments: Sequence[Mapping[str, Any]],
    predicted: np.ndarray,
    predicted_segments: Sequence[Mapping[str, Any]],
) -> Dict[int, Counts]:
    """Match the segments of one image.

    A predicted and a true segment of the same category match if their IoU is above 0.5, so a segment has at
    most one match; unlabelled pixels are left out of the IoU. Crowds need not be found, and a prediction
    is not wrong if more than half of it lies on unlabelled pixels or on crowds of its category.

    Args:
        truth, predicted: (H, W) integers, the segment id of each pixel, 0 for none.
        truth_segments, predicted_segments: have ``id`` and ``category_id``, and true ones ``iscrowd``.

    Returns:
        (4,) by category: sum of IoU, true positives, false positives, false negatives.
    """
    categories = {segment["id"]: segment["category_id"] for segment in truth_segments}
    crowds = {segment["id"] for segment in truth_segments if segment.get("iscrowd")}
    pairs, overlaps = np.unique(
        np.stack((truth.ravel(), predicted.ravel())).astype(np.int64), axis=1, return_counts=True
    )
    overlap = {(int(t), int(p)): int(n) for (t, p), n in zip(pairs.T, overlaps)}
    area: Tuple[Dict[int, int], Dict[int, int]] = defaultdict(int), defaultdict(int)
    for pair, pixels in overlap.items():
        for side in (0, 1):
            area[side][pair[side]] += pixels

    counts: Dict[int, Counts] = defaultdict(lambda: np.zeros(4))
    found = set()
    for segment in predicted_segments:
        own, category = segment["id"], segment["category_id"]
        ignored = overlap.get((VOID, own), 0)
        matched = False
        for (t, p), pixels in overlap.items():
            if p != own or t == VOID or categories.get(t) != category:
                continue
            if t in crowds:
                ignored += pixels
                continue
            union = area[0][t] + area[1][own] - pixels - overlap.get((VOID, own), 0)
            if pixels / union > 0.5:
                counts[category] += (pixels / union, 1, 0, 0)
                found.add(t)
                matched = True
        if not matched and area[1][own] and ignored / area[1][own] <= 0.5:
            counts[category][2] += 1
    for true, category in categories.items():
        if true not in found and true not in crowds:
            counts[category][3] += 1
    return dict(counts)


def panoptic_quality(counts: Mapping[int, Counts], categories: Sequence[int]) -> Dict[str, float]:
    """Return PQ, SQ and RQ in percent, averaged over the categories that occur in truth or prediction."""
    rows = np.array([counts[c] for c in categories if c in counts and counts[c][1:].any()]).reshape(-1, 4)
    if not len(rows):
        return dict.fromkeys(("PQ", "SQ", "RQ"), float("nan"))
    iou, matched, wrong, missed = rows.T
    half = matched + 0.5 * wrong + 0.5 * missed
    sq = np.divide(iou, matched, out=np.zeros_like(iou), where=matched > 0)
    values = {"PQ": iou / half, "SQ": sq, "RQ": matched / half}
    return {name: 100 * float(value.mean()) for name, value in values.items()}


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of all, thing (``_th``) and stuff (``_st``) categories, named as in detectron2.

    Args:
        dataset: a registered dataset, with ``panoptic_json`` and ``panoptic_root`` in its metadata.
        output_dir: folder for ``panoptic.json``, the counts of each category.
    """

    def __init__(self, dataset: str, output_dir: Optional[str] = None) -> None:
        self._metadata = MetadataCatalog.get(dataset)
        self._output_dir = output_dir
        content = read_panoptic(PathManager.get_local_path(self._metadata.panoptic_json))
        self._truth = {annotation["image_id"]: annotation for annotation in content["annotations"]}
        self._categories = content["categories"]
        things, stuff = (
            {contiguous: category for category, contiguous in mapping.items()}
            for mapping in (
                self._metadata.thing_dataset_id_to_contiguous_id,
                self._metadata.stuff_dataset_id_to_contiguous_id,
            )
        )
        self._category_of = {True: things, False: stuff}
        self.reset()

    def reset(self) -> None:
        self._images: List[Tuple[int, Dict[int, Counts]]] = []

    def process(self, inputs: Sequence[Dict], outputs: Sequence[Dict]) -> None:
        """Count the segments of a batch.

        Raises:
            UserError: an image has no panoptic annotation, or its PNG does not match it.
        """
        for record, output in zip(inputs, outputs):
            image_id = record["image_id"]
            if image_id not in self._truth:
                raise UserError(f"{self._metadata.panoptic_json} has no annotation of image {image_id}")
            annotation = self._truth[image_id]
            ids, segments = output["panoptic_seg"]
            predicted = [
                {"id": s["id"], "category_id": self._category_of[bool(s["isthing"])][s["category_id"]]}
                for s in segments
            ]
            ids = ids.cpu().numpy()
            path = os.path.join(self._metadata.panoptic_root, annotation["file_name"])
            truth = read_segments(path, annotation, self._metadata.panoptic_json, ids.shape)
            counts = match_segments(truth, annotation["segments_info"], ids, predicted)
            self._images.append((image_id, counts))

    def evaluate(self) -> Optional[OrderedDict]:
        """Return the nine metrics in percent as ``panoptic_seg``, on the main process only."""
        images = list(itertools.chain(*comm.gather(self._images)))
        if not comm.is_main_process():
            return None
        counts: Dict[int, Counts] = defaultdict(lambda: np.zeros(4))
        # In the order of the images, so that sums do not depend on the number of processes.
        for _, of_image in sorted(dict(images).items()):
            for category, values in of_image.items():
                counts[category] += values
        groups = {
            "": [c["id"] for c in self._categories],
            "_th": [c["id"] for c in self._categories if c["isthing"]],
            "_st": [c["id"] for c in self._categories if not c["isthing"]],
        }
        results = {
            f"{name}{suffix}": value
            for suffix, members in groups.items()
            for name, value in panoptic_quality(counts, members).items()
        }
        rows = [
            [label, *(results[f"{name}{suffix}"] for name in ("PQ", "SQ", "RQ")), len(groups[suffix])]
            for label, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
        ]
        table = tabulate(rows, ("", "PQ", "SQ", "RQ", "categories"), "github", floatfmt=".3f")
        logger.info("Panoptic quality:\n%s", table)
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "panoptic.json"), "w") as f:
                names = ("iou", "matched", "wrong", "missed")
                json.dump({c: dict(zip(names, map(float, v))) for c, v in sorted(counts.items())}, f)
        return OrderedDict(panoptic_seg=results)
