"""Find the files of an evaluation, and read them."""

from __future__ import annotations

import itertools
import logging
import os
import shlex
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from ...errors import UserError, nearest
from ...published import CLASSIFIERS, MODELS, SEGMENTORS
from ..classification import FILE as CLASSIFICATION
from ..results import read_results
from ..semantic import FILE as SEMANTIC
from .classification import ClassificationEvaluation, read_classification
from .inputs import comparable, read_detections, read_metrics, read_truth, remedied
from .measure import Evaluation
from .semantic import SemanticEvaluation, read_semantic

logger = logging.getLogger(__name__)

#: What an evaluation may be of.
AnyEvaluation = Union[Evaluation, SemanticEvaluation, ClassificationEvaluation]
_DETECTIONS = "coco_instances_results.json"


#: By the file of an evaluation: its reader, the published rows of its kind, and what it is of.
_READERS = {
    SEMANTIC: (read_semantic, SEGMENTORS, "semantic segmentation"),
    CLASSIFICATION: (read_classification, CLASSIFIERS, "classification"),
}


def load_evaluation(
    folder: Path,
    annotations: Optional[Path] = None,
    images: Optional[Path] = None,
    row: Optional[str] = None,
) -> AnyEvaluation:
    """Find and read the files of an evaluation: of detections, semantic segmentation or classification.

    Args:
        folder: OUTPUT_DIR of a run, or its folder of detections.
        annotations, images: ground truth and its images; default to those recorded by the run.
        row: published row to compare with; defaults to the configuration of the run.

    Raises:
        UserError: there are no detections, the ground truth is unknown, a file cannot be used, or there is no
            such row or folder.
    """
    folder = Path(folder)
    if row is not None and row not in MODELS:
        raise UserError(f"--row {row}: no such row is published; {nearest(row, MODELS)}")
    if images is not None and not os.path.isdir(images):
        raise UserError(f"--images {images} is not a folder")
    found = _find(folder, _DETECTIONS, "inference")
    if not found:  # the newest, since the training that was last may have been without TEST.AUG
        found = _find(folder, SEMANTIC, "inference_TTA", "inference")
        found.sort(key=lambda path: -path.stat().st_mtime)
    found = found or _find(folder, CLASSIFICATION, "inference")
    file = next(iter(found), None)
    if len({path.parent.name for path in found} - {"inference", "inference_TTA"}) > 1:
        logger.warning(
            "of the evaluations in %s, that in %s is shown; name the folder of another", folder, file.parent
        )
    if file is None:
        raise UserError(
            f"{folder} has no inference/{_DETECTIONS}, inference/{SEMANTIC} or inference/{CLASSIFICATION}; "
            "evaluate into it first"
        )
    root = folder if file.parent != folder or os.path.exists(folder / "results.json") else folder.parent
    run: Dict[str, Any] = {}
    if os.path.exists(root / "results.json"):
        with remedied("evaluate again, or remove it and give --annotations and --images"):
            run = read_results(root / "results.json")
    metrics: List[Dict[str, Any]] = []
    if os.path.exists(root / "metrics.json"):
        with remedied("remove it to leave out the training"):
            metrics = read_metrics(root / "metrics.json")
    row = row or _config_of(run.get("command") or "")
    name, published = row or root.resolve().name, row if row in MODELS else None
    if file.name in _READERS:
        read, rows, what = _READERS[file.name]
        if row in MODELS and row not in rows:
            raise UserError(f"--row {row} is not of {what}, unlike {file}; name its row")
        if annotations or images:
            raise UserError(f"--annotations and --images are for detections; {file} names its images")
        with remedied("evaluate again"):
            return read(file, name=name, run=run, metrics=metrics, published=published)
    noted = run.get("datasets") or [{}]
    dataset = next((d for d in noted if d.get("name") == file.parent.name), noted[0])
    what, annotations = "--annotations" if annotations else "", annotations or dataset.get("json_file")
    images = images or dataset.get("image_root")
    if not annotations:
        raise UserError(f"{root} does not record its dataset; give --annotations and --images")
    truth = read_truth(Path(annotations), what)
    with remedied("evaluate again"):
        results = read_detections(file, truth)
    return Evaluation(
        name=name,
        truth=truth,
        images=Path(images) if images else None,
        results=results,
        run=run,
        metrics=metrics,
        published=published,
        tasks=comparable(Path(annotations), truth, results),
    )


def _find(folder: Path, file: str, *below: str) -> List[Path]:
    """Return the files of that name in a folder, or in some of those below it and below these."""
    inside = [
        path for name in below for path in (folder / name / file, *sorted(folder.glob(f"{name}/*/{file}")))
    ]
    return [path for path in (folder / file, *inside) if os.path.exists(path)]


def _config_of(command: str) -> Optional[str]:
    """Return the name of the configuration in the command line of a run, with the subfolder if it is ours."""
    for word, value in itertools.pairwise(shlex.split(command)):
        if word == "--config-file":
            path = Path(value).with_suffix("")
            name = f"{path.parent.name}/{path.name}"
            return name if name in MODELS else path.name
    return None
