"""Pictures of a report: predictions and ground truth, coloured by whether they agree."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pycocotools.mask
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image, transform_instance_annotations
from detectron2.data.transforms import ResizeTransform, TransformList
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from .charts import MISSED, RIGHT, WRONG
from .measure import Evaluation, Picture

#: Width of each picture in pixels.
_WIDTH = 560
LEGEND = {"right": RIGHT, "wrong": WRONG, "missed": MISSED}


def draw(evaluation: Evaluation, picture: Picture, kind: str) -> Optional[Dict[str, Any]]:
    """One entry of the gallery.

    Returns:
        Name of the image, F1 in percent, counts, and both pictures as data URLs; None where the image
        cannot be read.
    """
    path = evaluation.images / picture.image["file_name"]
    try:
        pixels = read_image(str(path), "RGB")
    except (OSError, ValueError):
        return None
    name = {c["id"]: c["name"] for c in evaluation.truth["categories"]}
    results = evaluation.results
    predicted = [
        (results[i], f"{name[results[i]['category_id']]} {results[i]['score']:.0%}", colour)
        for indices, colour in ((picture.right, RIGHT), (picture.wrong, WRONG))
        for i in indices
    ]
    true = [
        (annotation, name[annotation["category_id"]], colour)
        for annotations, colour in ((picture.found, RIGHT), (picture.missed, MISSED))
        for annotation in annotations
    ]
    return {
        "name": Path(picture.image["file_name"]).name,
        "f1": 100 * picture.f1,
        "right": len(picture.right),
        "wrong": len(picture.wrong),
        "missed": len(picture.missed),
        "predicted": _overlay(pixels, predicted, kind),
        "truth": _overlay(pixels, true, kind),
    }


def _box(annotation: Dict[str, Any]) -> Sequence[float]:
    """x, y, width and height in pixels; results of masks may come without."""
    return annotation.get("bbox") or pycocotools.mask.toBbox(annotation["segmentation"]).tolist()


def _overlay(pixels: np.ndarray, objects: Sequence[Tuple[Dict, str, str]], kind: str) -> str:
    """A JPEG, as a data URL, of the image with its objects: annotation, label and colour of each."""
    height = round(_WIDTH * pixels.shape[0] / pixels.shape[1])
    resize = TransformList([ResizeTransform(*pixels.shape[:2], height, _WIDTH)])
    fields = {"segm": ("segmentation",), "keypoints": ("keypoints",)}.get(kind, ())
    shapes: List[Dict] = [
        transform_instance_annotations(
            {"bbox": _box(o), "bbox_mode": BoxMode.XYWH_ABS, **{f: o[f] for f in fields if f in o}},
            resize,
            (height, _WIDTH),
        )
        for o, _, _ in objects
    ]

    def values(field: str) -> Optional[List]:
        return [shape[field] for shape in shapes] if all(field in shape for shape in shapes) else None

    visualizer = Visualizer(resize.apply_image(pixels), MetadataCatalog.get("coco_2017_val"))
    if objects:
        keypoints = values("keypoints")
        visualizer.overlay_instances(
            boxes=np.array(values("bbox")),
            labels=[label for _, label, _ in objects],
            masks=values("segmentation"),
            keypoints=None if keypoints is None else np.array(keypoints),
            assigned_colors=[colour for _, _, colour in objects],
            alpha=0.35,
        )
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(visualizer.output.get_image())).save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
