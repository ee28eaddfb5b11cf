"""Accuracy of image classification."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from ..data.image_folder import image_classes
from .results import write_counts

logger = logging.getLogger(__name__)

#: The file of an evaluation, in its folder.
FILE = "classification_evaluation.json"
#: Most classes whose own accuracies are among the results and in the log.
_LISTED = 50


class ClassificationEvaluator(DatasetEvaluator):
    """Top-1 and top-5 accuracy, and of up to 50 classes the accuracy of each, in percent.

    ``top5`` is left out for fewer than six classes. ``mean_class_top1`` averages over the classes that have
    images.

    Args:
        dataset: registered name.
        output_dir: folder for :data:`FILE`; None writes none.
    """

    def __init__(self, dataset: str, output_dir: Optional[str] = None) -> None:
        self._dataset, self._output_dir = dataset, output_dir
        self._classes = image_classes(dataset)
        self.reset()

    def reset(self) -> None:
        self._images: List[Dict[str, Any]] = []

    def process(self, inputs: Sequence[Dict[str, Any]], outputs: Sequence[Dict[str, Any]]) -> None:
        for record, output in zip(inputs, outputs):
            probabilities = output["probabilities"].cpu()
            best = probabilities.topk(min(5, len(probabilities)))
            self._images.append(
                {
                    "file_name": record["file_name"],
                    "label": record["label"],
                    "top5": best.indices.tolist(),
                    "probabilities": [round(float(value), 6) for value in best.values],
                }
            )

    def evaluate(self) -> Optional[OrderedDict]:
        """Return ``{"classification": metrics}`` in the main process, and None in others."""
        gathered = comm.gather(self._images)
        if not comm.is_main_process():
            return None
        images = [image for part in gathered for image in part]
        images.sort(key=lambda image: (image["label"], image["file_name"]))
        size = len(self._classes)
        counts = np.zeros((size, size), np.int64)
        for image in images:
            counts[image["label"], image["top5"][0]] += 1
        results = self._results(counts, images)
        if self._output_dir:
            rest = {"dataset": self._dataset, "classes": self._classes, "images": images}
            write_counts(Path(self._output_dir, FILE), results, counts, **rest)
        return OrderedDict(classification=results)

    def _results(self, counts: np.ndarray, images: Sequence[Dict[str, Any]]) -> Dict[str, float]:
        with np.errstate(invalid="ignore", divide="ignore"):
            by_class = 100 * counts.diagonal() / counts.sum(1)
            top1 = 100 * np.divide(counts.diagonal().sum(), counts.sum())
        there = by_class[~np.isnan(by_class)]
        results = {"top1": float(top1)}
        if len(self._classes) > 5:
            right = [image["label"] in image["top5"] for image in images]
            results["top5"] = 100 * float(np.mean(right)) if right else float("nan")
        results["mean_class_top1"] = float(there.mean()) if len(there) else float("nan")
        summary = ", ".join(f"{name} {value:.2f}" for name, value in results.items())
        logger.info("%s, %d images: %s", self._dataset, len(images), summary)
        if len(self._classes) > _LISTED:
            return results
        rows = zip(self._classes, by_class, counts.sum(1))
        logger.info("\n%s", tabulate(rows, ("class", "top1", "images"), "github", floatfmt=".2f"))
        named = {f"top1-{name}": float(value) for name, value in zip(self._classes, by_class)}
        return {**results, **named}
