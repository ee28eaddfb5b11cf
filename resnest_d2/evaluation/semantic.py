"""Semantic segmentation: IoU and accuracy from one matrix of pixel counts."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image
from tabulate import tabulate
from torch.nn import functional as F

from ..data.semantic_masks import check_range, check_size, read_labels
from ..errors import UserError
from ..files import atomic_writer
from .results import write_counts

logger = logging.getLogger(__name__)

#: What :class:`SemanticEvaluator` writes into its folder: measurements, and a folder of predicted label maps.
FILE, PREDICTIONS = "sem_seg_evaluation.json", "sem_seg_predictions"


class Scores(NamedTuple):
    """Measurements from a matrix of pixel counts, as fractions; NaN for classes without labelled pixels.

    Attributes:
        iou, accuracy: (classes,) IoU, and the part of a class's pixels that are found.
        share: (classes,) the classes' shares of the labelled pixels.
        pixel_accuracy: the part of the labelled pixels that are right.
    """

    iou: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray
    pixel_accuracy: float


def confusion(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by true and predicted class.

    Args:
        predicted: integers below ``classes``.
        truth: integers of the same shape; others than those below ``classes`` are not counted.

    Returns:
        (classes, classes): rows are true classes.
    """
    labelled = (truth >= 0) & (truth < classes)
    index = classes * truth[labelled].astype(np.int64) + predicted[labelled]
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def scores(counts: np.ndarray) -> Scores:
    """Compute the measurements from the counts of :func:`confusion`."""
    right, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = right / true
        iou = np.where(true > 0, right / (true + predicted - right), np.nan)
        return Scores(iou, accuracy, true / true.sum(), float(np.divide(right.sum(), true.sum())))


def boundary(labels: np.ndarray, classes: int, ratio: float = 0.02) -> np.ndarray:
    """Keep the labels of pixels near another label or the image's edge; all others become ``classes``.

    Args:
        labels: (H, W) integers.
        ratio: what is near, as a fraction of the image's diagonal, in both axes.

    Source: Boundary IoU (arXiv 2103.16562). detectron2's evaluator subtracts labels from each other instead.
    """
    reach = max(1, round(ratio * float(np.hypot(*labels.shape))))
    # float32 holds labels exactly; the edge differs from all of them.
    near = F.pad(torch.from_numpy(labels.astype(np.float32))[None, None], [reach] * 4, value=-2.0)
    most, least = near, -near
    for kernel in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        most, least = F.max_pool2d(most, kernel, stride=1), F.max_pool2d(least, kernel, stride=1)
    return np.where((most == -least)[0, 0].numpy(), classes, labels)


class SemanticEvaluator(DatasetEvaluator):
    """IoU and accuracy of semantic segmentation, with detectron2's names, in percent.

    ``mIoU``, ``mACC`` and ``fwIoU`` average over the classes that the labels have; ``mIoU_all`` over all, of
    which those without labels count 0, as in the authors' code. Of an image, only the number of pixels by
    true and predicted class is kept, and its label map is written to a PNG, from which the report draws.

    Args:
        dataset: registered name; its metadata has ``stuff_classes``.
        output_dir: folder for :data:`FILE` and :data:`PREDICTIONS`; None writes neither.
        boundaries: also measure Boundary IoU, which takes most of the time.
        ignore_value: label that does not count, if the metadata has no ``ignore_label``.
    """

    def __init__(
        self,
        dataset: str,
        output_dir: Optional[str] = None,
        boundaries: bool = False,
        ignore_value: int = 255,
    ) -> None:
        metadata = MetadataCatalog.get(dataset)
        self._classes = list(metadata.stuff_classes)
        self._colours = metadata.get("stuff_colors")
        self._ignored = metadata.get("ignore_label", ignore_value)
        self._files = {r["file_name"]: r["sem_seg_file_name"] for r in DatasetCatalog.get(dataset)}
        self._names = _names(list(self._files)) if output_dir else {}
        self._dataset, self._output_dir, self._boundaries = dataset, output_dir, boundaries
        self.reset()

    def reset(self) -> None:
        size = len(self._classes)
        self._counts = np.zeros((size, size), np.int64)
        # The last row and column are pixels inside, away from boundaries.
        self._edges = np.zeros((size + 1, size + 1), np.int64)
        self._images: List[Dict[str, Any]] = []

    def process(self, inputs: Sequence[Dict[str, Any]], outputs: Sequence[Dict[str, Any]]) -> None:
        """Count the pixels of a batch.

        Raises:
            UserError: a label map cannot be read, has another size, or has invalid labels.
        """
        for record, output in zip(inputs, outputs):
            file, size = record["file_name"], len(self._classes)
            predicted = output["sem_seg"].argmax(0).cpu().numpy()
            labels = record.get("sem_seg_file_name", self._files[file])
            truth = self._truth(labels, predicted.shape, file)
            counts = confusion(predicted, truth, size)
            self._counts += counts
            if self._boundaries:
                edges = np.where(truth < 0, -1, boundary(truth, size))
                self._edges += confusion(boundary(predicted, size), edges, size + 1)
            measured = scores(counts)
            entry = {"file_name": file, "sem_seg_file_name": labels}
            entry["pACC"], entry["mIoU"] = map(_percent, (measured.pixel_accuracy, _mean(measured.iou)))
            if self._output_dir:
                entry["prediction"] = self._save(predicted, file)
            self._images.append(entry)

    def _truth(self, path: str, shape: Sequence[int], image: str) -> np.ndarray:
        """Read a label map, with -1 for what is ignored."""
        labels = read_labels(path).astype(np.int64)
        check_size(path, labels.shape, image, shape)
        check_range(path, labels, len(self._classes), self._ignored)
        return np.where(labels == self._ignored, -1, labels)

    def _save(self, predicted: np.ndarray, file: str) -> str:
        """Write a label map into the folder of predictions, and return its name there."""
        folder = Path(self._output_dir or "", PREDICTIONS)
        if folder.is_symlink():
            raise UserError(f"{folder} is a link, through which label maps would replace others; remove it")
        target = folder / self._names[file]
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(target) as opened:
            Image.fromarray(predicted.astype(np.uint8)).save(opened, "PNG")
        return self._names[file]

    def evaluate(self) -> Optional[OrderedDict]:
        """Return ``{"sem_seg": metrics}`` in the main process, and None in others."""
        gathered = comm.gather((self._counts, self._edges, self._images))
        if not comm.is_main_process():
            return None
        counts, edges = (np.sum([part[i] for part in gathered], 0) for i in (0, 1))
        place = {file: i for i, file in enumerate(self._files)}
        images = sorted(
            (entry for *_, part in gathered for entry in part), key=lambda entry: place[entry["file_name"]]
        )
        if not counts.any():
            logger.warning("%s: no pixel of %d label maps is labelled", self._dataset, len(images))
        results = self._results(counts, edges)
        if self._output_dir:
            rest = {
                "dataset": self._dataset,
                "classes": self._classes,
                "colours": self._colours,
                "images": images,
            }
            write_counts(Path(self._output_dir, FILE), results, counts, **rest)
        return OrderedDict(sem_seg=results)

    def _results(self, counts: np.ndarray, edges: np.ndarray) -> Dict[str, float]:
        measured = scores(counts)
        counted = np.arange(len(self._classes)) != self._ignored
        of_all = np.nan_to_num(measured.iou[counted]).mean() if counts.any() else np.nan
        means = {
            "mIoU": _mean(measured.iou),
            "mIoU_all": of_all,
            "fwIoU": np.nansum(measured.iou * measured.share) if counts.any() else np.nan,
            "mACC": _mean(measured.accuracy),
            "pACC": measured.pixel_accuracy,
        }
        by_class = {"IoU": measured.iou, "ACC": measured.accuracy}
        if self._boundaries:
            by_class["BoundaryIoU"] = scores(edges).iou[:-1]
            means["mBoundaryIoU"] = _mean(by_class["BoundaryIoU"])
        logger.info("Semantic segmentation of %s:\n%s", self._dataset, _table(self._classes, by_class))
        logger.info(", ".join(f"{name} {100 * value:.2f}" for name, value in means.items()))
        named = {
            f"{kind}-{name}": value
            for kind, part in by_class.items()
            for name, value in zip(self._classes, part)
        }
        return {name: 100 * float(value) for name, value in {**means, **named}.items()}


def _names(files: Sequence[str]) -> Dict[str, str]:
    """Return a different name for the label map of each image: its own below the folder of all, as PNG."""
    absolute = [os.path.abspath(file) for file in files]
    root = os.path.commonpath([os.path.dirname(file) for file in absolute]) if files else ""
    relative = [os.path.relpath(file, root) for file in absolute]
    names = [os.path.splitext(name)[0] for name in relative]
    unique = names if len(set(names)) == len(names) else relative
    return {file: f"{name}.png" for file, name in zip(files, unique)}


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _percent(fraction: float) -> Optional[float]:
    return None if np.isnan(fraction) else 100 * float(fraction)


def _table(classes: Sequence[str], columns: Dict[str, np.ndarray]) -> str:
    rows = [[name, *(100 * values[i] for values in columns.values())] for i, name in enumerate(classes)]
    return tabulate(rows, ["class", *columns], "github", floatfmt=".2f")
